"""Reads D4RL's data: HDF5 files, and dicts as `env.get_dataset()` returns them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import DataError

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
NEXT = "next_observations"

_ROWS = 4_096
"""Rows of a file that are read at once where only some of them are kept."""


def read_file(path: Path) -> Trajectories:
    """Reads a D4RL HDF5 file (Fu et al. 2020, arXiv 2004.07219), straight into float32.

    Raises:
        DataError: the file is missing, cut off, not HDF5, or its contents do not fit.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a D4RL HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            return from_arrays(file, str(path))
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as HDF5: {error}; "
            "it may be cut off or of another format: delete it and fetch it again"
        ) from error


def from_arrays(data: Mapping[str, Any], name: str = "the dataset") -> Trajectories:
    """Trajectories from D4RL's arrays, in memory or in an open file.

    An episode ends where `terminals` or `timeouts` is set; the unfinished tail is dropped. The final observation of an
    episode is the one under "next_observations" at its last step; None without that key.

    Args:
        data: arrays of equal length under "observations", "actions", "rewards", "terminals" and "timeouts", and
            perhaps "next_observations"; other keys are ignored.
        name: of the data, for messages.

    Raises:
        DataError: keys are missing, lengths differ, no episode is whole, or values are not finite.
    """
    missing = [key for key in KEYS if key not in data]
    if missing:
        raise DataError(
            f"{name} lacks {missing}; expected D4RL's keys {list(KEYS)}, it has {sorted(map(str, data.keys()))}"
        )
    try:
        length = _length(data)
        terminals = np.asarray(data["terminals"][:], dtype=np.bool_).reshape(length)
        timeouts = np.asarray(data["timeouts"][:], dtype=np.bool_).reshape(length)
        last = np.flatnonzero(terminals | timeouts)
        if len(last) == 0:
            raise DataError(f"it holds no whole episode: none of {len(terminals)} steps is a terminal or a timeout")
        steps = int(last[-1]) + 1
        return Trajectories(
            _float32(data["observations"], steps),
            _float32(data["actions"], steps),
            _float32(data["rewards"], steps).reshape(steps),
            np.concatenate([[0], last + 1]),
            terminals[last],
            timeouts[last],
            _rows(data[NEXT], last) if NEXT in data else None,
        )
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{name} does not hold D4RL's arrays: {error}") from error


def _length(data: Mapping[str, Any]) -> int:
    """Number of steps, the same in all arrays that are read.

    Raises:
        DataError: a key holds no array of numbers, or lengths differ.
    """
    keys = [*KEYS, *([NEXT] if NEXT in data else [])]
    for key in keys:
        numeric = getattr(getattr(data[key], "dtype", None), "kind", "?") in "fiub"
        if not numeric or not getattr(data[key], "shape", ()):
            raise DataError(f"{data[key]!r} lies under {key!r}; expected an array of numbers, one entry per step")
    lengths = {key: len(data[key]) for key in keys}
    if len(set(lengths.values())) != 1:
        raise DataError(f"its arrays differ in length: {lengths}; expected one entry per step in each")
    return lengths["rewards"]


def _float32(array: h5py.Dataset | npt.NDArray[Any], steps: int) -> npt.NDArray[np.float32]:
    if isinstance(array, h5py.Dataset):
        # HDF5 converts while it reads, so a float64 file is never in memory in float64.
        out = np.empty((steps, *array.shape[1:]), dtype=np.float32)
        array.read_direct(out, np.s_[:steps])
        return out
    return np.asarray(array[:steps], dtype=np.float32)


def _rows(array: h5py.Dataset | npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Some rows in rising order, as float32, without the whole of a file's array in memory."""
    if not isinstance(array, h5py.Dataset):
        return np.asarray(array[rows], dtype=np.float32)
    out = np.empty((len(rows), *array.shape[1:]), dtype=np.float32)
    # HDF5 takes far longer to pick many single rows than to read the blocks that hold them.
    for block in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows // _ROWS)) + 1):
        first, last = rows[block[0]], rows[block[-1]]
        out[block] = array[first : last + 1][rows[block] - first]
    return out
