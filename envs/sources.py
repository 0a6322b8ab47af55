"""Finds the data that a user names, and says where they came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from minari import MinariDataset

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import catalogue, collect, download
from aaren_rl.envs.catalogue import Entry, hub
from aaren_rl.envs.dataset import Arrays, Dataset, FoundSource, Reading, Say, assemble
from aaren_rl.envs.download import Unreachable
from aaren_rl.envs.readers import d4rl, minari
from aaren_rl.envs.readers.detect import READERS, format_of
from aaren_rl.envs.readers.minari_metadata import UnusableRecord
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.envs.readers.recording import Recording
from aaren_rl.envs.readers.signatures import READ, is_zip
from aaren_rl.envs.readers.streamed import Keep
from aaren_rl.errors import DataError, InvalidInput, unknown_name

Source: TypeAlias = Literal["auto", "minari", "d4rl", "ogbench", "bundled"]


class Place(NamedTuple):
    """Where data lie.

    Attributes:
        source: where they come from, or their format.
        path: their file or folder.
        environments: that the catalogue knows for them, the likeliest first.
    """

    source: FoundSource
    path: Path
    environments: tuple[EnvironmentSpec, ...]


def load(
    data: str | Path | MinariDataset, source: Source = "auto", reading: Reading | None = None, say: Say = print
) -> Dataset:
    """Loads a dataset.

    With source "auto", a name of the catalogue is looked for on this machine first: the Minari dataset, the D4RL file,
    the OGBench file. Then come a download (Minari's hub, then the files' host) and the bundled behaviours or the
    scripted expert. "minari",
    "d4rl" and "ogbench" look on this machine, then on the network, and take nothing else.

    The environment to act in is, in this order: the user's choice, the one that the data name for evaluation, the one
    that they were collected in, the catalogue's.

    Args:
        data: a name of the catalogue, a Minari id, or the path of a file or folder of a format that is read
            (`aaren_rl.envs.readers.detect`). Or a Minari dataset in memory, also one of `filter_episodes`.
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
        recording = _recorded(lambda use: minari.read_dataset(data, use, _keep(reading, say)), reading, say)
        return assemble(recording.id, "minari", recording, (), reading, say)
    name = str(data)
    found, path, known = locate(name, source, say)
    return assemble(name, found, _read(found, path, reading, say), known, reading, say)


def locate(name: str, source: Source, say: Say) -> Place:
    """The data that a name or a path means.

    Args:
        name: a name of the catalogue, a Minari id, or a path.
        source: where a name of the catalogue is taken from.
        say: called with a line on each source that is tried.

    Raises:
        InvalidInput: nothing has this name.
        DataError: the data cannot be had, or are of no format that is read; the message says what they are.
    """
    path = Path(name).expanduser()
    if name in catalogue.catalogue():
        entry = catalogue.find(name)
        found, path = _find(entry, source, say)
        if found == "d4rl" and entry.needs:
            say(f"data: {entry.needs}")
        # The one of the source comes first; another source's is none of these data.
        own = entry.environments.get(found)
        return Place(found, path, () if own is None else (own, *entry.environments.values()))
    if source != "auto" and (path.exists() or "/" in name):
        raise InvalidInput(f"--source {source} is for names of the catalogue; {name} is a path or a Minari id")
    if path.exists():
        found = cast(FoundSource, format_of(path))
        entries = catalogue.catalogue().values()
        known = next((entry for entry in entries if path.name in (entry.d4rl_file, entry.ogbench_file)), None)
        own = known.environments.get(found) if known else None
        return Place(found, path, () if own is None else (own,))
    if "/" in name and path.suffix not in (".hdf5", ".h5", ".npz"):
        return Place("minari", _find_minari(name, say), ())
    if path.suffix:
        raise DataError(f"{path} does not exist; expected a name of the catalogue, a Minari id, or {READ}")
    raise unknown_name("dataset", name, catalogue.catalogue())


def _find(entry: Entry, source: Source, say: Say) -> tuple[FoundSource, Path]:
    """The data of an entry, from the first source that has them.

    Raises:
        InvalidInput: the entry has nothing of that source.
        DataError: no source gives the data; the message says why.
    """
    if source in ("auto", "minari") and entry.minari_id and minari.is_local(entry.minari_id):
        return "minari", minari.local_folder(entry.minari_id)
    if source in ("auto", "d4rl") and entry.d4rl_file and (download.d4rl_folder() / entry.d4rl_file).is_file():
        return "d4rl", download.d4rl_folder() / entry.d4rl_file
    if source in ("auto", "ogbench") and entry.ogbench_file:
        file = download.ogbench_folder() / entry.ogbench_file
        if file.is_file():
            return "ogbench", file
    failed: list[str] = []
    downloads: list[tuple[FoundSource, str | None, Callable[..., Path]]] = [
        ("minari", entry.minari_id, download.fetch_minari),
        ("d4rl", entry.d4rl_path, download.fetch_d4rl),
        ("ogbench", entry.ogbench_file, download.fetch_ogbench),
    ]
    for host, wanted, fetch in downloads:
        if source in ("auto", host) and wanted:
            try:
                return host, fetch(wanted, say=say)
            except DataError as error:
                failed.append(str(error))
                say(f"data: {error}")
    if source in ("auto", "bundled"):
        if entry.bundled and minari.is_local(entry.bundled_id):
            return "bundled", minari.local_folder(entry.bundled_id)
        if entry.bundled:
            recipe = collect.recipe_of(entry)
            who = "bundled behaviours" if entry.expert is None else "scripted expert"
            line = f"data: rolling out the {who} of {entry.name}, once, for {recipe.amount}"
            return "bundled", collect.collect(recipe, say=say, announce=line)
        failed.append(f"no behaviour is bundled for {entry.name}{_bundled_kin(entry)}")
    if not failed:
        raise InvalidInput(f"{entry.name} does not come from {source}; try --source auto")
    raise DataError(f"no data for {entry.name}: {'; '.join(failed)}")


def _bundled_kin(entry: Entry) -> str:
    """A hint at the name without a version, where behaviours make that; empty where none do."""
    base, _, version = entry.name.rpartition("-")
    kin = catalogue.catalogue().get(base) if version.startswith("v") else None
    return f" (one is for {kin.name}, which is not the same data)" if kin and kin.bundled else ""


def _find_minari(dataset_id: str, say: Say) -> Path:
    if not minari.is_local(dataset_id):
        try:
            download.fetch_minari(dataset_id, say=say)
        except Unreachable as error:
            missing = f"no local dataset of that name in {minari.local_folder('')}, and {error}"
            known = [listed.id for listed in hub.listing()]
            if dataset_id in known:
                raise DataError(f"{missing}; {dataset_id} is on Minari's hub: try again with a network") from error
            raise DataError(
                f"{missing}; {unknown_name('Minari id', dataset_id, known + minari.local_ids())}"
            ) from error
    return minari.local_folder(dataset_id)


def _read(source: FoundSource, path: Path, reading: Reading, say: Say) -> Recording | Arrays:
    keep = _keep(reading, say)
    if source == "d4rl":
        if is_zip(path):
            reading.keeping.refuse_whole(f"{path}, an npz file,", say)
        return Arrays(path.name, d4rl.read_file(path, reading.environment.horizon, say, keep))
    if source in READERS:
        reading.keeping.refuse_whole(f"{path}, of the format {source},", say)
        return recording(READERS[source](path, say), str(path))
    return _recorded(lambda use: minari.read_folder(path, use, keep), reading, say)


def _keep(reading: Reading, say: Say) -> Keep:
    return lambda streamed: reading.keeping.keep(streamed, say)


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
