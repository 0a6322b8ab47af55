"""Trajectories in a folder: an .npy file for each array, which is mapped and not read, and a JSON file about them."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aaren_rl.data.packed import arrays_of
from aaren_rl.data.spaces import NUMBERS, Packed, Space, space_from_json
from aaren_rl.data.storage import CannotWrite, Storage
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import DataError

ABOUT = "trajectories.json"
VERSION = 1

OBSERVATIONS, ACTIONS, REWARDS, FINAL = "observations", "actions", "rewards", "final_observations"
EPISODES = ("offsets", "terminated", "truncated")
"""Arrays of the size of the episodes."""


class Rows(NamedTuple):
    """Steps that follow one another, and the episodes that end within them, in the data's order.

    Attributes:
        observations: packed, float32 or uint8.
        actions: packed, float32.
        rewards: (steps,) float32.
        lengths: steps of each episode that ends here, which may have begun before.
        terminated: of these episodes.
        truncated: likewise.
        final_observations: likewise; None where the data have none.
    """

    observations: Packed
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    lengths: Sequence[int]
    terminated: Sequence[bool]
    truncated: Sequence[bool]
    final_observations: Packed | None


class Counts(NamedTuple):
    """Size of data.

    Attributes:
        steps: of all episodes.
        episodes: of the data.
    """

    steps: int
    episodes: int


def write(
    folder: Path,
    rows: Iterable[Rows],
    counts: Counts,
    spaces: tuple[Space | None, Space | None],
    made_from: Mapping[str, Any],
) -> None:
    """Writes trajectories into an empty folder, in the memory that the rows take.

    Args:
        folder: to write into.
        rows: of all steps.
        counts: of steps and episodes, which the rows hold.
        spaces: of observations and actions; None for numbers.
        made_from: what the data are a copy of, for `made_from`.

    Raises:
        DataError: there are more or fewer rows, or they are no trajectories (see `Trajectories`).
        OSError: the disk is full, for instance.
    """
    lengths: list[int] = []
    flags: dict[str, list[bool]] = {"terminated": [], "truncated": []}
    with ExitStack() as stack:
        files: dict[tuple[str, str], _Growing] = {}
        for part in rows:
            named = {OBSERVATIONS: part.observations, ACTIONS: part.actions, REWARDS: part.rewards}
            named |= {} if part.final_observations is None else {FINAL: part.final_observations}
            for name, values in named.items():
                for key, array in arrays_of(values).items():
                    if (name, key) not in files:
                        path = folder / f"{name}-{len(files)}.npy"
                        count = counts.episodes if name == FINAL else counts.steps
                        files[name, key] = _Growing(stack.enter_context(path.open("wb")), path, count, array)
                    files[name, key].add(array)
            lengths += map(int, part.lengths)
            flags["terminated"] += map(bool, part.terminated)
            flags["truncated"] += map(bool, part.truncated)
        for file in files.values():
            file.check()
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    for name, ended in flags.items():
        np.save(folder / f"{name}.npy", np.array(ended, np.bool_))
    listed: list[dict[str, Any]] = [
        {"array": name, "part": key, "file": file.path.name} for (name, key), file in files.items()
    ]
    listed += [{"array": name, "part": NUMBERS, "file": f"{name}.npy"} for name in EPISODES]
    for entry in listed:
        entry["bytes"] = (folder / entry["file"]).stat().st_size
    said = [None if space is None else space.to_json() for space in spaces]
    about = {"version": VERSION, "made_from": dict(made_from), "spaces": said, "parts": _parts(files), "files": listed}
    # What is no trajectories leaves no folder that looks like some.
    about["sha256"] = _mapped(folder, about, Storage(folder)).sha256
    (folder / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")


def open_folder(folder: Path, derived: Path | None = None) -> Trajectories:
    """The trajectories of a folder; their arrays are mapped from its files.

    All values are read once, by blocks: what was changed since they were written is found.

    Args:
        folder: as `write` left it.
        derived: folder for arrays that are made of the data; None for the same folder.

    Raises:
        DataError: it is not whole, or was changed since it was written, or the folder for arrays cannot be written.
    """
    about = read_about(folder)
    try:
        sizes = {str(entry["file"]): entry["bytes"] for entry in about["files"]}
        for name, expected in sizes.items():
            if (size := (folder / name).stat().st_size) != expected:
                raise DataError(f"{name} has {size} bytes in place of {expected}")
        found, sha256 = _mapped(folder, about, Storage(derived or folder)), about["sha256"]
    except CannotWrite:
        raise
    except FileNotFoundError as error:
        raise _damaged(folder, f"{Path(error.filename).name} is missing") from error
    except DataError as error:
        raise _damaged(folder, str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, f"it cannot be read: {error!r}") from error
    except OSError as error:
        limited = (
            ": the address space of this process is limited (ulimit -v), and mapped files count; raise that limit, and "
            "limit memory by a cgroup"
        )
        raise DataError(f"{folder} cannot be read: {error}{limited if error.errno == errno.ENOMEM else ''}") from error
    if found.sha256 != sha256:
        raise _damaged(folder, "its values were changed since they were written (the SHA-256 differs)")
    return found


def read_about(folder: Path) -> dict[str, Any]:
    """What the JSON file of a folder says; under "made_from" what it is a copy of.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
    except FileNotFoundError as error:
        raise _damaged(folder, f"it has no {ABOUT}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{ABOUT} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise _damaged(folder, f"{ABOUT} is not of version {VERSION}")
    return about


class _Growing:
    """An .npy file of a known number of rows, which come one after another."""

    def __init__(self, file: IO[bytes], path: Path, rows: int, like: npt.NDArray[Any]) -> None:
        self.path, self._file, self._rows, self._written = path, file, rows, 0
        self._shape, self._dtype = like.shape[1:], like.dtype
        header = {"descr": like.dtype.str, "fortran_order": False, "shape": (rows, *like.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)

    def add(self, rows: npt.NDArray[Any]) -> None:
        assert (rows.shape[1:], rows.dtype) == (self._shape, self._dtype), "rows are packed alike"
        self._written += len(rows)
        if math.prod(rows.shape):
            self._file.write(np.ascontiguousarray(rows).data.cast("B"))

    def check(self) -> None:
        if self._written != self._rows:
            raise DataError(
                f"the data hold {self._written} rows of {self.path.stem}; they say {self._rows}: the source may be cut "
                "off or damaged, fetch it again"
            )


def _parts(files: Iterable[tuple[str, str]]) -> list[str]:
    """The parts of observations that have several, in their order; none for an array of numbers alone."""
    keys = [key for name, key in files if name == OBSERVATIONS]
    return [] if keys == [NUMBERS] else keys


def _mapped(folder: Path, about: Mapping[str, Any], storage: Storage) -> Trajectories:
    arrays: dict[str, dict[str, Any]] = {}
    for entry in about["files"]:
        # Of a folder from elsewhere no other file is opened.
        path = folder / Path(str(entry["file"])).name
        arrays.setdefault(entry["array"], {})[entry["part"]] = np.load(path, mmap_mode="r", allow_pickle=False)

    def packed(name: str) -> Any:
        return {key: arrays[name][key] for key in about["parts"]} if about["parts"] else arrays[name][NUMBERS]

    spaces = [None if space is None else space_from_json(space) for space in about["spaces"]]
    offsets, terminated, truncated = (np.array(arrays[name][NUMBERS]) for name in EPISODES)
    return Trajectories(
        packed(OBSERVATIONS),
        arrays[ACTIONS][NUMBERS],
        arrays[REWARDS][NUMBERS],
        offsets,
        terminated,
        truncated,
        packed(FINAL) if FINAL in arrays else None,
        spaces[0],
        spaces[1],
        storage,
    )


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(
        f"{folder} is no whole copy of data: {what}; delete the folder, and the data are converted again from their "
        "source"
    )
