"""Where arrays of all steps lie: in memory, or in files that the system maps into it and drops again."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import DataError

BLOCK_STEPS, BLOCK_NUMBERS = 65_536, 1 << 26
"""Most steps, and most numbers, that a pass over the data takes at once: it makes no second copy of the data."""


class CannotWrite(DataError):
    """Arrays of all steps cannot be written: the data themselves are not damaged."""


@dataclass(frozen=True)
class Storage:
    """Makes arrays of all steps.

    Attributes:
        folder: of files that arrays are mapped from; None for memory. The files have no name, so they are gone with the
            process, however it ends.
    """

    folder: Path | None = None

    @property
    def on_disk(self) -> bool:
        """True if arrays are mapped from files."""
        return self.folder is not None

    def array(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, parts: Iterable[npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """An array of consecutive rows.

        Args:
            shape: of the array.
            dtype: of the array.
            parts: its rows, one part after another.

        Raises:
            CannotWrite: the files cannot be written, on a full disk for instance.
        """
        if self.folder is None:
            found = np.empty(shape, dtype)
            start = 0
            for part in parts:
                found[start : start + len(part)] = part
                start += len(part)
            assert start == len(found), "the parts are all rows"
            return found
        if not math.prod(shape):
            return np.empty(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix=".derived-") as file:
                # Written, not stored through the map: there a full disk kills the process.
                for part in parts:
                    file.write(np.ascontiguousarray(part, dtype).data.cast("B"))
                file.flush()
                return np.memmap(file, dtype, "r", shape=shape)
        except OSError as error:
            raise CannotWrite(
                f"arrays of all steps cannot be written into {self.folder}: {error}; free some space there, or have "
                "them in another folder (in Python: converted.open_folder(FOLDER, derived=OTHER))"
            ) from error


MEMORY = Storage()


def blocks(array: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Consecutive rows of an array, each block with the index of its first row."""
    for rows in step_blocks(len(array), array.shape[1:]):
        yield rows.start, array[rows]


def step_blocks(steps: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive steps of a number of them, in blocks for rows of a shape."""
    size = _rows_at_once(shape)
    for start in range(0, steps, size):
        yield slice(start, min(start + size, steps))


def _rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows of a block, for rows of a shape."""
    return min(BLOCK_STEPS, max(1, BLOCK_NUMBERS // max(1, math.prod(shape))))


def episode_blocks(offsets: npt.NDArray[np.int64], shape: tuple[int, ...] = ()) -> Iterator[tuple[slice, slice]]:
    """Consecutive episodes of about a block of steps, at least one: which episodes, and which steps they are.

    Args:
        offsets: of the episodes.
        shape: of a step's row.
    """
    first, most = 0, _rows_at_once(shape)
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = max(last, first + 1)
        yield slice(first, last), slice(int(offsets[first]), int(offsets[last]))
        first = last
