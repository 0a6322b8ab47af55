"""Packed values: an array or a tensor, or a dict of such where a space has images (`aaren_rl.data.spaces.Packed`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aaren_rl.data.spaces.space import NUMBERS


def map_packed(function: Callable[..., Any], *values: Any) -> Any:
    """What a function makes of arrays or tensors, part by part; all values have the same parts."""
    if isinstance(values[0], dict):
        return {key: function(*(value[key] for value in values)) for key in values[0]}
    return function(*values)


def arrays_of(values: Any) -> dict[str, Any]:
    """The arrays or tensors by their parts; a single one is the numbers."""
    return values if isinstance(values, dict) else {NUMBERS: values}


def numbers_of(values: Any) -> Any:
    """The array or tensor of numbers; None where there are images alone."""
    return values.get(NUMBERS) if isinstance(values, dict) else values


def first_of(values: Any) -> Any:
    """Any one of the arrays or tensors, for what all of them share: length, batch, device."""
    return next(iter(values.values())) if isinstance(values, dict) else values


def shapes_of(values: Any, batch: int) -> Any:
    """Shapes of single values, as `Space.packed_shapes` has them.

    Args:
        values: packed.
        batch: number of dimensions in front of a value's own.
    """
    return map_packed(lambda part: tuple(part.shape[batch:]), values)
