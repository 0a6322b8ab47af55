"""Bounds: how far scaled numbers go, what counts as constant, and between which actions a model acts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces import BinarySpace, Box, DiscreteSpace, Part, Space, map_parts
from aaren_rl.data.storage import blocks
from aaren_rl.errors import DataError

SCALED_BOUND = 100.0
"""Scaled observations, returns-to-go and rewards are clipped to this size, in training and in acting.

Data lie a few deviations from their mean. A number 100 deviations away says "far off" and no more, and it is small
enough for every layer behind it to stay finite, whatever an environment shows.
"""

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Spread, as a share of the largest value, up to which a component counts as constant: that of float32's last bits."""

SMALLEST = float(np.finfo(np.float32).tiny)
"""Smallest spread that counts: below it float32 loses digits."""

LARGEST_BOUND = float(np.finfo(np.float32).max) / 2
"""Largest bound of an action that is scaled."""

WIDEST = 10.0
"""Ranges of actions wider than this many times the data's give way to the data's."""


def varies(least: npt.ArrayLike, greatest: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which components vary, in any unit: their spread exceeds the rounding of float32 numbers of their size.

    Args:
        least: the least value of each component in the data.
        greatest: the greatest value of each.
    """
    least, greatest = np.asarray(least, np.float64), np.asarray(greatest, np.float64)
    size = np.maximum(np.abs(least), np.abs(greatest))
    return np.asarray(greatest - least > np.maximum(ROUNDING * size, SMALLEST))


def action_space_of(actions: npt.NDArray[Any], space: Space | None) -> Space:
    """The space that actions are scaled by: an environment's, its Boxes with bounds that suit the data.

    Component by component of a Box:

    1. A missing bound gives way to the data's least or greatest action.
    2. A range more than `WIDEST` times the data's gives way to the data's. Otherwise the actions would lie so close
       together that a model hardly tells them apart.
    3. A component that does not vary in the data gets its constant for both bounds, and is held there.

    Args:
        actions: of the data, packed, (steps, *action shape). Those outside the environment's bounds count as at the
            bound.
        space: action space of the environment; None for data without one.

    Returns:
        The space with finite bounds that float32 holds exactly, inside the environment's, of its dtype.

    Raises:
        DataError: the actions have another shape than the environment's.
    """
    if space is not None and actions.shape[1:] != space.shape:
        raise DataError(
            f"the data's actions have shape {actions.shape[1:]}; the environment takes {space.shape}; pass the "
            "environment that the data are from"
        )
    given = Box.unbounded(actions.shape[1:]) if space is None else space

    def narrowed(part: Part) -> Space:
        if not isinstance(part.space, Box):
            return part.space
        return _narrowed(values_of_part(actions, part), part.space)

    return map_parts(given, narrowed)


def values_of_part(values: npt.NDArray[Any], part: Part) -> npt.NDArray[Any]:
    """The numbers of a part, (steps, *shape of the part), of packed values (steps, *shape)."""
    if part.path == "":
        return values
    return values[:, part.columns].reshape(len(values), *part.space.shape)


class NoValue(NamedTuple):
    """Numbers that are no value of their discrete or binary part.

    Attributes:
        part: of the space.
        step: the first such step.
        numbers: of the part at that step.
    """

    part: Part
    step: int
    numbers: Any

    @property
    def where(self) -> str:
        """The part in words; empty for a space that has none."""
        return f" of part {self.part.path!r}" if self.part.path else ""


def first_no_value(values: npt.NDArray[Any], space: Space) -> NoValue | None:
    """The first packed numbers, (steps, *shape), that are no value of a discrete or binary part; None for none."""
    for part in space.parts():
        if isinstance(part.space, DiscreteSpace | BinarySpace):
            low, high = bounds_of(part.space)
            for start, block in blocks(values):
                numbers = values_of_part(block, part)
                wrong = (numbers != np.rint(numbers)) | (numbers < low) | (numbers > high)
                found = np.flatnonzero(wrong.reshape(len(numbers), -1).any(1))
                if len(found):
                    return NoValue(part, start + int(found[0]), numbers[found[0]].tolist())
    return None


def bounds_of(space: Space) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The least and the greatest numbers of an action space, each of its shape."""
    lows: list[npt.NDArray[Any]] = []
    highs: list[npt.NDArray[Any]] = []
    for part in space.parts():
        for numbers, bound in zip((lows, highs), _part_bounds(part.space), strict=True):
            numbers.append(np.ravel(bound))
    low, high = (np.concatenate(numbers).astype(np.float32).reshape(space.shape) for numbers in (lows, highs))
    return low, high


def _part_bounds(space: Space) -> tuple[npt.ArrayLike, npt.ArrayLike]:
    if isinstance(space, Box):
        return space.bounds()
    if isinstance(space, DiscreteSpace):
        return space.starts, [start + count - 1 for start, count in zip(space.starts, space.counts, strict=True)]
    return np.zeros(space.size), np.ones(space.size)


def _narrowed(actions: npt.NDArray[Any], given: Box) -> Box:
    """The Box of a part, with bounds that suit the data."""
    # Ranges of float32 numbers have to be float32 numbers too.
    lower, upper = (np.clip(bound.astype(np.float64), -LARGEST_BOUND, LARGEST_BOUND) for bound in given.bounds())
    least = np.clip(actions.min(0).astype(np.float64), lower, upper)
    greatest = np.clip(actions.max(0).astype(np.float64), lower, upper)
    low, high = np.where(lower > -LARGEST_BOUND, lower, least), np.where(upper < LARGEST_BOUND, upper, greatest)
    wide = high - low > WIDEST * (greatest - least)
    low, high = np.where(wide, least, low), np.where(wide, greatest, high)
    still = ~varies(least, greatest)
    # Half way, so that no action of the data is far off; it lies between them in float32 too.
    middle = ((least + greatest) / 2).astype(np.float32)
    return Box.bounded(np.where(still, middle, low), np.where(still, middle, high), given.dtype)
