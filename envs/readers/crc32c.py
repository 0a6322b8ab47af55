"""CRC-32C (Castagnoli), the checksum of TFRecord files, over many bytes at once.

A checksum is linear: that of some bytes is the exclusive or of the checksums of pieces, each carried over the bytes
after it as if they were zeros. So NumPy takes all pieces at once, and pairs are joined until one is left.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78
_PIECE = 64
"""Bytes of a piece; each takes one pass over all pieces."""

_Words = npt.NDArray[np.uint32]


def _table() -> _Words:
    """Checksums of single bytes."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1).astype(np.uint32)
    return values


_TABLE = _table()


def crc32c(content: bytes) -> int:
    """The checksum of some bytes.

    Args:
        content: of any length.
    """
    if len(content) < 4:
        return _short(content)
    # 1. To start from ones is to turn the first four bytes over; zeros in front then change nothing.
    given = np.frombuffer(content, dtype=np.uint8)
    count = 1 << max(0, -(-len(given) // _PIECE) - 1).bit_length()
    padded = np.zeros(count * _PIECE, dtype=np.uint8)
    start = len(padded) - len(given)
    padded[start:] = given
    padded[start : start + 4] ^= 0xFF
    # 2. The checksum of each piece.
    pieces = padded.reshape(count, _PIECE)
    sums = np.zeros(count, dtype=np.uint32)
    for column in range(_PIECE):
        sums = _TABLE[(sums ^ pieces[:, column]) & 0xFF] ^ (sums >> np.uint32(8))
    # 3. Pairs, until one is left.
    carried = _over_zeros(_PIECE)
    while len(sums) > 1:
        sums = _apply(carried, sums[::2]) ^ sums[1::2]
        carried = _apply(carried, carried)
    return int(sums[0]) ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    """The checksum as TFRecord files store it: rotated, plus a constant."""
    value = crc32c(content)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _short(content: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in content:
        value = int(_TABLE[(value ^ byte) & 0xFF]) ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _over_zeros(count: int) -> _Words:
    """What each bit of a checksum becomes after a number of zero bytes, (32,)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(count):
        bits = _TABLE[bits & 0xFF] ^ (bits >> np.uint32(8))
    return np.asarray(bits, dtype=np.uint32)


def _apply(columns: _Words, sums: _Words) -> _Words:
    """Checksums mapped by a matrix over single bits, whose columns are given."""
    found = np.zeros_like(sums)
    for bit, column in enumerate(columns):
        found ^= np.where((sums >> np.uint32(bit)) & 1, column, np.uint32(0)).astype(np.uint32)
    return found
