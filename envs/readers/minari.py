"""Reads Minari datasets."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from minari import MinariDataset
from minari.dataset._storages import get_minari_storage
from minari.dataset.minari_storage import MinariStorage
from minari.storage import get_dataset_path

from aaren_rl.data.converted import Counts, Rows
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.episode import refuse_inexact
from aaren_rl.data.packed import arrays_of, first_of, map_packed
from aaren_rl.data.reference import Reference
from aaren_rl.data.spaces import NUMBERS, Packed, Space, gymnasium_space, space_of, with_vocabularies
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.environments import describe
from aaren_rl.envs.readers import minari_metadata
from aaren_rl.envs.readers.hdf5 import checked, require_memory
from aaren_rl.envs.readers.recording import Recording
from aaren_rl.envs.readers.streamed import Keep, Streamed, in_memory
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


def local_ids() -> list[str]:
    """Ids of the datasets under the local Minari root."""
    root = local_folder("")
    return [str(file.parent.parent.relative_to(root)) for file in root.glob("**/data/metadata.json")]


def read_folder(folder: Path, with_environment: bool = True, keep: Keep = in_memory) -> Recording:
    """Reads a Minari dataset from its folder, which holds `data/`.

    Minari itself would make the environment of data that record no spaces, from an entry point that the data name.
    Here only environments that are registered already are made, by their id.

    Args:
        folder: the dataset's folder.
        with_environment: False leaves out what is recorded of environments, so that it may be whatever it is.
        keep: makes the trajectories.

    Raises:
        DataError: the folder is missing or damaged, or its contents do not fit.
        InvalidInput: its actions or observations are of a space that no model takes.
    """
    metadata = minari_metadata.read(folder)
    where: str = metadata["dataset_id"]
    recorded = [
        minari_metadata.environment(metadata, entry, where) if with_environment else None
        for entry in ("env_spec", "eval_env_spec")
    ]
    reference = minari_metadata.reference(metadata, where) if with_environment else None
    try:
        dataset = MinariDataset(_storage(folder, metadata, where, recorded[0]))
        return _recording(dataset, *recorded, reference=reference, keep=keep)
    except (DataError, InvalidInput):
        raise
    except MemoryError as error:
        raise DataError(f"{folder} does not fit into the memory that is free") from error
    except Exception as error:  # Minari and h5py raise whatever a damaged file makes them stumble over.
        raise DataError(
            f"{folder} cannot be read as a Minari dataset: {error!r}; its files may be cut off or changed: take "
            "it from its source again"
        ) from error


def read_dataset(dataset: MinariDataset, with_environment: bool = True, keep: Keep = in_memory) -> Recording:
    """Reads the episodes that a Minari dataset in memory shows, as `filter_episodes` returns it; as `read_folder`."""
    metadata = minari_metadata.read(Path(dataset.storage.data_path).parent)
    where: str = metadata["dataset_id"]
    recorded = [
        minari_metadata.environment(metadata, entry, where) if with_environment else None
        for entry in ("env_spec", "eval_env_spec")
    ]
    reference = minari_metadata.reference(metadata, where) if with_environment else None
    return _recording(dataset, *recorded, reference=reference, keep=keep)


def _storage(folder: Path, metadata: dict[str, Any], where: str, collected_in: EnvironmentSpec | None) -> MinariStorage:
    observation_space, action_space = (
        minari_metadata.space(metadata, entry, where) for entry in ("observation_space", "action_space")
    )
    if observation_space is None or action_space is None:
        if collected_in is None:
            raise DataError(f"{where} records neither its spaces nor an environment that has them")
        described = describe(collected_in)
        observation_space = observation_space or gymnasium_space(described.observation_space)
        action_space = action_space or gymnasium_space(described.action_space)
    form = metadata["data_format"]
    if form == "hdf5":
        file = folder / "data" / "main_data.hdf5"
        if file.is_symlink():
            raise DataError(f"{file} is a link to {file.readlink()}; expected the data themselves: put the file here")
        checked(file)
    if form != "hdf5" and importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{where} is stored in the format {form}; install pyarrow to read it (pip install pyarrow)")
    kind = get_minari_storage(form)
    # Minari before 0.5.4, the newest for Python 3.10, stores images as they are and has no such argument.
    known = "jpeg_encoding" in inspect.signature(kind.__init__).parameters
    encoding = {"jpeg_encoding": bool(metadata.get("jpeg_encoding", True))} if known else {}
    storage: MinariStorage = kind(folder / "data", observation_space, action_space, **encoding)
    return storage


def _recording(
    dataset: MinariDataset,
    collected_in: EnvironmentSpec | None,
    evaluated_in: EnvironmentSpec | None,
    *,
    reference: Reference | None,
    keep: Keep,
) -> Recording:
    name = dataset.spec.dataset_id
    try:
        observation_space = space_of(dataset.observation_space)
        action_space = space_of(dataset.action_space, image=False)
        # Where there are texts, their words are gathered in a first pass.
        observed = (episode.observations for episode in dataset.iterate_episodes())
        observation_space = with_vocabularies(observation_space, observed)
    except InvalidInput as error:
        raise InvalidInput(f"{name} cannot be learned from: {error}") from error
    streamed = _streamed(dataset, name, observation_space, action_space)
    return Recording(name, keep(streamed), collected_in, evaluated_in, reference)


def _streamed(dataset: MinariDataset, name: str, observation_space: Space, action_space: Space) -> Streamed:
    counts = Counts(int(dataset.total_steps), int(dataset.total_episodes))
    if not counts.steps:
        raise DataError(f"{name} is empty")
    bytes_a_step = _bytes(observation_space) + 4 * (action_space.size + 1)
    size = (counts.steps + counts.episodes) * (bytes_a_step + 4)
    spaces = observation_space, action_space

    def rows() -> Iterator[Rows]:
        return _rows(dataset, name, observation_space, action_space)

    def whole() -> Trajectories:
        require_memory(size, name, "keep the data on disk (--data disk)")
        return _trajectories(rows(), counts, name, *spaces)

    files = tuple(file for file in Path(dataset.storage.data_path).rglob("*") if file.is_file())
    # Of a dataset that was filtered in memory.
    chosen = np.asarray(dataset.episode_indices, np.int64)
    variant = "" if len(chosen) == dataset.storage.total_episodes else hashlib.sha256(chosen.data).hexdigest()
    return Streamed(name, files, variant, counts, size, spaces, rows, whole)


def _rows(dataset: MinariDataset, name: str, observation_space: Space, action_space: Space) -> Iterator[Rows]:
    """The episodes one by one.

    Raises:
        DataError: one does not fit its space, or its arrays do not fit each other.
    """
    for number, episode in enumerate(dataset.iterate_episodes()):
        length = len(episode.rewards)
        try:
            observed = observation_space.pack(episode.observations, batch=1)
            acted = action_space.pack(episode.actions, batch=1)
        except InvalidInput as error:
            raise DataError(f"episode {number} of {name} does not fit the recorded space: {error}") from error
        flags = np.asarray(episode.terminations), np.asarray(episode.truncations)
        lengths = len(first_of(observed)) - 1, len(first_of(acted)), *map(len, flags)
        if length == 0 or set(lengths) != {length} or np.ndim(episode.rewards) != 1:
            raise DataError(
                f"episode {number} of {name} has {lengths[0] + 1} observations, {lengths[1]} actions, {length} rewards "
                f"of {np.ndim(episode.rewards)} dimensions and {lengths[2]} and {lengths[3]} flags; expected T + 1, T, "
                "T, T and T"
            )
        for part in arrays_of(observed).values():
            refuse_inexact(f"observations of episode {number} of {name}", part)
        dtypes = _dtypes(observation_space)
        kept = {key: part.astype(dtypes[key]) for key, part in arrays_of(observed).items()}
        packed = kept if isinstance(observed, dict) else kept[NUMBERS]
        yield Rows(
            map_packed(lambda part: part[:-1], packed),
            np.asarray(acted, np.float32),
            np.asarray(episode.rewards, np.float32),
            [length],
            [flags[0][-1]],
            [flags[1][-1]],
            map_packed(lambda part: part[-1:], packed),
        )


def _trajectories(
    rows: Iterator[Rows], counts: Counts, name: str, observation_space: Space, action_space: Space
) -> Trajectories:
    steps, episodes = counts
    observations, final_observations = (_empty(observation_space, count) for count in (steps, episodes))
    actions = np.empty((steps, *action_space.shape), dtype=np.float32)
    rewards = np.empty(steps, dtype=np.float32)
    offsets = np.zeros(episodes + 1, dtype=np.int64)
    terminated, truncated = np.zeros(episodes, dtype=np.bool_), np.zeros(episodes, dtype=np.bool_)
    for number, part in enumerate(rows):
        here = slice(int(offsets[number]), int(offsets[number]) + part.lengths[0])
        if here.stop > steps:
            raise DataError(f"{name} has more steps than the {steps} of its metadata; fetch it again")
        for key, values in arrays_of(part.observations).items():
            arrays_of(observations)[key][here] = values
            arrays_of(final_observations)[key][number] = arrays_of(part.final_observations)[key][0]
        actions[here], rewards[here] = part.actions, part.rewards
        offsets[number + 1] = here.stop
        terminated[number], truncated[number] = part.terminated[0], part.truncated[0]
    spaces = observation_space, action_space
    return Trajectories(observations, actions, rewards, offsets, terminated, truncated, final_observations, *spaces)


def _empty(space: Space, count: int) -> Packed:
    """Room for as many packed observations."""
    shapes, dtypes = space.packed_shapes(), _dtypes(space)
    if not isinstance(shapes, dict):
        return np.empty((count, *shapes), np.float32)
    return {key: np.empty((count, *shape), dtypes[key]) for key, shape in shapes.items()}


def _dtypes(space: Space) -> dict[str, type[np.uint8 | np.float32]]:
    """Dtypes that the parts of observations are kept in."""
    images = {path: np.uint8 if image.dtype == "uint8" else np.float32 for path, image in space.images().items()}
    return {NUMBERS: np.float32, **images}


def _bytes(space: Space) -> int:
    """Bytes of a packed observation."""
    return sum(part.nbytes for part in arrays_of(_empty(space, 1)).values())
