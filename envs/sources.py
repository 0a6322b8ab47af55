"""Finds the data that a user names, and says where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import catalogue, collect, d4rl_reader, download, minari_reader
from aaren_rl.envs.catalogue import Entry, Reference
from aaren_rl.envs.download import Unreachable
from aaren_rl.envs.environments import EnvironmentSpec, box, make
from aaren_rl.errors import DataError, InvalidInput, unknown_name

Source = Literal["auto", "minari", "d4rl", "bundled"]


@dataclass(frozen=True)
class Dataset:
    """Data ready to train on.

    Attributes:
        name: as the user named it.
        source: "minari", "d4rl" or "bundled".
        id: Minari id, or name of the file.
        trajectories: the data.
        environment: to act in.
        action_low: least action, (action size,).
        action_high: greatest action, (action size,).
        reference: for normalised scores; None where there is no table.
        target_returns: what to ask of an agent.
        return_scale: what a model divides returns-to-go by; the data's largest return where there is no table.
    """

    name: str
    source: Literal["minari", "d4rl", "bundled"]
    id: str
    trajectories: Trajectories
    environment: EnvironmentSpec
    action_low: np.ndarray
    action_high: np.ndarray
    reference: Reference | None
    target_returns: tuple[float, ...]
    return_scale: float


def load(
    name: str, source: Source = "auto", env_id: str | None = None, say: Callable[[str], object] = print
) -> Dataset:
    """Loads a dataset by name.

    A name of the catalogue is looked for, with source "auto", in this order: the Minari dataset on this machine, the
    D4RL file on this machine, a download (Minari's hub, then D4RL's host), the bundled behaviours. "minari" and
    "d4rl" keep to one kind, on this machine or from the network.

    Args:
        name: a name of the catalogue, a Minari id, or the path of a D4RL HDF5 file or of a Minari dataset's folder.
        source: where to take a name of the catalogue from.
        env_id: the environment to act in, where the data do not say or say it wrong.
        say: called with a line on each thing tried and taken.

    Returns:
        The dataset.

    Raises:
        InvalidInput: nothing goes by this name, or no environment is known for it.
        DataError: the data cannot be had, are damaged, or do not fit their environment.
    """
    path = Path(name).expanduser()
    if source != "auto" and name not in catalogue.catalogue() and (path.exists() or "/" in name):
        raise InvalidInput(f"--source {source} is for names of the catalogue; {name} says itself where it is")
    if name in catalogue.catalogue():
        entry = catalogue.find(name)
        kind, taken = _find(entry, source, say)
        trajectories, recorded, dataset_id = _read(kind, taken)
        known_specs = {spec.id: spec for spec in entry.environments.values()}
        environment = known_specs.get(env_id, EnvironmentSpec(env_id)) if env_id else entry.environments[kind]
    elif path.exists():
        kind = "minari" if path.is_dir() else "d4rl"
        trajectories, recorded, dataset_id = _read(kind, path)
        known = next((e for e in catalogue.catalogue().values() if e.d4rl_file == path.name), None)
        recorded = recorded or (known.environments["d4rl"] if known else None)
        environment = _environment(env_id, recorded, name)
    elif "/" in name and not name.endswith((".hdf5", ".h5")):
        kind = "minari"
        trajectories, recorded, dataset_id = _read(kind, _find_minari(name, say))
        environment = _environment(env_id, recorded, name)
    elif path.suffix:
        raise DataError(f"{path} does not exist; expected a D4RL HDF5 file, a Minari dataset's folder, or a name")
    else:
        raise unknown_name("dataset", name, catalogue.catalogue())
    say(f"data: {dataset_id} (source {kind}), {trajectories.episodes} episodes, {trajectories.steps} steps")
    low, high = _action_bounds(environment, trajectories, dataset_id)
    relative = catalogue.by_environment(environment.id)
    return Dataset(
        name=name,
        source=kind,
        id=dataset_id,
        trajectories=trajectories,
        environment=environment,
        action_low=low,
        action_high=high,
        reference=relative.reference if relative else None,
        target_returns=relative.target_returns if relative else _targets(trajectories),
        return_scale=relative.return_scale if relative else float(np.abs(trajectories.returns).max()) or 1.0,
    )


def _targets(trajectories: Trajectories) -> tuple[float, ...]:
    """What to ask for where the catalogue says nothing: returns of the best episode, of the best tenth, the median."""
    chosen = np.quantile(trajectories.returns, [1.0, 0.9, 0.5])
    return tuple(dict.fromkeys(float(target) for target in chosen))


def _find(
    entry: Entry, source: Source, say: Callable[[str], object]
) -> tuple[Literal["minari", "d4rl", "bundled"], Path]:
    failed: list[str] = []
    if source in ("auto", "minari") and entry.minari_id and minari_reader.is_local(entry.minari_id):
        return "minari", minari_reader.local_folder(entry.minari_id)
    if source in ("auto", "d4rl") and entry.d4rl_file and (download.d4rl_folder() / entry.d4rl_file).is_file():
        return "d4rl", download.d4rl_folder() / entry.d4rl_file
    downloads: list[tuple[Literal["minari", "d4rl"], str | None, Callable[[str], Path]]] = [
        ("minari", entry.minari_id, download.fetch_minari),
        ("d4rl", entry.d4rl_file, download.fetch_d4rl),
    ]
    for kind, file, fetch in downloads:
        if source in ("auto", kind) and file:
            try:
                return kind, fetch(file)
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


def _find_minari(dataset_id: str, say: Callable[[str], object]) -> Path:
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


def _read(kind: str, path: Path) -> tuple[Trajectories, EnvironmentSpec | None, str]:
    if kind == "d4rl":
        return d4rl_reader.read_file(path), None, path.name
    return minari_reader.read_folder(path)


def _environment(env_id: str | None, recorded: EnvironmentSpec | None, name: str) -> EnvironmentSpec:
    if env_id:
        return EnvironmentSpec(env_id)
    if recorded is None:
        raise InvalidInput(f"{name} does not say which environment it is from; pass --env-id, as --env-id Hopper-v4")
    return recorded


def _action_bounds(
    environment: EnvironmentSpec, trajectories: Trajectories, dataset_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """The environment's bounds on actions, or the data's own where it has none.

    Raises:
        DataError: sizes differ, or actions of the data lie outside the environment's bounds.
    """
    env = make(environment)
    space, observation_space = box(env.action_space), env.observation_space
    env.close()
    sizes = (trajectories.observations.shape[1], trajectories.actions.shape[1])
    if (observation_space.shape, space.shape) != ((sizes[0],), (sizes[1],)):
        raise DataError(
            f"{dataset_id} has observations of size {sizes[0]} and actions of size {sizes[1]}; {environment.id} has "
            f"{observation_space.shape} and {space.shape}; pass the environment it is from as --env-id"
        )
    least, greatest = trajectories.actions.min(0), trajectories.actions.max(0)
    low = np.where(np.isfinite(space.low), space.low, least)
    high = np.where(np.isfinite(space.high), space.high, greatest)
    if (least < low - 1e-3).any() or (greatest > high + 1e-3).any():
        raise DataError(
            f"{dataset_id} has actions from {least} to {greatest}, outside the action space {space} of {environment.id}"
        )
    return low.astype(np.float32), np.maximum(high, low + 1e-6).astype(np.float32)
