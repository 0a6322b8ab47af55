"""Opens HDF5 files that may come from anywhere: all that a file holds is checked before a value is read."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s, h5z

from aaren_rl.envs.free_memory import free_memory, in_words
from aaren_rl.envs.readers.signatures import describe, is_hdf5
from aaren_rl.errors import DataError

SMALL = 64 << 20
"""Bytes that any file may hold, however small it is."""
COMPRESSION = 1_100
"""Most bytes of values per byte of a file. Deflate, the strongest filter here, makes at most 1,032 out of one."""
DEPTH = 32
"""Most groups above an object."""

_LZF = 32_000
_FILTERS = {
    h5z.FILTER_DEFLATE,
    h5z.FILTER_SHUFFLE,
    h5z.FILTER_FLETCHER32,
    h5z.FILTER_SZIP,
    h5z.FILTER_NBIT,
    h5z.FILTER_SCALEOFFSET,
    _LZF,
}
"""Filters built into h5py. HDF5 would load any other as a program from the folder that HDF5_PLUGIN_PATH names."""

_RECORD = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
"""What a dataset stores of a value of variable length: the value lies in a heap."""
_HEAP = struct.Struct("<4s4sQ")
"""Head of a heap: signature, version, bytes in all."""
_VALUE = struct.Struct("<H6xQ")
"""Head of a value in a heap: index, bytes."""


@contextmanager
def open_checked(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading, once it is known to hold nothing but its own values, of a size in proportion.

    Refused by name are links and values outside the file, virtual datasets, and links that lead nowhere or in a circle.
    So are references, filters that are not built in, and sizes that the file cannot hold.

    Raises:
        DataError: the file is missing, damaged, not HDF5, or holds something that is refused. Errors of the block pass
            through unchanged.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected an HDF5 file")
    size = path.stat().st_size
    if not is_hdf5(path):
        raise DataError(f"{path} ({size} bytes) cannot be read as HDF5: it is {describe(path)}")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise _damaged(path, size, error) from error
    with file:
        try:
            _Check(file, path, max(SMALL, COMPRESSION * size)).run()
        except DataError:
            raise
        except Exception as error:
            # h5py passes on what HDF5 says of damage as errors of many types.
            raise _damaged(path, size, error) from error
        yield file


def checked(path: Path) -> None:
    """Checks an HDF5 file as `open_checked` does, before another library opens it.

    Raises:
        DataError: as `open_checked`.
    """
    with open_checked(path):
        pass


def bytes_of(group: h5py.Group) -> int:
    """Bytes of the values of all datasets in a group and in the groups below it."""
    size = 0
    for part in group.values():
        if isinstance(part, h5py.Group):
            size += bytes_of(part)
        # A named type has no values.
        size += part.nbytes if isinstance(part, h5py.Dataset) else 0
    return size


def require_memory(needed: int, name: str, way_out: str = "take a part of the data") -> None:
    """Refuses data that do not fit into the memory that is free, before any of it is taken.

    Args:
        needed: bytes.
        name: of the data, for the message.
        way_out: what to do other than to free memory.

    Raises:
        DataError: less than that is free.
    """
    free = free_memory()
    if needed > free:
        raise DataError(f"{name} needs {in_words(needed)} of memory, {in_words(free)} is free; free some, or {way_out}")


def _damaged(path: Path, size: int, error: Exception) -> DataError:
    return DataError(
        f"{path} ({size} bytes) cannot be read as HDF5: {error}; it may be cut off or damaged: fetch it again"
    )


@dataclass
class _Check:
    """A walk over all links of a file, in which no value is read and no link is followed that leaves the file."""

    file: h5py.File
    path: Path
    limit: int
    """Most bytes of values in all."""
    total: int = 0
    """Bytes of values found so far."""

    def run(self) -> None:
        """Raises DataError for the first thing that is refused."""
        root = self.file.id
        groups, soft_links = [(b"/", 0)], []
        seen = {h5o.get_info(root).addr}
        while groups:
            name, depth = groups.pop()
            group = h5o.open(root, name)
            for link in group:
                where = name.rstrip(b"/") + b"/" + link
                info = group.links.get_info(link)
                if info.type == h5l.TYPE_SOFT:
                    soft_links.append((where, group.links.get_val(link)))
                    continue
                if info.type != h5l.TYPE_HARD:
                    kind = "an external link" if info.type == h5l.TYPE_EXTERNAL else "a user-defined link"
                    raise self._refused(where, f"is {kind}, and could lead to another file")
                target = h5o.open(group, link)
                if isinstance(target, h5d.DatasetID):
                    self._check_dataset(where, target)
                elif isinstance(target, h5g.GroupID):
                    if info.u in seen:
                        raise self._refused(where, "is a second name of a group, which readers would walk in circles")
                    if depth == DEPTH:
                        raise self._refused(where, f"lies more than {DEPTH} groups deep")
                    seen.add(info.u)
                    groups.append((where, depth + 1))
        # No link leaves the file, so none is left that a soft link could lead through.
        for where, goal in soft_links:
            self._check_soft_link(where, goal)

    def _check_soft_link(self, where: bytes, goal: bytes) -> None:
        try:
            target = h5o.open(self.file.id, where)
        except (KeyError, RuntimeError, ValueError, OSError) as error:
            raise self._refused(where, f"is a soft link to {_shown(goal)}, which cannot be followed") from error
        if not isinstance(target, h5d.DatasetID):
            raise self._refused(where, f"is a soft link to {_shown(goal)}, which is not a dataset")
        self._check_dataset(where, target)

    def _check_dataset(self, where: bytes, dataset: h5d.DatasetID) -> None:
        plan = dataset.get_create_plist()
        # First of all: a virtual dataset opens its sources as soon as its shape is asked for.
        if plan.get_layout() == h5d.VIRTUAL:
            raise self._refused(where, "is a virtual dataset, whose values lie in other datasets or files")
        if plan.get_external_count():
            raise self._refused(where, "has external storage: its values lie in other files")
        for number in range(plan.get_nfilters()):
            code = plan.get_filter(number)[0]
            if code not in _FILTERS:
                raise self._refused(where, f"needs filter {code}, which is not built in; write it anew with gzip")
        dtype = dataset.dtype
        space = dataset.get_space()
        simple = space.get_simple_extent_type() == h5s.SIMPLE
        count = math.prod(space.get_simple_extent_dims()) if simple else 1
        if dtype.hasobject:
            size = self._variable_bytes(where, dataset, plan, dtype, count)
        else:
            size = count * dtype.itemsize
            if plan.get_layout() == h5d.CHUNKED:
                # HDF5 takes whole chunks into memory.
                size = max(size, math.prod(plan.get_chunk()) * dtype.itemsize)
        self.total += size
        if self.total > self.limit:
            raise self._refused(
                where,
                f"brings the file to {in_words(self.total)} of values; a file of {self.path.stat().st_size} bytes "
                f"holds at most {in_words(self.limit)}",
            )

    def _variable_bytes(
        self, where: bytes, dataset: h5d.DatasetID, plan: h5py.h5p.PropDCID, dtype: np.dtype[np.object_], count: int
    ) -> int:
        """Bytes of values of variable length. HDF5 stores a length and an address for each, which may repeat."""
        base = h5py.check_vlen_dtype(dtype)
        if base is None or (isinstance(base, np.dtype) and base.hasobject):
            raise self._refused(where, f"holds {dataset.get_type().__class__.__name__} values: references or mixtures")
        if plan.get_nfilters():
            raise self._refused(where, "holds compressed values of variable length, whose size cannot be known")
        if self.file.id.get_create_plist().get_sizes() != (8, 8):
            raise self._refused(where, "holds values of variable length in a file with short addresses")
        width = base.itemsize if isinstance(base, np.dtype) else 1
        # A numpy object each, beside its bytes.
        size = count * 64
        parts: list[tuple[int, int]] = []
        if plan.get_layout() == h5d.CHUNKED:
            dataset.chunk_iter(lambda chunk: parts.append((chunk.byte_offset, chunk.size)))
        elif plan.get_layout() == h5d.CONTIGUOUS:
            # Without storage the offset means nothing.
            parts += [(dataset.get_offset(), count * _RECORD.itemsize)] if dataset.get_storage_size() else []
        else:
            raise self._refused(where, "holds values of variable length in its header")
        heaps: set[int] = set()
        with self.path.open("rb") as raw:
            for start, length in parts:
                raw.seek(start)
                content = raw.read(min(length, self.limit))
                records = np.frombuffer(content, _RECORD, count=len(content) // _RECORD.itemsize)
                size += int(records["length"].sum(dtype=np.int64)) * width
                heaps.update(records["heap"].tolist())
            for heap in sorted(heaps - {0}):
                self._check_heap(where, raw, heap + self.file.userblock_size)
        return size

    def _check_heap(self, where: bytes, raw: BinaryIO, start: int) -> None:
        """Walks over the values of a global heap, over which HDF5 walks for ever if a damaged size is zero."""
        raw.seek(min(start, self.path.stat().st_size))
        signature, _, size = _HEAP.unpack(raw.read(_HEAP.size).ljust(_HEAP.size, b"\0"))
        content = raw.read(max(0, min(size, self.path.stat().st_size) - _HEAP.size))
        place = 0
        while signature == b"GCOL" and place + _VALUE.size <= len(content):
            index, length = _VALUE.unpack_from(content, place)
            # The free space after the last value has the index 0, and counts its own header.
            step = _VALUE.size + -(-length // 8) * 8 if index else length
            if step < _VALUE.size or place + step > len(content):
                break
            place += step
        else:
            if signature == b"GCOL":
                return
        raise self._refused(where, "holds values of variable length in a damaged heap")

    def _refused(self, where: bytes, reason: str) -> DataError:
        return DataError(f"{self.path}: {_shown(where)} {reason}; such files are not read")


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))
