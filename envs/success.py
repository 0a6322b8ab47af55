"""Whether an environment's info says that a goal was reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

KEYS = ("success", "is_success", "goal_achieved")
"""Names under which infos report it: in Meta-World and Gymnasium-Robotics, in goal environments, in D4RL's Adroit."""

RULE = "at any step of the episode"
"""When an episode is a success. Of the environments that report success some end at the goal and others go on."""


class Reached(NamedTuple):
    """What the info of a step says.

    Attributes:
        says: rows whose info says whether the goal is reached, (rows,).
        reached: rows in which it is, (rows,).
    """

    says: npt.NDArray[np.bool_]
    reached: npt.NDArray[np.bool_]


def read(info: Any, done: npt.NDArray[np.bool_]) -> Reached:
    """Whether a step of a vector environment reached the goal, by row.

    Args:
        info: of the step, as Gymnasium batches infos: an array for a key, and a mask under the key with an underscore.
            Where it has "final_info", the rows that end take theirs from there: the rest is of their next episode.
        done: rows in which an episode ends with the step, (rows,).
    """
    now, final = _read(info, len(done)), info.get("final_info") if isinstance(info, Mapping) else None
    if not isinstance(final, Mapping):
        return now
    last = _read(final, len(done))
    return Reached(np.where(done, last.says, now.says), np.where(done, last.reached, now.reached))


def _read(info: Any, rows: int) -> Reached:
    says, reached = np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_)
    for key in KEYS if isinstance(info, Mapping) else ():
        values = np.asarray(info.get(key))
        if values.shape[:1] == (rows,):
            mask = np.broadcast_to(np.asarray(info.get(f"_{key}", True), dtype=np.bool_), (rows,))
            says |= mask
            reached |= mask & [_is_positive(value) for value in values]
    return Reached(says, reached)


def _is_positive(value: Any) -> bool:
    try:
        # None, of rows without the key, becomes NaN, which is not above 0.
        return bool(np.any(np.asarray(value, dtype=np.float64) > 0))
    except (TypeError, ValueError):
        return False
