"""What a reader makes of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import Reference
from aaren_rl.data.trajectories import Trajectories


@dataclass(frozen=True)
class Recording:
    """What a Minari dataset holds.

    Attributes:
        id: of the dataset.
        trajectories: its episodes, with the spaces that are recorded.
        collected_in: the environment that the data are from; None without a record.
        evaluated_in: the environment that the data's author names for evaluation; None without a record.
        reference: returns for normalised scores in the environment for evaluation; None without a record.
    """

    id: str
    trajectories: Trajectories
    collected_in: EnvironmentSpec | None
    evaluated_in: EnvironmentSpec | None
    reference: Reference | None = None
