"""Boxes: real numbers in an array of one shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.space import TYPES, Packed, Space, array_of, numbers_array, refuse_inexact
from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Box(Space):
    """Real numbers in an array of one shape, as `gymnasium.spaces.Box`.

    Attributes:
        shape: of a value.
        low: least values, one for each number in C order; -inf where there is none.
        high: greatest values, likewise.
        dtype: of a value, in NumPy's words.

    Raises:
        InvalidInput: the bounds do not fit the shape, or a low is above its high.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("shape", "low", "high"):
            # Lists would neither compare nor hash.
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.shape, default=0) < 0 or np.dtype(self.dtype).kind not in "fiub":
            raise InvalidInput(f"a Box of shape {self.shape} and dtype {self.dtype}; expected sizes from 0 and numbers")
        if not len(self.low) == len(self.high) == self.size:
            raise InvalidInput(
                f"a Box of shape {self.shape} has {len(self.low)} lows and {len(self.high)} highs; expected {self.size}"
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not low <= high:
                raise InvalidInput(f"a Box has the bounds {low} and {high}; expected no low above its high")

    @classmethod
    def unbounded(cls, shape: tuple[int, ...], dtype: str = "float32") -> Box:
        """Values of a shape without bounds."""
        size = math.prod(shape)
        return cls(shape, (-math.inf,) * size, (math.inf,) * size, dtype)

    @classmethod
    def bounded(cls, low: npt.ArrayLike, high: npt.ArrayLike, dtype: str = "float32") -> Box:
        """Values between two arrays of their shape."""
        least, greatest = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if least.shape != greatest.shape:
            raise InvalidInput(f"low has shape {least.shape} and high {greatest.shape}; expected one shape")
        return cls(least.shape, tuple(least.ravel().tolist()), tuple(greatest.ravel().tolist()), dtype)

    @cached_property
    def is_whole(self) -> bool:
        """True if its numbers are whole ones, by its dtype."""
        return np.dtype(self.dtype).kind != "f"

    @property
    def is_bounded(self) -> bool:
        """True if every number has a least and a greatest value."""
        return all(map(math.isfinite, (*self.low, *self.high)))

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The least and the greatest value, each of the space's shape; rounded inwards.

        Where float32 lacks a bound, the next number inside is taken, so that what lies within fits the space.

        Where no float32 number lies between two bounds, both become the nearest one.
        """
        least, greatest = (np.array(bound, np.float64).reshape(self.shape) for bound in (self.low, self.high))
        with np.errstate(over="ignore"):
            nearest, high = least.astype(np.float32), greatest.astype(np.float32)
            if self.dtype == "float32":
                # The space rounds its bounds as we do.
                return nearest, high
            low = np.where(nearest < least, np.nextafter(nearest, np.float32(np.inf)), nearest)
            high = np.where(high > greatest, np.nextafter(high, np.float32(-np.inf)), high)
        crossed = low > high
        return np.where(crossed, nearest, low), np.where(crossed, nearest, high)

    def pack(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.pack`; the dtype stays as it is."""
        array = array_of(values, self.shape, batch)
        if array.dtype.kind in "iu" and array.dtype.itemsize > 2:
            refuse_inexact(array)
        return array

    def unpack(self, packed: Packed, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.unpack`; whole numbers are rounded to the nearest ones."""
        numbers = numbers_array(packed)
        return np.rint(numbers).astype(self.dtype) if self.is_whole else numbers

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`; null stands for a missing bound."""

        def finite(bound: tuple[float, ...]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in bound]

        bounds = {"low": finite(self.low), "high": finite(self.high)}
        return {"type": "box", "shape": list(self.shape), "dtype": self.dtype, **bounds}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Box:
        """See `Space.from_json`."""
        low = tuple(-math.inf if value is None else float(value) for value in saved["low"])
        high = tuple(math.inf if value is None else float(value) for value in saved["high"])
        return cls(tuple(map(int, saved["shape"])), low, high, str(saved["dtype"]))


TYPES["box"] = Box
