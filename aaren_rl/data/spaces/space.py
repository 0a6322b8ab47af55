"""The contract of a space, and the classes that JSON may name."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import InvalidInput

if TYPE_CHECKING:
    from aaren_rl.data.spaces.image import ImageSpace

NUMBERS = "numbers"
"""Key of the numbers in packed values that have images beside them."""

Packed: TypeAlias = "npt.NDArray[Any] | dict[str, npt.NDArray[Any]]"
"""Values of a space as arrays: the numbers of a value in one array, (*batch, *shape); or, where the space has images, a
dict of such an array under `NUMBERS` (if there are numbers) and each image under its path, (*batch, *image shape)."""


class Part(NamedTuple):
    """A part of a space that is not made of parts itself.

    Attributes:
        path: keys and places that lead to it, joined by "/"; "" for a space that is no nested one.
        space: of the part.
        columns: where its numbers stand in a row of the whole space's numbers; empty for an image.
    """

    path: str
    space: Space
    columns: slice


class Space:
    """What a value of an observation or an action looks like; subclasses are frozen dataclasses, compared by value.

    A value is packed as numbers: those of a Box, the value of a Discrete, the bits of a MultiBinary, the numbers of a
    Text's words. Parts of Dicts and Tuples stand one after another in one row. Only images stay apart.

    Attributes:
        shape: of a value's numbers.
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in a value."""
        return math.prod(self.shape)

    def parts(self) -> tuple[Part, ...]:
        """The parts in the one order in which their numbers stand; of a space without parts, itself."""
        return (Part("", self, slice(0, self.size)),)

    def images(self) -> dict[str, ImageSpace]:
        """The images by their paths."""
        return {}

    def packed_shapes(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shapes of a packed value: that of its numbers, or a dict where the space has images."""
        images = {path: image.shape for path, image in self.images().items()}
        if not images:
            return self.shape
        return ({NUMBERS: self.shape} if self.size else {}) | images

    def pack(self, values: Any, batch: int = 0) -> Packed:
        """Values of the environment as arrays.

        Args:
            values: as the environment has them, stacked over the batch: an array, a mapping or a sequence of such for
                nested spaces, texts.
            batch: number of dimensions in front of a value's own.

        Raises:
            InvalidInput: the values do not have the space's parts, shapes or range.
        """
        raise NotImplementedError

    def unpack(self, packed: Packed, batch: int = 0) -> Any:
        """The values that packed ones stand for, as an environment has them; the inverse of `pack`.

        Args:
            packed: (*batch, *shape), or a dict where there are images.
            batch: number of dimensions in front of a value's own.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The space in JSON's types, with the name of its class under "type"."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Space:
        """Reads what `to_json` wrote; raises KeyError, TypeError or ValueError where it does not fit."""
        raise NotImplementedError


TYPES: dict[str, type[Space]] = {}
"""Classes of spaces by their "type" in JSON; every class enters itself."""


def space_from_json(saved: Mapping[str, Any]) -> Space:
    """Reads what `to_json` of a space wrote.

    Raises:
        InvalidInput: it is not a space that this version knows.
    """
    if not isinstance(saved, Mapping):
        raise InvalidInput(
            f"a space is saved as {reprlib.repr(saved)}; expected an object with type, shape, dtype and bounds"
        )
    space = TYPES.get(str(saved.get("type")))
    if space is None:
        raise InvalidInput(
            f"a space of type {reprlib.repr(saved.get('type'))}; this version knows {', '.join(map(repr, TYPES))}"
        )
    try:
        return space.from_json(saved)
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInput(f"a space cannot be read from {reprlib.repr(dict(saved))}: {error!r}") from error


def array_of(values: Any, shape: tuple[int, ...], batch: int, expected: str = "fiub") -> npt.NDArray[Any]:
    """Values as an array whose last dimensions are a shape.

    Args:
        values: anything that NumPy makes an array of.
        shape: of a value.
        batch: number of dimensions in front of it.
        expected: kinds of dtypes that will do, as NumPy's letters.

    Raises:
        InvalidInput: the shape is another, or the dtype.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"values are no array: {error}; expected numbers of shape {shape}") from error
    if array.ndim < batch or array.shape[batch:] != shape:
        raise InvalidInput(f"values have shape {array.shape[batch:]}; expected {shape}")
    if array.dtype.kind not in expected:
        what = "whole numbers" if "f" not in expected else "numbers"
        raise InvalidInput(f"values have the dtype {array.dtype}; expected {what} of shape {shape}")
    return array


def numbers_array(packed: Packed) -> npt.NDArray[Any]:
    """The numbers of packed values."""
    return packed[NUMBERS] if isinstance(packed, dict) else packed


EXACT = 2**24
"""Whole numbers up to here are float32 numbers."""


def refuse_inexact(array: npt.NDArray[Any]) -> None:
    """Refuses whole numbers that float32 does not hold.

    Raises:
        InvalidInput: there are some.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.size:
        least, most = int(array.min()), int(array.max())
        if max(-least, most) > EXACT:
            raise InvalidInput(
                f"{array.dtype} numbers from {least} to {most}; float32 holds whole numbers up to {EXACT} exactly: "
                "subtract an offset, divide, or give them as floats if rounding does no harm"
            )


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Whole numbers of a saved space.

    Raises:
        TypeError: they are something else.
    """
    if not isinstance(values, list | tuple) or any(type(value) is not int for value in values):
        raise TypeError(f"{values!r:.100} in place of a list of whole numbers")
    return tuple(values)
