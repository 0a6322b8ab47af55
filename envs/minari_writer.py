"""Writes Minari datasets, so that a full disk is an error and nothing else."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import h5py
import minari
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME

from aaren_rl.data.bounds import bounds_of
from aaren_rl.data.spaces import Box, gymnasium_space
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.environments import Description
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.errors import DataError
from aaren_rl.folders import replace_file, write_file

Infos: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""What infos say of an episode, by name, (T + 1, ...): after the reset and after each step."""


def write_dataset(
    folder: Path,
    dataset_id: str,
    environment: Description,
    episodes: Sequence[Episode],
    algorithm: str,
    description: str,
    infos: Sequence[Infos] = (),
    evaluation: EnvSpec | None = None,
) -> None:
    """Writes roll-outs in an environment in Minari's HDF5 format.

    Args:
        folder: an empty folder.
        dataset_id: the dataset's name.
        environment: where the episodes are from.
        episodes: with the observation after the last action.
        algorithm: what acted.
        description: of the dataset.
        infos: of each episode, as `write_episodes`.
        evaluation: Gymnasium's record of the environment to evaluate in; None for that of the episodes.

    Raises:
        DataError: the disk has too little space.
        OSError: a file cannot be written.
    """
    space = environment.observation_space
    # Readers take vectors in single precision, so they are stored in it.
    observation_space = gym.spaces.Box(*bounds_of(space)) if isinstance(space, Box) else gymnasium_space(space)
    spaces = observation_space, gymnasium_space(environment.action_space)
    recorded = environment.recorded
    write_episodes(folder, dataset_id, *spaces, episodes, algorithm, description, recorded, infos=infos)
    if evaluation is not None:
        MinariStorage.read(folder / "data").update_metadata({"eval_env_spec": evaluation.to_json()})


def write_episodes(
    folder: Path,
    dataset_id: str,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    episodes: Sequence[Episode],
    algorithm: str,
    description: str,
    environment: EnvSpec | None = None,
    advance: Callable[[int], object] = lambda episodes: None,
    infos: Sequence[Infos] = (),
) -> None:
    """Writes episodes of any space in Minari's HDF5 format, values as they are.

    Parts of a Dict lie in a group by their keys, those of a Tuple as `_index_0` and so on, texts as UTF-8 strings.
    Images are not made JPEG, which would change them: they are compressed without loss, and the metadata say so.

    Args:
        folder: an empty folder.
        dataset_id: the dataset's name.
        observation_space: of the observations.
        action_space: of the actions.
        episodes: with the observation after the last action.
        algorithm: what acted.
        description: of the dataset.
        environment: Gymnasium's record of the environment; None to record none.
        advance: called with a number of episodes done.
        infos: of each episode; empty for none.

    Raises:
        DataError: an episode lacks the observation after its last action, or disk or memory have too little space.
        OSError: a file cannot be written.
    """
    lossless = {"jpeg_encoding": False} if has_images(observation_space) else {}
    if lossless and "jpeg_encoding" not in inspect.signature(MinariStorage.new).parameters:
        raise DataError(
            f"Minari {minari.__version__} keeps images as JPEG alone, which changes them; install minari 0.5.4 (Python "
            "3.11) or newer"
        )
    storage = MinariStorage.new(folder / "data", observation_space, action_space, environment, **lossless)
    image = _hdf5_image(episodes, (observation_space, action_space), advance, infos or [{}] * len(episodes))
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


def has_images(space: gym.Space[Any]) -> bool:
    """True if a part of the space is an array of bytes that Minari may take for an image."""
    if isinstance(space, gym.spaces.Dict):
        return any(map(has_images, space.spaces.values()))
    if isinstance(space, gym.spaces.Tuple):
        return any(map(has_images, space.spaces))
    return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1


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


def _hdf5_image(
    episodes: Sequence[Episode],
    spaces: tuple[gym.Space[Any], gym.Space[Any]],
    advance: Callable[[int], object],
    infos: Sequence[Infos],
) -> bytes:
    """The file of Minari's HDF5 format, made in memory: HDF5 crashes where a disk is full."""
    with h5py.File("main_data.hdf5", "w", driver="core", backing_store=False, track_order=True) as file:
        for number, (episode, said) in enumerate(zip(episodes, infos, strict=True)):
            length = len(episode.rewards)
            group = file.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, length
            _put(group, "observations", episode.observations, spaces[0], length + 1, number)
            _put(group, "actions", episode.actions, spaces[1], length, number)
            for name, values in (
                ("rewards", np.asarray(episode.rewards)),
                ("terminations", _last(length, episode.terminated)),
                ("truncations", _last(length, episode.truncated)),
            ):
                _create(group, name, values)
            inner = group.create_group("infos")
            for name, values in said.items():
                _create(inner, name, values)
            advance(1)
        file.flush()
        image: bytes = file.id.get_file_image()
        return image


def _put(group: h5py.Group, name: str, values: Any, space: gym.Space[Any], length: int, number: int) -> None:
    """Adds values as Minari lays out those of a space.

    Raises:
        DataError: they are not as many as the episode needs.
    """
    if isinstance(space, gym.spaces.Dict):
        inner = group.create_group(name)
        for key, part in space.spaces.items():
            _put(inner, key, values[key], part, length, number)
        return
    if isinstance(space, gym.spaces.Tuple):
        inner = group.create_group(name)
        for place, part in enumerate(space.spaces):
            _put(inner, f"_index_{place}", values[place], part, length, number)
        return
    if len(values) != length:
        raise DataError(
            f"{group.name.lstrip('/')}/{name}: {len(values)} values in episode {number}; Minari keeps {length}, with "
            "the observation after the last action"
        )
    if isinstance(space, gym.spaces.Text):
        group.create_dataset(
            name, data=list(values), dtype=h5py.string_dtype(encoding="utf-8"), chunks=True, maxshape=(None,)
        )
        return
    _create(group, name, np.asarray(values))


def _create(group: h5py.Group, name: str, values: npt.NDArray[Any]) -> None:
    # Minari may append to what is chunked and has no greatest length.
    image = values.dtype == np.uint8 and values.ndim > 2
    compression = {"compression": "gzip", "compression_opts": 1} if image else {}
    group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]), **compression)


def _last(length: int, flag: bool) -> npt.NDArray[np.bool_]:
    flags = np.zeros(length, dtype=np.bool_)
    flags[-1] = flag
    return flags
