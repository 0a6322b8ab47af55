"""Finds the data that a user names, and says where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from aaren_rl.data.bounds import action_space_of
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import catalogue, collect, d4rl_reader, download, minari_reader
from aaren_rl.envs.catalogue import Entry, Reference
from aaren_rl.envs.download import Unreachable
from aaren_rl.envs.environments import EnvironmentSpec, describe
from aaren_rl.errors import DataError, InvalidInput, unknown_name

Source: TypeAlias = Literal["auto", "minari", "d4rl", "bundled"]
FoundSource: TypeAlias = Literal["minari", "d4rl", "bundled", "arrays"]
Say: TypeAlias = Callable[[str], object]
"""Takes a line on what is done."""

ARRAYS = "arrays"
"""Name of a dataset of a person's own trajectories."""


@dataclass(frozen=True)
class Dataset:
    """Data ready to train on.

    Attributes:
        name: the name that the user gave.
        source: where the data come from: "minari", "d4rl", "bundled" or "arrays".
        id: Minari id, name of the file, or "arrays".
        trajectories: the data.
        environment: the environment to act in; None for arrays without one.
        observation_space: space of the environment's observations.
        action_space: space of the agent's actions, inside the environment's (`aaren_rl.data.bounds.action_space_of`).
        reference: returns for normalised scores; None where the catalogue has none.
        target_returns: returns to ask an agent for.
        return_scale: number that a model divides returns-to-go by; without a catalogue entry, the data's largest
            return.
    """

    name: str
    source: FoundSource
    id: str
    trajectories: Trajectories
    environment: EnvironmentSpec | None
    observation_space: Box
    action_space: Box
    reference: Reference | None
    target_returns: tuple[float, ...]
    return_scale: float


class _Place(NamedTuple):
    """A file or folder of data, and its environment where something other than the data determines it."""

    source: FoundSource
    path: Path
    environment: EnvironmentSpec | None


def load(name: str, source: Source = "auto", env_id: str | None = None, say: Say = print) -> Dataset:
    """Loads a dataset by name.

    With source "auto", a name of the catalogue is looked for in this order: the Minari dataset on this machine, the
    D4RL file on this machine, a download (Minari's hub, then D4RL's host), the bundled behaviours. "minari" and "d4rl"
    look on this machine, then on the network, and take nothing else.

    Args:
        name: a name of the catalogue, a Minari id, or the path of a D4RL HDF5 file or of a Minari dataset's folder.
        source: where a name of the catalogue is taken from.
        env_id: the environment to act in, where the data name none or a wrong one.
        say: called with a line on each source that is tried or taken.

    Returns:
        The dataset.

    Raises:
        InvalidInput: nothing has this name, or no environment is known for it.
        DataError: the data cannot be had, are damaged, or do not fit their environment.
    """
    source_taken, path, environment = _locate(name, source, env_id, say)
    trajectories, recorded, dataset_id = _read(source_taken, path)
    environment = environment or recorded
    if environment is None:
        raise InvalidInput(f"{name} does not say which environment it is from; pass --env-id, as --env-id Hopper-v4")
    say(f"data: {dataset_id} (source {source_taken}), {trajectories.episodes} episodes, {trajectories.steps} steps")
    return _dataset(name, source_taken, dataset_id, trajectories, environment)


def of_trajectories(trajectories: Trajectories, environment: EnvironmentSpec | None = None) -> Dataset:
    """A dataset of a person's own trajectories.

    Args:
        trajectories: the data.
        environment: the environment to act in; None for none. Without one the data's least and greatest actions are the
            bounds of the action space.

    Raises:
        InvalidInput: the environment is unknown or cannot be made.
        DataError: the data do not fit the environment.
    """
    return _dataset(ARRAYS, "arrays", ARRAYS, trajectories, environment)


def _dataset(
    name: str,
    source: FoundSource,
    dataset_id: str,
    trajectories: Trajectories,
    environment: EnvironmentSpec | None,
) -> Dataset:
    if environment is None:
        spaces, entry = _spaces_of_data(trajectories), None
    else:
        spaces = _spaces(environment, trajectories, dataset_id)
        entry = catalogue.by_environment(environment.id)
    return Dataset(
        name=name,
        source=source,
        id=dataset_id,
        trajectories=trajectories,
        environment=environment,
        observation_space=spaces[0],
        action_space=spaces[1],
        reference=entry.reference if entry else None,
        target_returns=entry.target_returns if entry else _targets(trajectories),
        return_scale=entry.return_scale if entry else float(np.abs(trajectories.returns).max()) or 1.0,
    )


def _locate(name: str, source: Source, env_id: str | None, say: Say) -> _Place:
    path = Path(name).expanduser()
    given = EnvironmentSpec(env_id) if env_id else None
    if name in catalogue.catalogue():
        entry = catalogue.find(name)
        found, path = _find(entry, source, say)
        specs = {spec.id: spec for spec in entry.environments.values()}
        return _Place(found, path, specs.get(env_id, given) if env_id else entry.environments[found])
    if source != "auto" and (path.exists() or "/" in name):
        raise InvalidInput(f"--source {source} is for names of the catalogue; {name} is a path or a Minari id")
    if path.is_dir():
        return _Place("minari", path, given)
    if path.exists():
        known = next((entry for entry in catalogue.catalogue().values() if entry.d4rl_file == path.name), None)
        return _Place("d4rl", path, given or (known.environments["d4rl"] if known else None))
    if "/" in name and not name.endswith((".hdf5", ".h5")):
        return _Place("minari", _find_minari(name, say), given)
    if path.suffix:
        raise DataError(f"{path} does not exist; expected a D4RL HDF5 file, a Minari dataset's folder, or a name")
    raise unknown_name("dataset", name, catalogue.catalogue())


def _targets(trajectories: Trajectories) -> tuple[float, ...]:
    """Targets where the catalogue has none: returns of the best episode, of the best tenth, the median."""
    chosen = np.quantile(trajectories.returns, [1.0, 0.9, 0.5])
    return tuple(dict.fromkeys(float(target) for target in chosen))


def _find(entry: Entry, source: Source, say: Say) -> tuple[FoundSource, Path]:
    """The data of an entry, from the first source that has them.

    Raises:
        InvalidInput: the entry has nothing of that source.
        DataError: no source gives the data; the message says why.
    """
    if source in ("auto", "minari") and entry.minari_id and minari_reader.is_local(entry.minari_id):
        return "minari", minari_reader.local_folder(entry.minari_id)
    if source in ("auto", "d4rl") and entry.d4rl_file and (download.d4rl_folder() / entry.d4rl_file).is_file():
        return "d4rl", download.d4rl_folder() / entry.d4rl_file
    failed: list[str] = []
    downloads: list[tuple[FoundSource, str | None, Callable[[str], Path]]] = [
        ("minari", entry.minari_id, download.fetch_minari),
        ("d4rl", entry.d4rl_file, download.fetch_d4rl),
    ]
    for host, wanted, fetch in downloads:
        if source in ("auto", host) and wanted:
            try:
                return host, fetch(wanted)
            except DataError as error:
                failed.append(str(error))
                say(f"data: {error}")
    if source in ("auto", "bundled"):
        if minari_reader.is_local(entry.bundled_id):
            return "bundled", minari_reader.local_folder(entry.bundled_id)
        if entry.bundled:
            say(f"data: rolling out the bundled behaviours of {entry.name}, once, for {collect.STEPS} steps")
            return "bundled", collect.collect(entry)
        failed.append(f"no behaviour is bundled for {entry.name}")
    if not failed:
        raise InvalidInput(f"{entry.name} does not come from {source}; try --source auto")
    raise DataError(f"no data for {entry.name}: {'; '.join(failed)}")


def _find_minari(dataset_id: str, say: Say) -> Path:
    if not minari_reader.is_local(dataset_id):
        try:
            download.fetch_minari(dataset_id)
        except Unreachable as error:
            known = [e.minari_id for e in catalogue.catalogue().values() if e.minari_id]
            raise DataError(
                f"no local dataset of that name in {minari_reader.local_folder('')}, and {error}; "
                f"{unknown_name('Minari id', dataset_id, known)}"
            ) from error
    return minari_reader.local_folder(dataset_id)


def _read(source: FoundSource, path: Path) -> tuple[Trajectories, EnvironmentSpec | None, str]:
    if source == "d4rl":
        return d4rl_reader.read_file(path), None, path.name
    return minari_reader.read_folder(path)


def _spaces(environment: EnvironmentSpec, trajectories: Trajectories, dataset_id: str) -> tuple[Box, Box]:
    """Observation space and action space of an environment, with the data's bounds on actions where it sets none.

    Raises:
        DataError: shapes differ, or actions of the data lie outside the environment's bounds.
    """
    described = describe(environment)
    observation_space, action_space = described.observation_space, described.action_space
    shapes = trajectories.observations.shape[1:], trajectories.actions.shape[1:]
    if (observation_space.shape, action_space.shape) != shapes:
        raise DataError(
            f"{dataset_id} has observations of shape {shapes[0]} and actions of shape {shapes[1]}; {environment.id} "
            f"has {observation_space.shape} and {action_space.shape}; pass the environment it is from as --env-id"
        )
    low, high = action_space.bounds()
    least, greatest = trajectories.actions.min(0), trajectories.actions.max(0)
    if (least < low - 1e-3).any() or (greatest > high + 1e-3).any():
        raise DataError(
            f"{dataset_id} has actions from {least} to {greatest}, outside the action space of {environment.id}, from "
            f"{low} to {high}"
        )
    return observation_space, action_space_of(trajectories.actions, action_space)


def _spaces_of_data(trajectories: Trajectories) -> tuple[Box, Box]:
    """Observation space and action space of data without an environment."""
    return Box.unbounded(trajectories.observations.shape[1:]), action_space_of(trajectories.actions, None)
