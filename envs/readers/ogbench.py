"""Reads OGBench's data (Park et al. 2024, arXiv 2410.20092): npz files of trajectories without rewards."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers import d4rl
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    joined,
    numbers,
    parsed_of_values,
    require_finite,
    require_steps,
)
from aaren_rl.envs.readers.zipped_arrays import open_npz, shapes
from aaren_rl.errors import DataError

KEYS = ("observations", "actions", "terminals")
_READ = (*KEYS, "next_observations", "valids", "rewards", "masks")

_NAME = re.compile(
    r"(?P<task>(visual-)?(pointmaze|antmaze|humanoidmaze|antsoccer|cube|scene|puzzle|powderworld)(-[a-z0-9]+)*?)"
    r"-(navigate|stitch|explore|play|noisy)-(?P<version>v\d+)(-val)?"
)
"""Names of OGBench's files: the environment, the type of the data, the version."""

_Arrays = Mapping[str, npt.NDArray[Any]]


def parse(path: Path, say: Say) -> Parsed:
    """The trajectories of an OGBench file.

    Three forms are read, as OGBench's loader knows them:

    1. The files themselves: "terminals" mark the last observation of a trajectory, which is the final observation. The
       action beside it leads nowhere and is left out.
    2. "next_observations" (the loader's regular form): every row is a step, and "terminals" mark the last one.
    3. "valids" (the loader's compact form): as the files; "terminals" mark the last two rows, "valids" are 0 in the
       last.

    Ends are no final states of a task, so episodes count as truncated. Rewards are those of the file. The files of the
    benchmark have none, since their tasks are goals: then all rewards are 0. With "masks" (the loader's single-task
    sets) an episode whose last mask is 0 counts as terminated.

    Args:
        path: the file.
        say: called with a line on what is made up or left out.

    Raises:
        DataError: the file is damaged, keys are missing, lengths differ, or values are not finite.
    """
    with open_npz(path) as file:
        missing = [key for key in KEYS if key not in file]
        if missing:
            raise DataError(f"{path} lacks {missing}; expected OGBench's keys {list(KEYS)}, it has {sorted(file)}")
        if d4rl.is_d4rl(file):
            raise DataError(
                f"{path} holds D4RL's arrays ({sorted(file)}), whose terminals mean something else than OGBench's; "
                "give its path in place of a name of the catalogue, and it is read as D4RL's"
            )
        sizes = shapes(path)
        require_memory(
            2 * sum(math.prod(sizes[key][0]) * sizes[key][1].itemsize for key in _READ if key in sizes), path.name
        )
        data = {key: numbers(file[key], f"{path}: {key}") for key in _READ if key in file}
    steps = len(np.atleast_1d(data["terminals"]))
    for key, values in data.items():
        require_steps(values, steps, f"{path}: {key}")
    bounds = _bounds(data, path)
    if "rewards" not in data:
        say(f"data: {path.name}: no rewards in the file, as in all of OGBench's; every reward counts as 0")
    episodes = [episode for start, stop in bounds if (episode := _episode(data, start, stop, path)) is not None]
    if len(episodes) < len(bounds):
        say(f"data: {path.name}: left out {len(bounds) - len(episodes)} trajectories without a step")
    if not episodes:
        raise DataError(f"{path} holds no trajectory of at least one step")
    names = f"{path}: observations", f"{path.name}: actions"
    return parsed_of_values(path.stem, episodes, *names, say, environment_of(path))


def environment_of(path: Path) -> EnvironmentSpec | None:
    """The environment that an OGBench file is named after, as its loader takes it; None for a name of another form."""
    found = _NAME.fullmatch(path.stem)
    return None if found is None else EnvironmentSpec(f"{found['task']}-{found['version']}")


def _bounds(data: _Arrays, path: Path) -> list[tuple[int, int]]:
    """First row of each trajectory, and the row after its last."""
    marks = data["terminals"] if "valids" not in data else 1 - data["valids"]
    odd = np.flatnonzero((marks != 0) & (marks != 1))
    if len(odd):
        raise DataError(f"{path}: terminals hold {marks[odd[0]]} at row {odd[0]}; expected 0 or 1")
    last = np.flatnonzero(marks)
    if not len(last) or last[-1] != len(marks) - 1:
        raise DataError(f"{path}: its last row is not marked as an end; the file may be cut off: fetch it again")
    return list(zip([0, *(last[:-1] + 1).tolist()], (last + 1).tolist(), strict=True))


def _episode(data: _Arrays, start: int, stop: int, path: Path) -> Episode | None:
    """The trajectory of some rows; None if no action leads anywhere."""
    whole = slice(start, stop)
    if "next_observations" in data:
        final = data["next_observations"][stop - 1 : stop]
        acted, observations = whole, joined(data["observations"][whole], final, f"{path}: next_observations")
    else:
        acted, observations = slice(start, stop - 1), data["observations"][whole]
    actions = data["actions"][acted]
    if not len(actions):
        return None
    rewards = data["rewards"][acted] if "rewards" in data else np.zeros(len(actions), dtype=np.float32)
    for key, values in (("observations", observations), ("actions", actions), ("rewards", rewards)):
        require_finite(values, f"{path}: {key} of the trajectory from row {start}")
    terminated = "masks" in data and not data["masks"][acted][-1]
    return Episode(observations, actions, rewards, bool(terminated), not terminated)
