"""Opens NumPy's npz files that may come from anywhere: what a file holds is checked before a value is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from aaren_rl.envs.readers.hdf5 import COMPRESSION, SMALL
from aaren_rl.errors import AarenError, DataError


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Opens an npz file; an array is read as its key is asked for.

    Raises:
        DataError: the file is missing, cut off, no npz file, holds Python objects, or claims sizes that it cannot hold.
            Damage that shows while an array is read is reported likewise.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected an npz file")
    try:
        _check(path)
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except AarenError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as npz: {error}; it may be cut off: fetch it again"
        ) from error


def shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array of an npz file, read from their headers.

    Raises:
        DataError: an array holds Python objects, or claims a size that it does not have.
        OSError, ValueError, zipfile.BadZipFile: the file is damaged.
    """
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise DataError(f"{path} holds {member.filename!r}; expected NumPy arrays alone")
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                shape, dtype = _header(file)
                head = file.tell()
            if dtype.hasobject:
                raise DataError(f"{path}: {key!r} holds Python objects, which are never loaded; save it as numbers")
            if math.prod(shape) * dtype.itemsize != member.file_size - head:
                raise DataError(
                    f"{path}: {key!r} claims the shape {shape} of {dtype}, in {member.file_size - head} bytes; the "
                    "file is damaged"
                )
            found[key] = shape, dtype
    return found


def _check(path: Path) -> None:
    size = path.stat().st_size
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes(path).values())
    if total > max(SMALL, COMPRESSION * size):
        raise DataError(f"{path} claims {total} bytes of values; a file of {size} bytes cannot hold them")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"arrays of NumPy's format {version}; expected 1.0 or 2.0")
    return shape, dtype
