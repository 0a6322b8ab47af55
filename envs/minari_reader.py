"""Reads Minari datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from minari import MinariDataset
from minari.storage import get_dataset_path

from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.environments import EnvironmentSpec
from aaren_rl.errors import DataError, InvalidInput


def is_local(dataset_id: str) -> bool:
    """Whether a dataset is whole under the local Minari root."""
    return (local_folder(dataset_id) / "data" / "metadata.json").is_file()


def local_folder(dataset_id: str) -> Path:
    """Where a dataset lies, or would lie, under the local Minari root.

    Raises:
        DataError: the root cannot be made.
    """
    try:
        return Path(get_dataset_path(dataset_id))
    except OSError as error:
        raise DataError(
            f"no Minari datasets can be kept here: {error}; set MINARI_DATASETS_PATH to a folder"
        ) from error


def read_folder(folder: Path) -> tuple[Trajectories, EnvironmentSpec | None, str]:
    """Reads a Minari dataset from its folder, which holds `data/`.

    Observations and actions of nested spaces are flattened in Gymnasium's order; of an episode's T + 1 observations
    the last is left out.

    Args:
        folder: of the dataset.

    Returns:
        The trajectories, the environment recorded with them (None if none is), and the dataset's id.

    Raises:
        DataError: the folder is missing or damaged, or its contents do not fit.
        InvalidInput: its actions are not continuous.
    """
    if not (folder / "data" / "metadata.json").is_file():
        raise DataError(f"{folder} is not a Minari dataset: it has no data/metadata.json")
    try:
        dataset = MinariDataset(folder / "data")
        if not _continuous(dataset.action_space):
            raise InvalidInput(
                f"{dataset.spec.dataset_id} has {dataset.action_space} actions; this agent needs continuous ones (Box)"
            )
        return _read(dataset), _environment(dataset), dataset.spec.dataset_id
    except (OSError, KeyError, ValueError, AssertionError) as error:
        if isinstance(error, DataError | InvalidInput):
            raise
        raise DataError(
            f"{folder} cannot be read as a Minari dataset: {error!r}; delete it and fetch it again"
        ) from error


def _read(dataset: MinariDataset) -> Trajectories:
    steps, episodes = dataset.total_steps, dataset.total_episodes
    if not steps:
        raise DataError(f"{dataset.spec.dataset_id} is empty")
    observations = np.empty((steps, gym.spaces.flatdim(dataset.observation_space)), dtype=np.float32)
    actions = np.empty((steps, gym.spaces.flatdim(dataset.action_space)), dtype=np.float32)
    rewards = np.empty(steps, dtype=np.float32)
    offsets = np.zeros(episodes + 1, dtype=np.int64)
    terminated, truncated = np.zeros(episodes, dtype=np.bool_), np.zeros(episodes, dtype=np.bool_)
    for number, episode in enumerate(dataset.iterate_episodes()):
        length, start = len(episode.rewards), int(offsets[number])
        observed = _flat(dataset.observation_space, episode.observations)
        acted = _flat(dataset.action_space, episode.actions)
        if length == 0 or len(observed) != length + 1 or len(acted) != length or start + length > steps:
            raise DataError(
                f"episode {number} of {dataset.spec.dataset_id} has {len(observed)} observations, {len(acted)} actions "
                f"and {length} rewards; expected T + 1, T and T"
            )
        here = slice(start, start + length)
        observations[here], actions[here], rewards[here] = observed[:-1], acted, episode.rewards
        offsets[number + 1] = here.stop
        terminated[number], truncated[number] = episode.terminations[-1], episode.truncations[-1]
    return Trajectories(observations, actions, rewards, offsets, terminated, truncated)


def _environment(dataset: MinariDataset) -> EnvironmentSpec | None:
    spec = dataset.spec.env_spec
    # Only the name and the arguments are taken: a dataset may not say which code is to be run.
    return None if spec is None else EnvironmentSpec(spec.id, dict(spec.kwargs))


def _continuous(space: gym.Space[Any]) -> bool:
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        parts: Sequence[gym.Space[Any]] = list(space.values()) if isinstance(space, gym.spaces.Dict) else space.spaces
        return all(_continuous(part) for part in parts)
    return isinstance(space, gym.spaces.Box)


def _flat(space: gym.Space[Any], values: Any) -> npt.NDArray[Any]:
    """Values of a whole episode, (time, size), as `gymnasium.spaces.flatten` lays out each."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([_flat(part, values[key]) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, gym.spaces.Tuple):
        return np.concatenate([_flat(part, value) for part, value in zip(space.spaces, values, strict=True)], axis=1)
    if not isinstance(space, gym.spaces.Box):
        raise InvalidInput(f"{space} is not made of Boxes; this agent reads continuous observations and actions only")
    array = np.asarray(values)
    return array.reshape(len(array), -1)
