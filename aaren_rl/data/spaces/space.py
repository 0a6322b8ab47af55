"""The contract of a space, and the classes that JSON may name."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import InvalidInput

if TYPE_CHECKING:
    from aaren_rl.data.spaces.box import Box


class Space:
    """What a value of an observation or an action looks like; subclasses are frozen dataclasses, compared by value.

    Attributes:
        shape: of a value.
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in a value."""
        return math.prod(self.shape)

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The least and the greatest value, each of the space's shape."""
        raise NotImplementedError

    def flat(self) -> Box:
        """The Box of vectors that `flatten` makes of values."""
        raise NotImplementedError

    def flatten(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """Values as vectors: a Box in C order, parts of a Dict in the order of their sorted keys, those of a Tuple as
        they stand.

        Args:
            values: an array for a Box, a mapping or a sequence of such for nested spaces.
            batch: number of dimensions in front of a value's own.

        Returns:
            (*batch dimensions, size).

        Raises:
            InvalidInput: the values do not have the space's parts or shape.
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
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInput(f"a space cannot be read from {reprlib.repr(dict(saved))}: {error!r}") from error
