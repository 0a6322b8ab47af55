"""Arrays that are mapped from files, and what the system is told of how they are read."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


class Mapped:
    """Rows of a file that an array is mapped from.

    Args:
        array: a view of the mapped one, or the mapped one itself.
        mapping: of the file.
    """

    def __init__(self, array: npt.NDArray[Any], mapping: mmap.mmap) -> None:
        self._map = mapping
        begin = np.frombuffer(mapping, np.uint8).ctypes.data
        self._first, self._row = array.ctypes.data - begin, array.strides[0]

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Mapped | None:
        """The rows of an array; None for one in memory, and where the system takes no advice."""
        whole: Any = array
        while whole is not None and not isinstance(getattr(whole, "_mmap", None), mmap.mmap):
            whole = getattr(whole, "base", None)
        return cls(array, whole._mmap) if whole is not None and hasattr(mmap.mmap, "madvise") else None

    def read_at_random(self) -> None:
        """Keeps the system from reading what lies around the rows that are read."""
        self._map.madvise(mmap.MADV_RANDOM)

    def fetch(self, start: int, stop: int) -> None:
        """Has the system begin to read rows: many at once, where touching them reads one after another."""
        begin = (self._first + start * self._row) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, begin, self._first + stop * self._row - begin)
