"""Discrete spaces: whole numbers from small ranges, one-hot where they are flat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.box import Box
from aaren_rl.data.spaces.space import TYPES, Space
from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class DiscreteSpace(Space):
    """Whole numbers from small ranges, as `gymnasium.spaces.Discrete` and `MultiDiscrete`; flat ones are one-hot.

    Attributes:
        shape: of a value; () for one number.
        counts: how many values each number can have, in C order.
        starts: least value of each.

    Raises:
        InvalidInput: the counts do not fit the shape, or one is below 1.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("shape", "counts", "starts"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        if not len(self.counts) == len(self.starts) == math.prod(self.shape) or min(self.counts, default=0) < 1:
            raise InvalidInput(
                f"a discrete space of shape {self.shape}, counts {self.counts} and starts {self.starts}; expected one "
                "count from 1 and one start for each number"
            )

    @property
    def size(self) -> int:
        """Numbers in a flat value."""
        return sum(self.counts)

    def flat(self) -> Box:
        """See `Space.flat`."""
        return Box((self.size,), (0.0,) * self.size, (1.0,) * self.size, "float32")

    def bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """See `Space.bounds`."""
        return self.flat().bounds()

    def flatten(self, values: Any, batch: int = 0) -> npt.NDArray[Any]:
        """See `Space.flatten`."""
        array = np.asarray(values)
        if array.ndim < batch or array.shape[batch:] != self.shape or array.dtype.kind not in "iub":
            raise InvalidInput(
                f"values have shape {array.shape[batch:]} and dtype {array.dtype}; expected whole numbers of shape "
                f"{self.shape}"
            )
        places = array.reshape(*array.shape[:batch], len(self.counts)).astype(np.int64) - np.array(self.starts)
        if (places < 0).any() or (places >= np.array(self.counts)).any():
            raise InvalidInput(
                f"values from {array.min()} to {array.max()}; expected counts {self.counts} from {self.starts}"
            )
        flat = np.zeros((*places.shape[:-1], self.size), dtype=np.float32)
        starts = np.concatenate([[0], np.cumsum(self.counts[:-1])]).astype(np.int64)
        np.put_along_axis(flat, places + starts, 1.0, axis=-1)
        return flat

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "discrete", **{name: list(getattr(self, name)) for name in ("shape", "counts", "starts")}}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> DiscreteSpace:
        """See `Space.from_json`."""
        return cls(saved["shape"], saved["counts"], saved["starts"])


TYPES["discrete"] = DiscreteSpace
