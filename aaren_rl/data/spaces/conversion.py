"""Descriptions of Gymnasium's spaces and of bare arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aaren_rl.data.spaces.box import Box
from aaren_rl.data.spaces.discrete import BinarySpace, DiscreteSpace
from aaren_rl.data.spaces.image import ImageSpace, image_of
from aaren_rl.data.spaces.nested import DictSpace, TupleSpace
from aaren_rl.data.spaces.space import Space
from aaren_rl.data.spaces.text import TextSpace
from aaren_rl.errors import InvalidInput

if TYPE_CHECKING:
    import gymnasium as gym

LONGEST_TEXT = 2**14
"""Characters of a text in Gymnasium's description of a `TextSpace`."""


def space_of(space: gym.Space[Any], image: bool = True) -> Space:
    """The description of a Gymnasium space.

    Args:
        space: of an environment or of data.
        image: True if arrays of bytes may be images; False for actions.

    Raises:
        InvalidInput: it is a space that no model takes (Graph, Sequence, OneOf and spaces of others).
    """
    import gymnasium as gym

    if isinstance(space, gym.spaces.Dict):
        return DictSpace(tuple((str(key), space_of(part, image)) for key, part in space.spaces.items()))
    if isinstance(space, gym.spaces.Tuple):
        return TupleSpace(tuple(space_of(part, image) for part in space.spaces))
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteSpace((), (int(space.n),), (int(space.start),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return DiscreteSpace(space.nvec.shape, tuple(space.nvec.ravel()), tuple(space.start.ravel()))
    if isinstance(space, gym.spaces.MultiBinary):
        return BinarySpace(space.shape)
    # Packages have spaces of texts of their own, as MiniGrid's missions.
    if isinstance(space, gym.spaces.Text) or (space.dtype is not None and space.dtype.kind == "U"):
        return TextSpace()
    if not isinstance(space, gym.spaces.Box):
        raise InvalidInput(
            f"the space is {space}; this version takes Box, Discrete, MultiDiscrete, MultiBinary, Text, and Dicts and "
            "Tuples of them: write a wrapper that gives one of those"
        )
    if image and space.shape and (found := image_of(space.shape, str(space.dtype), space.low.min(), space.high.max())):
        return found
    return Box.bounded(space.low, space.high, str(space.dtype))


def gymnasium_space(space: Space) -> gym.Space[Any]:
    """The Gymnasium space that a description is of; bounds are in the space's own dtype."""
    import gymnasium as gym

    if isinstance(space, DictSpace):
        return gym.spaces.Dict({key: gymnasium_space(part) for key, part in space.by_key})
    if isinstance(space, TupleSpace):
        return gym.spaces.Tuple(tuple(map(gymnasium_space, space.by_place)))
    if isinstance(space, DiscreteSpace):
        counts, starts = (np.array(numbers).reshape(space.shape) for numbers in (space.counts, space.starts))
        if space.shape:
            return gym.spaces.MultiDiscrete(counts, start=starts)
        return gym.spaces.Discrete(int(counts), start=int(starts))
    if isinstance(space, BinarySpace):
        return gym.spaces.MultiBinary(space.shape)
    if isinstance(space, TextSpace):
        letters = frozenset(map(chr, range(32, 127))) | frozenset("".join(space.vocabulary))
        return gym.spaces.Text(LONGEST_TEXT, min_length=0, charset=letters)
    if isinstance(space, ImageSpace):
        dtype = np.dtype(space.dtype)
        return gym.spaces.Box(dtype.type(space.low), dtype.type(space.high), space.shape, dtype.type)
    assert isinstance(space, Box), "there are no others"
    dtype = np.dtype(space.dtype)
    least, greatest = (np.array(bound).reshape(space.shape) for bound in (space.low, space.high))
    if dtype.kind in "iu":
        # Whole numbers have no infinities.
        least, greatest = np.maximum(least, np.iinfo(dtype).min), np.minimum(greatest, np.iinfo(dtype).max)
        # float64 rounds the greatest int64 up, and the cast would wrap.
        low = np.where(least <= np.iinfo(dtype).min, np.iinfo(dtype).min, least).astype(dtype)
        high = np.array([_whole(value, dtype) for value in greatest.ravel()], dtype).reshape(space.shape)
    else:
        low, high = least.astype(dtype), greatest.astype(dtype)
    return gym.spaces.Box(low, high, dtype=dtype.type)


def _whole(value: float, dtype: np.dtype[Any]) -> int:
    greatest = int(np.iinfo(dtype).max)
    return greatest if value >= greatest else int(value)


def space_of_values(values: Any) -> Space:
    """The space that stacked values of one episode show: what a person's own arrays are, where no space is given.

    Args:
        values: (steps, ...), an array, texts, or a mapping or tuple of such.

    Raises:
        InvalidInput: they are no arrays.
    """
    if isinstance(values, Mapping):
        return DictSpace(tuple((str(key), space_of_values(part)) for key, part in values.items()))
    if isinstance(values, tuple):
        return TupleSpace(tuple(map(space_of_values, values)))
    array = np.asarray(values)
    if array.dtype.kind in "USO" and all(isinstance(value, str | bytes) for value in array.ravel()):
        return TextSpace()
    if array.ndim < 1 or array.dtype.kind not in "fiub":
        raise InvalidInput(f"values are an array of {array.dtype} of shape {array.shape}; expected one number or more")
    shape = array.shape[1:]
    bounds = (0.0, 255.0) if array.dtype == np.uint8 else (-np.inf, np.inf)
    return image_of(shape, str(array.dtype), *bounds) or Box.unbounded(shape, str(array.dtype))
