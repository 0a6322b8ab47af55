"""Reads d3rlpy's data: HDF5 files that `ReplayBuffer.dump` and, in its first version, `MDPDataset.dump` write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers.hdf5 import bytes_of, open_checked, require_memory
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    Values,
    numbers,
    parsed_of_values,
    require_finite,
    require_steps,
)
from aaren_rl.errors import DataError

COLUMNS = ("observations", "actions", "rewards", "terminated")
FIRST_VERSION = ("observations", "actions", "rewards", "terminals", "discrete_action")
"""Keys that tell a file of d3rlpy 1."""


def parse(path: Path, say: Say) -> Parsed:
    """The episodes of a file of d3rlpy's.

    Version 2 keeps each episode's arrays under their name and number, as "actions_0", and observations in parts as
    "observations_0_0" and so on, which become a Tuple. An episode that is not terminated was cut off. Version 1 keeps
    one array of all steps: an episode ends where "episode_terminals" is 1, or where "terminals" is 1 if that key is
    missing. Neither has final observations. Choices stored as a column of whole numbers are a Discrete.

    Args:
        path: the file.
        say: called with a line on what is chosen or left out.

    Raises:
        DataError: the file is damaged, keys are missing, lengths differ, or values are not finite.
    """
    with open_checked(path) as file:
        try:
            require_memory(2 * bytes_of(file), path.name)
            episodes = _episodes(file, path) if "columns" in file else _episodes_of_first_version(file, path, say)
        except (OSError, RuntimeError, KeyError, UnicodeError) as error:
            raise DataError(f"{path} cannot be read: {error}; it may be damaged: fetch it again") from error
    return parsed_of_values(path.stem, episodes, f"{path}: observations", f"{path.name}: actions", say)


def _episodes(file: h5py.File, path: Path) -> list[Episode]:
    columns = [
        name.decode() if isinstance(name, bytes) else str(name) for name in np.ravel(_values(file, "columns", path))
    ]
    if missing := [name for name in COLUMNS if name not in columns]:
        raise DataError(f"{path} lacks the columns {missing}; it has {sorted(columns)}")
    count = int(numbers(_values(file, "num_episodes", path), f"{path}: num_episodes"))
    if count < 1:
        raise DataError(f"{path} holds {count} episodes; expected at least one")
    return [_episode(file, number, path) for number in range(count)]


def _episode(file: h5py.File, number: int, path: Path) -> Episode:
    actions = _array(file, f"actions_{number}", path)
    if not actions.ndim or not len(actions):
        raise DataError(f"{path}: actions_{number} has no step")
    rewards = _array(file, f"rewards_{number}", path).reshape(-1)
    require_steps(rewards, len(actions), f"{path}: rewards_{number}")
    if f"observations_{number}" in file:
        observations: Values = _observed(file, f"observations_{number}", len(actions), path)
    else:
        keys: list[str] = []
        while (key := f"observations_{number}_{len(keys)}") in file:
            keys.append(key)
        if not keys:
            raise DataError(f"{path} lacks observations_{number}, of one of its episodes; it may be cut off")
        observations = tuple(_observed(file, key, len(actions), path) for key in keys)
    terminated = bool(numbers(_values(file, f"terminated_{number}", path), f"{path}: terminated_{number}"))
    return Episode(observations, actions, rewards, terminated, not terminated)


def _episodes_of_first_version(file: h5py.File, path: Path, say: Say) -> list[Episode]:
    if missing := [key for key in FIRST_VERSION if key not in file]:
        raise DataError(f"{path} lacks {missing}; expected d3rlpy's keys, it has {sorted(map(str, file))}")
    actions = _array(file, "actions", path)
    steps = len(actions)
    observations = _observed(file, "observations", steps, path)
    rewards, terminals, ends = (
        _array(file, key, path).reshape(-1)
        for key in ("rewards", "terminals", "episode_terminals" if "episode_terminals" in file else "terminals")
    )
    for key, values in (("rewards", rewards), ("terminals", terminals), ("episode_terminals", ends)):
        require_steps(values, steps, f"{path}: {key}")
    last = np.flatnonzero(ends.astype(np.bool_) | terminals.astype(np.bool_))
    if not len(last):
        raise DataError(f"{path} holds no whole episode: none of its {steps} steps is marked as an end")
    if last[-1] < steps - 1:
        say(f"data: {path.name}: left out the last {steps - 1 - last[-1]} steps, which belong to no whole episode")
    found = []
    for start, stop in zip([0, *(last[:-1] + 1)], last + 1, strict=True):
        here, terminated = slice(int(start), int(stop)), bool(terminals[stop - 1])
        found.append(Episode(observations[here], actions[here], rewards[here], terminated, not terminated))
    return found


def _observed(file: h5py.File, key: str, steps: int, path: Path) -> npt.NDArray[Any]:
    values = _array(file, key, path)
    require_steps(values, steps, f"{path}: {key}")
    return values


def _array(file: h5py.File, key: str, path: Path) -> npt.NDArray[Any]:
    values = numbers(np.asarray(_values(file, key, path)), f"{path}: {key}")
    require_finite(values, f"{path}: {key}")
    return values


def _values(file: h5py.File, key: str, path: Path) -> Any:
    if not isinstance(file.get(key), h5py.Dataset):
        raise DataError(f"{path} lacks {key!r}; expected d3rlpy's keys; it may be cut off")
    return file[key][()]
