"""Returns that normalised scores are measured against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aaren_rl.errors import InvalidInput

RECORDED = "the dataset's own"
"""Name of the reference that a dataset records; whatever a file says, it never bears the name of a table."""


@dataclass(frozen=True)
class Reference:
    """Returns that a normalised score is measured against.

    Attributes:
        name: name of the table that holds them.
        random: mean return of a random policy, score 0.
        expert: mean return of an expert policy, score 100.
    """

    name: str
    random: float
    expert: float

    def score(self, mean_return: float) -> float:
        """The normalised score of a mean return."""
        return 100.0 * (mean_return - self.random) / (self.expert - self.random)


def recorded_reference(scores: Mapping[str, Any], low: str = "random", high: str = "expert") -> Reference | None:
    """The reference that a file records; None where it records none.

    Args:
        scores: what the file records.
        low: key of the return of a random policy.
        high: key of the return of an expert policy.

    Raises:
        InvalidInput: one is missing or no finite number, or the expert's is not above the random one.
    """
    if not isinstance(scores, Mapping):
        raise InvalidInput(f"reference returns are saved as {scores!r}; expected {low} and {high}")
    random: Any = scores.get(low)
    expert: Any = scores.get(high)
    if random is None and expert is None:
        return None
    for key, value in ((low, random), (high, expert)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInput(f"{key} is {value!r}; expected a finite number")
    if not expert > random:
        raise InvalidInput(f"{high} is {expert} and {low} {random}; expected it to be above")
    return Reference(RECORDED, float(random), float(expert))
