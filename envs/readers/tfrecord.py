"""Reads TFRecord files and the tf.train.Example messages in them, without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from aaren_rl.envs.readers.crc32c import masked
from aaren_rl.errors import DataError

Feature: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.int64] | list[bytes]"
"""Values of one feature: a float_list, an int64_list or a bytes_list."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of protocol buffers."""


class _Malformed(ValueError):
    """Bytes are no message of the expected type."""


class _Field(NamedTuple):
    number: int
    wire: int
    value: Any
    """An int for a varint, else the bytes."""


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file, each checked against its checksum.

    Raises:
        DataError: the file is missing, cut off, or a checksum does not fit.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a TFRecord file")
    size, number = path.stat().st_size, 0
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) < 12:
                raise _cut(path, number)
            length, check = struct.unpack("<QI", head)
            if masked(head[:8]) != check:
                raise DataError(
                    f"{path}: the length of record {number} has another checksum than the file says; it is damaged, or "
                    "no TFRecord file"
                )
            if length + 4 > size - file.tell():
                raise _cut(path, number)
            content = file.read(length)
            if masked(content) != struct.unpack("<I", file.read(4))[0]:
                raise DataError(
                    f"{path}: record {number} has another checksum than the file says; it is damaged: fetch it again"
                )
            yield content
            number += 1


def _cut(path: Path, number: int) -> DataError:
    return DataError(f"{path} ({path.stat().st_size} bytes) is cut off in record {number}: fetch it again")


def example(content: bytes, name: str) -> dict[str, Feature]:
    """The features of a tf.train.Example message.

    Args:
        content: the message.
        name: of the record, for messages.

    Raises:
        DataError: it is no such message.
    """
    try:
        found: dict[str, Feature] = {}
        # Example: features = 1. Features: feature = 1, a map. An entry of it: key = 1, value = 2.
        for features in _of(content, 1):
            for entry in _of(features, 1):
                key = b"".join(_of(entry, 1)).decode("utf-8")
                found[key] = _feature(b"".join(_of(entry, 2)))
        return found
    except (_Malformed, UnicodeDecodeError, struct.error, OverflowError) as error:
        raise DataError(f"{name} is no tf.train.Example: {error}") from error


def _feature(message: bytes) -> Feature:
    """Feature: one of bytes_list = 1, float_list = 2, int64_list = 3, each with value = 1."""
    for field in _fields(message):
        if field.wire != _BYTES:
            raise _Malformed(f"field {field.number} of a feature is no list")
        values = [one for one in _fields(field.value) if one.number == 1]
        if field.number == 1:
            return [one.value for one in values if one.wire == _BYTES]
        if field.number == 2:
            floats = b"".join(one.value for one in values if one.wire in (_BYTES, _FIXED32))
            if len(floats) % 4:
                raise _Malformed(f"{len(floats)} bytes of floats")
            return np.frombuffer(floats, dtype="<f4")
        if field.number == 3:
            parts = [
                _varints(one.value) if one.wire == _BYTES else np.array([one.value], dtype=np.uint64) for one in values
            ]
            return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
    return []


def _of(message: bytes, number: int) -> Iterator[bytes]:
    """Messages and bytes under a field's number."""
    for field in _fields(message):
        if field.number == number and field.wire == _BYTES:
            yield field.value


def _fields(message: bytes) -> Iterator[_Field]:
    """The fields of a message in their order."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        wire, number = tag & 7, tag >> 3
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield _Field(number, wire, value)
            continue
        if wire == _BYTES:
            length, place = _varint(message, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise _Malformed(f"wire type {wire}")
        if place + length > len(message):
            raise _Malformed(f"a field of {length} bytes where {len(message) - place} are left")
        yield _Field(number, wire, message[place : place + length])
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise _Malformed("a number without an end")


def _varints(content: bytes) -> npt.NDArray[np.uint64]:
    """Numbers of variable length one after another; each byte holds 7 bits, the last one of a number is below 128."""
    given = np.frombuffer(content, dtype=np.uint8)
    last = np.flatnonzero(given < 0x80)
    if len(given) and (not len(last) or last[-1] != len(given) - 1):
        raise _Malformed("a number without an end")
    starts = np.concatenate([[0], last[:-1] + 1]).astype(np.int64)[: len(last)]
    lengths = last - starts + 1
    if lengths.max(initial=0) > 10:
        raise _Malformed("a number of more than ten bytes")
    values = np.zeros(len(last), dtype=np.uint64)
    for number in range(int(lengths.max(initial=0))):
        held = lengths > number
        values[held] |= (given[starts[held] + number] & 0x7F).astype(np.uint64) << np.uint64(7 * number)
    return values
