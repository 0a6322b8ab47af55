"""Arrays of the generated C: where their numbers lie, and how C names one of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int64_t",
    torch.bool: "bool",
}
"""C types of tensors; whole numbers are all of one."""


@dataclass(frozen=True)
class Array:
    """A view of numbers that lie in a constant, an argument, or a temporary.

    Attributes:
        storage: C expression of the place of the first number of the storage; of a temporary "@NUMBER@", which becomes
            a place of scratch memory once all lifetimes are known.
        type: C type.
        shape: of the view.
        strides: of the view, in numbers.
        offset: of its first number.
    """

    storage: str
    type: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Numbers in the view."""
        return size_of(self.shape)

    @property
    def contiguous(self) -> bool:
        """True if the numbers lie one after another, in the order of the shape."""
        pairs = zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        return all(stride == expected for length, stride, expected in pairs if length > 1)

    def at(self, indices: Sequence[str]) -> str:
        """C expression of one number.

        Args:
            indices: C expressions, one for each dimension.
        """
        terms = [
            index if stride == 1 else f"{index} * {stride}"
            for index, stride in zip(indices, self.strides, strict=True)
            if stride and index != "0"
        ]
        if self.offset or not terms:
            terms.insert(0, str(self.offset))
        return f"{self.storage}[{' + '.join(terms)}]"

    @property
    def pointer(self) -> str:
        """C expression of the address of the first number."""
        return f"{self.storage} + {self.offset}" if self.offset else self.storage

    def viewed(self, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> Array:
        """Another view of the same storage, `offset` numbers further on."""
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=self.offset + offset)

    def reshaped(self, shape: Sequence[int]) -> Array:
        """A contiguous array in another shape."""
        return self.viewed(shape, contiguous_strides(shape))

    def broadcast(self, shape: Sequence[int]) -> Array:
        """The array repeated to a shape."""
        missing = len(shape) - len(self.shape)
        kept = [
            0 if length == 1 and wanted != 1 else stride
            for length, stride, wanted in zip(self.shape, self.strides, shape[missing:], strict=True)
        ]
        return self.viewed(shape, [0] * missing + kept)


def size_of(shape: Sequence[int]) -> int:
    """Numbers in a shape."""
    size = 1
    for length in shape:
        size *= length
    return size


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array whose numbers lie one after another."""
    sizes = itertools.accumulate(reversed(shape), lambda size, length: size * length, initial=1)
    return tuple(reversed(list(sizes)[:-1])) if shape else ()
