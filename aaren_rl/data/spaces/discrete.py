"""Discrete spaces: whole numbers from small ranges, and bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.space import TYPES, Packed, Space, array_of, numbers_array, whole_numbers
from aaren_rl.errors import InvalidInput

MOST_VALUES = 10_000
"""Values that a number may have; each takes a feature of the model."""


@dataclass(frozen=True)
class DiscreteSpace(Space):
    """Whole numbers from small ranges, as `gymnasium.spaces.Discrete` and `MultiDiscrete`.

    Attributes:
        shape: of a value; () for one number.
        counts: how many values each number can have, in C order.
        starts: least value of each.

    Raises:
        InvalidInput: the counts do not fit the shape, or one is below 1 or above `MOST_VALUES`.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("shape", "counts", "starts"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        fits = len(self.counts) == len(self.starts) == math.prod(self.shape) and min(self.shape, default=1) > 0
        if not fits or min(self.counts, default=0) < 1:
            raise InvalidInput(
                f"a discrete space of shape {self.shape}, counts {self.counts} and starts {self.starts}; expected one "
                "count from 1 and one start for each number"
            )
        if sum(self.counts) > MOST_VALUES or max(map(abs, self.starts)) > 2**23:
            raise InvalidInput(
                f"a discrete space with {sum(self.counts)} values from {min(self.starts)}; expected at most "
                f"{MOST_VALUES} values, each of which takes a feature of the model, from a start within +-2^23"
            )

    def pack(self, values: Any, batch: int = 0) -> npt.NDArray[np.float32]:
        """See `Space.pack`; the values themselves, not counted from 0."""
        array = array_of(values, self.shape, batch, "iub")
        starts = np.array(self.starts).reshape(self.shape)
        places = array.astype(np.int64) - starts
        if (places < 0).any() or (places >= np.array(self.counts).reshape(self.shape)).any():
            raise InvalidInput(f"values from {array.min()} to {array.max()}; expected {self._words()}")
        return array.astype(np.float32)

    def unpack(self, packed: Packed, batch: int = 0) -> npt.NDArray[np.int64]:
        """See `Space.unpack`."""
        found: npt.NDArray[np.int64] = np.asarray(np.rint(numbers_array(packed)), np.int64)
        # A number, not an array without dimensions, which environments do not find in their tables.
        return found[()]

    def _words(self) -> str:
        if len(set(self.counts)) == 1 and len(set(self.starts)) == 1:
            return f"{self.starts[0]} to {self.starts[0] + self.counts[0] - 1}"
        return f"counts {self.counts} from {self.starts}"

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "discrete", **{name: list(getattr(self, name)) for name in ("shape", "counts", "starts")}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> DiscreteSpace:
        """See `Space.from_json`."""
        return cls(*(whole_numbers(saved[name]) for name in ("shape", "counts", "starts")))


@dataclass(frozen=True)
class BinarySpace(Space):
    """Bits, as `gymnasium.spaces.MultiBinary`.

    Attributes:
        shape: of a value.

    Raises:
        InvalidInput: the shape has no numbers.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        if min(self.shape, default=0) < 1:
            raise InvalidInput(f"a binary space of shape {self.shape}; expected sizes from 1")

    def pack(self, values: Any, batch: int = 0) -> npt.NDArray[np.float32]:
        """See `Space.pack`."""
        array = array_of(values, self.shape, batch, "iub")
        if not np.isin(array, (0, 1)).all():
            raise InvalidInput(f"values from {array.min()} to {array.max()}; expected 0 or 1")
        return array.astype(np.float32)

    def unpack(self, packed: Packed, batch: int = 0) -> npt.NDArray[np.int8]:
        """See `Space.unpack`."""
        return np.asarray(np.rint(numbers_array(packed)), np.int8)

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "binary", "shape": list(self.shape)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> BinarySpace:
        """See `Space.from_json`."""
        return cls(whole_numbers(saved["shape"]))


TYPES["discrete"] = DiscreteSpace
TYPES["binary"] = BinarySpace
