"""Reads Minari datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from minari import MinariDataset
from minari.storage import get_dataset_path

from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.environments import EnvironmentSpec
from aaren_rl.envs.flattening import flat_space, flat_values, is_continuous
from aaren_rl.errors import DataError, InvalidInput


def is_local(dataset_id: str) -> bool:
    """True if a dataset is whole under the local Minari root."""
    return (local_folder(dataset_id) / "data" / "metadata.json").is_file()


def local_folder(dataset_id: str) -> Path:
    """The folder of a dataset under the local Minari root, whether it exists or not.

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

    Observations and actions are flattened in Gymnasium's order. The last of an episode's T + 1 observations is its
    final observation.

    Args:
        folder: the dataset's folder.

    Returns:
        The trajectories, the environment recorded with them (None without a record), and the dataset's id.

    Raises:
        DataError: the folder is missing or damaged, or its contents do not fit.
        InvalidInput: its actions are not continuous.
    """
    if not (folder / "data" / "metadata.json").is_file():
        raise DataError(f"{folder} is not a Minari dataset: it has no data/metadata.json")
    try:
        dataset = MinariDataset(folder / "data")
        if not is_continuous(dataset.action_space):
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
    observation_shape = flat_space(dataset.observation_space).shape
    observations = np.empty((steps, *observation_shape), dtype=np.float32)
    final_observations = np.empty((episodes, *observation_shape), dtype=np.float32)
    actions = np.empty((steps, *flat_space(dataset.action_space).shape), dtype=np.float32)
    rewards = np.empty(steps, dtype=np.float32)
    offsets = np.zeros(episodes + 1, dtype=np.int64)
    terminated, truncated = np.zeros(episodes, dtype=np.bool_), np.zeros(episodes, dtype=np.bool_)
    for number, episode in enumerate(dataset.iterate_episodes()):
        length, start = len(episode.rewards), int(offsets[number])
        observed = flat_values(dataset.observation_space, episode.observations)
        acted = flat_values(dataset.action_space, episode.actions)
        if length == 0 or len(observed) != length + 1 or len(acted) != length or start + length > steps:
            raise DataError(
                f"episode {number} of {dataset.spec.dataset_id} has {len(observed)} observations, {len(acted)} actions "
                f"and {length} rewards; expected T + 1, T and T"
            )
        here = slice(start, start + length)
        observations[here], final_observations[number] = observed[:-1], observed[-1]
        actions[here], rewards[here] = acted, episode.rewards
        offsets[number + 1] = here.stop
        terminated[number], truncated[number] = episode.terminations[-1], episode.truncations[-1]
    return Trajectories(observations, actions, rewards, offsets, terminated, truncated, final_observations)


def _environment(dataset: MinariDataset) -> EnvironmentSpec | None:
    spec = dataset.spec.env_spec
    # Only the name and the arguments are taken: a dataset may not say which code to run.
    return None if spec is None else EnvironmentSpec(spec.id, dict(spec.kwargs))
