"""Writes Minari datasets, so that a full disk is an error and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import numpy.typing as npt
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME

from aaren_rl.data.bounds import bounds_of
from aaren_rl.data.spaces import gymnasium_space
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.environments import Description
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.errors import DataError
from aaren_rl.folders import replace_file, write_file


def write_dataset(
    folder: Path,
    dataset_id: str,
    environment: Description,
    episodes: Sequence[Episode],
    algorithm: str,
    description: str,
    infos: Sequence[Mapping[str, npt.NDArray[Any]]] = (),
) -> None:
    """Writes a dataset in Minari's HDF5 format.

    Args:
        folder: an empty folder.
        dataset_id: the dataset's name.
        environment: where the episodes are from.
        episodes: with the observation after the last action.
        algorithm: what acted.
        description: of the dataset.
        infos: of each episode, by name, (T + 1, ...); empty for none.

    Raises:
        DataError: the disk has too little space.
        OSError: a file cannot be written.
    """
    # Readers take observations in single precision, so they are stored in it.
    observation_space = gym.spaces.Box(*bounds_of(environment.observation_space))
    action_space = gymnasium_space(environment.action_space)
    storage = MinariStorage.new(folder / "data", observation_space, action_space, environment.recorded)
    image = _hdf5_image(episodes, infos or [{}] * len(episodes))
    require_space(folder, len(image))
    write_file(folder / "data" / "main_data.hdf5", image)
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "author": {"aaren-rl"},
            "algorithm_name": algorithm,
            "description": description,
            "total_episodes": len(episodes),
            "total_steps": sum(len(episode.rewards) for episode in episodes),
            "dataset_size": storage.get_size(),
        }
    )


def describe_namespaces(dataset_id: str, description: str) -> None:
    """Describes the namespaces above a dataset as Minari does, each file whole or not at all."""
    namespace = Path(dataset_id).parent
    for name in (namespace, *namespace.parents[:-1]):
        path = local_folder(str(name)) / NAMESPACE_METADATA_FILENAME
        if not path.exists():
            replace_file(path, json.dumps({"description": description} if name == namespace else {}))


def require_space(folder: Path, needed: int) -> None:
    """Refuses to write where the disk is too full, before anything is done.

    Raises:
        DataError: it is.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} has {free / 2**20:.1f} MiB of free space, {needed / 2**20:.1f} MiB are needed; free some, "
            "set MINARI_DATASETS_PATH to another disk, or make fewer steps"
        )


def _hdf5_image(episodes: Sequence[Episode], infos: Sequence[Mapping[str, npt.NDArray[Any]]]) -> bytes:
    """The file of Minari's HDF5 format, made in memory: HDF5 crashes where a disk is full."""
    with h5py.File("main_data.hdf5", "w", driver="core", backing_store=False, track_order=True) as file:
        for number, (episode, said) in enumerate(zip(episodes, infos, strict=True)):
            length = len(episode.rewards)
            group = file.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, length
            for name, values in (
                ("observations", episode.observations),
                ("actions", episode.actions),
                ("rewards", episode.rewards),
                ("terminations", _last(length, episode.terminated)),
                ("truncations", _last(length, episode.truncated)),
            ):
                # Minari may append to what is chunked and has no greatest length.
                group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
            group.create_group("infos")
            for name, values in said.items():
                group["infos"].create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
        file.flush()
        image: bytes = file.id.get_file_image()
        return image


def _last(length: int, flag: bool) -> npt.NDArray[np.bool_]:
    flags = np.zeros(length, dtype=np.bool_)
    flags[-1] = flag
    return flags
