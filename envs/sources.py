"""Finds the data that a user names, and says where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from minari import MinariDataset

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.oddities import describe_oddities
from aaren_rl.data.spaces import Box, Space
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import catalogue, collect, d4rl_reader, download, minari_reader
from aaren_rl.envs.catalogue import Entry, Reference
from aaren_rl.envs.download import Unreachable
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.environments import is_special
from aaren_rl.envs.fitting import Fitted, Recorded, fit_to_data, fit_to_environment
from aaren_rl.envs.minari_metadata import UnusableRecord
from aaren_rl.envs.minari_reader import Recording
from aaren_rl.errors import DataError, InvalidInput, unknown_name
from aaren_rl.model.scaling import largest

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
        environment: the environment to act in; None for none.
        collected_in: the environment that the data are from, where they say so and another one is acted in.
        observation_space: of the model's observations, which are flat where the environment's are nested.
        raw_observation_space: of the environment's observations.
        action_space: that actions are scaled by, inside the environment's.
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
    collected_in: EnvironmentSpec | None
    observation_space: Box
    raw_observation_space: Space
    action_space: Box
    reference: Reference | None
    target_returns: tuple[float, ...]
    return_scale: float


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Attributes:
        environment: what the user says of the environment to act in.
        clip_actions: clip actions that lie outside the environment's bounds; True for "its environment clips them too".
        keep_best: share of the episodes with the highest returns to keep, above 0 and up to 1.
        least_return: least return of the episodes to keep; None for any.

    Raises:
        InvalidInput: the share is out of range.
    """

    environment: EnvironmentChoice = field(default_factory=EnvironmentChoice)
    clip_actions: bool = False
    keep_best: float = 1.0
    least_return: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep_best <= 1:
            raise InvalidInput(f"keep_best is {self.keep_best}; expected a share above 0, up to 1")


class _Place(NamedTuple):
    """A file or folder of data, and the environments that the catalogue knows for them, the likeliest first."""

    source: FoundSource
    path: Path
    environments: tuple[EnvironmentSpec, ...]


def load(
    data: str | Path | MinariDataset, source: Source = "auto", reading: Reading | None = None, say: Say = print
) -> Dataset:
    """Loads a dataset.

    With source "auto", a name of the catalogue is looked for in this order: the Minari dataset on this machine, the
    D4RL file on this machine, a download (Minari's hub, then D4RL's host), the bundled behaviours. "minari" and "d4rl"
    look on this machine, then on the network, and take nothing else.

    The environment to act in is, in this order: the user's choice, the one that the data name for evaluation, the one
    that they were collected in, the catalogue's.

    Args:
        data: a name of the catalogue, a Minari id, the path of a D4RL HDF5 file or of a Minari dataset's folder, or a
            Minari dataset in memory, all of it or the part that `filter_episodes` left.
        source: where a name of the catalogue is taken from.
        reading: how the data are read; None for the defaults.
        say: called with a line on each source that is tried or taken, and on all that is changed or left out.

    Returns:
        The dataset.

    Raises:
        InvalidInput: nothing has this name, or no environment is known for it.
        DataError: the data cannot be had, are damaged, or do not fit their environment.
    """
    reading = reading or Reading()
    if isinstance(data, MinariDataset):
        recording = _recorded(lambda use: minari_reader.read_dataset(data, use), reading, say)
        return _dataset(recording.id, "minari", recording, (), reading, say)
    name = str(data)
    found, path, known = _locate(name, source, say)
    return _dataset(name, found, _read(found, path, reading, say), known, reading, say)


def of_trajectories(
    trajectories: Trajectories,
    environment: EnvironmentSpec | None = None,
    reading: Reading | None = None,
    say: Say = lambda line: None,
) -> Dataset:
    """A dataset of a person's own trajectories.

    Args:
        trajectories: the data.
        environment: the environment to act in; None for none. Without one the data's least and greatest actions are the
            bounds of the action space.
        reading: how the data are taken; None for the defaults.
        say: as for `load`.

    Raises:
        InvalidInput: the environment is unknown or cannot be made.
        DataError: the data do not fit the environment.
    """
    known = () if environment is None else (environment,)
    return _dataset(ARRAYS, "arrays", _Arrays(ARRAYS, trajectories), known, reading or Reading(), say)


@dataclass(frozen=True)
class _Arrays:
    """Trajectories that record no spaces and no environment; otherwise as `Recording`."""

    id: str
    trajectories: Trajectories
    observation_space: None = None
    action_space: None = None
    collected_in: None = None
    evaluated_in: None = None


def _dataset(
    name: str,
    source: FoundSource,
    read: Recording | _Arrays,
    known: tuple[EnvironmentSpec, ...],
    reading: Reading,
    say: Say,
) -> Dataset:
    say(f"data: {read.id} (source {source}), {read.trajectories.episodes} episodes, {read.trajectories.steps} steps")
    environment = _environment(name, source, read, known, reading, say)
    trajectories = _kept(read.trajectories, reading, say)
    recorded = read.observation_space, read.action_space
    if environment is None:
        fitted = fit_to_data(trajectories, *recorded)
    else:
        data = Recorded(read.id, trajectories, *recorded)
        fitted = fit_to_environment(data, environment, reading.environment.names_one, reading.clip_actions, say)
    dataset = _described(name, source, read, environment, fitted)
    for line in describe_oddities(dataset.trajectories, dataset.return_scale):
        say(f"data: {line}")
    return dataset


def _described(
    name: str, source: FoundSource, read: Recording | _Arrays, environment: EnvironmentSpec | None, fitted: Fitted
) -> Dataset:
    entry = None if environment is None else catalogue.by_environment(environment)
    trajectories = fitted.trajectories
    return Dataset(
        name=name,
        source=source,
        id=read.id,
        trajectories=trajectories,
        environment=environment,
        collected_in=read.collected_in if read.collected_in != environment else None,
        observation_space=fitted.observation_space,
        raw_observation_space=fitted.raw_observation_space,
        action_space=fitted.action_space,
        reference=entry.reference if entry else None,
        target_returns=entry.target_returns if entry else _targets(trajectories),
        return_scale=entry.return_scale if entry else largest(trajectories.returns),
    )


def _environment(
    name: str,
    source: FoundSource,
    read: Recording | _Arrays,
    known: tuple[EnvironmentSpec, ...],
    reading: Reading,
    say: Say,
) -> EnvironmentSpec | None:
    """The environment to act in, and a line on why it is that one."""
    choice = reading.environment
    recorded = read.evaluated_in or read.collected_in
    named = [spec for spec in (read.evaluated_in, read.collected_in, *known) if spec is not None]
    # Where the user names one of them, its arguments, limit and wrappers come with it.
    named.sort(key=lambda spec: choice.id is None or spec.registered_id != choice.id.rpartition(":")[2])
    spec = choice.over(named[0] if named else None)
    if spec is None:
        why = "as asked" if choice.is_none else "the data name none; name one with --env-id, as --env-id Hopper-v4"
        say(f"environment: none ({why}); the agent is trained and saved, and not rolled out")
        return None
    why = ""
    if spec == read.evaluated_in and read.evaluated_in != read.collected_in:
        why = f", which the data name for evaluation (collected in {read.collected_in})"
    elif recorded is not None and spec != recorded:
        why = f" (the data record {recorded})"
    if why or is_special(spec):
        say(f"environment: {spec}{why}")
    return spec


def _kept(trajectories: Trajectories, reading: Reading, say: Say) -> Trajectories:
    """The episodes that are to be learned from."""
    returns = trajectories.returns
    keep = np.ones(len(returns), dtype=np.bool_)
    if reading.least_return is not None:
        keep = returns >= reading.least_return
    if reading.keep_best < 1:
        count = max(1, round(reading.keep_best * len(returns)))
        keep &= returns >= np.sort(returns)[-count]
    if keep.all():
        return trajectories
    if not keep.any():
        raise InvalidInput(f"no episode has a return of {reading.least_return}; the best has {returns.max():.6g}")
    say(
        f"data: kept {keep.sum()} of {len(keep)} episodes, with returns from {returns[keep].min():.6g} to "
        f"{returns[keep].max():.6g}"
    )
    return trajectories.select(np.flatnonzero(keep))


def _locate(name: str, source: Source, say: Say) -> _Place:
    path = Path(name).expanduser()
    if name in catalogue.catalogue():
        entry = catalogue.find(name)
        found, path = _find(entry, source, say)
        # The one of the source comes first.
        return _Place(found, path, (entry.environments[found], *entry.environments.values()))
    if source != "auto" and (path.exists() or "/" in name):
        raise InvalidInput(f"--source {source} is for names of the catalogue; {name} is a path or a Minari id")
    if path.is_dir():
        return _Place("minari", path, ())
    if path.exists():
        known = next((entry for entry in catalogue.catalogue().values() if entry.d4rl_file == path.name), None)
        return _Place("d4rl", path, (known.environments["d4rl"],) if known else ())
    if "/" in name and not name.endswith((".hdf5", ".h5")):
        return _Place("minari", _find_minari(name, say), ())
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
    downloads: list[tuple[FoundSource, str | None, Callable[..., Path]]] = [
        ("minari", entry.minari_id, download.fetch_minari),
        ("d4rl", entry.d4rl_file, download.fetch_d4rl),
    ]
    for host, wanted, fetch in downloads:
        if source in ("auto", host) and wanted:
            try:
                return host, fetch(wanted, say=say)
            except DataError as error:
                failed.append(str(error))
                say(f"data: {error}")
    if source in ("auto", "bundled"):
        if minari_reader.is_local(entry.bundled_id):
            return "bundled", minari_reader.local_folder(entry.bundled_id)
        if entry.bundled:
            say(f"data: rolling out the bundled behaviours of {entry.name}, once, for {collect.STEPS} steps")
            return "bundled", collect.collect(entry, say=say)
        failed.append(f"no behaviour is bundled for {entry.name}")
    if not failed:
        raise InvalidInput(f"{entry.name} does not come from {source}; try --source auto")
    raise DataError(f"no data for {entry.name}: {'; '.join(failed)}")


def _find_minari(dataset_id: str, say: Say) -> Path:
    if not minari_reader.is_local(dataset_id):
        try:
            download.fetch_minari(dataset_id, say=say)
        except Unreachable as error:
            known = [e.minari_id for e in catalogue.catalogue().values() if e.minari_id]
            raise DataError(
                f"no local dataset of that name in {minari_reader.local_folder('')}, and {error}; "
                f"{unknown_name('Minari id', dataset_id, known)}"
            ) from error
    return minari_reader.local_folder(dataset_id)


def _read(source: FoundSource, path: Path, reading: Reading, say: Say) -> Recording | _Arrays:
    if source == "d4rl":
        horizon = reading.environment.horizon
        return _Arrays(path.name, d4rl_reader.read_file(path, horizon, say))
    return _recorded(lambda use: minari_reader.read_folder(path, use), reading, say)


def _recorded(read: Callable[[bool], Recording], reading: Reading, say: Say) -> Recording:
    """Reads a Minari dataset, without its record of the environment where that is of no use and of no need.

    Args:
        read: takes whether to use the record.
        reading: how the data are read.
        say: called with a line where the record is left out.
    """
    choice = reading.environment
    if choice.is_none:
        return read(False)
    try:
        return read(True)
    except UnusableRecord as error:
        if not choice.names_one:
            raise
        say(f"warning: {error}; acting in {choice.id}, as asked")
        return read(False)
