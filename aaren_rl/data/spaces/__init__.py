"""Spaces in words that JSON can hold: made by readers, carried by datasets and agents, and what models are built from.

A type of space is a class here, an encoder in `aaren_rl.model.encoders`, and a head in `aaren_rl.model.heads`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aaren_rl.data.spaces.box import Box
from aaren_rl.data.spaces.discrete import DiscreteSpace
from aaren_rl.data.spaces.nested import DictSpace, NestedSpace, TupleSpace
from aaren_rl.data.spaces.space import Space, space_from_json
from aaren_rl.errors import InvalidInput

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = [
    "Box",
    "DictSpace",
    "DiscreteSpace",
    "NestedSpace",
    "Space",
    "TupleSpace",
    "differences",
    "gymnasium_space",
    "space_from_json",
    "space_of",
]


def space_of(space: gym.Space[Any]) -> Space:
    """The description of a Gymnasium space.

    Raises:
        InvalidInput: a part of it is no array of numbers.
    """
    import gymnasium as gym

    if isinstance(space, gym.spaces.Dict):
        return DictSpace(tuple((key, space_of(part)) for key, part in space.spaces.items()))
    if isinstance(space, gym.spaces.Tuple):
        return TupleSpace(tuple(map(space_of, space.spaces)))
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteSpace((), (int(space.n),), (int(space.start),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return DiscreteSpace(space.nvec.shape, tuple(space.nvec.ravel()), tuple(space.start.ravel()))
    if isinstance(space, gym.spaces.MultiBinary):
        return Box.bounded(np.zeros(space.shape), np.ones(space.shape), "int8")
    if not isinstance(space, gym.spaces.Box):
        raise InvalidInput(
            f"the space is {space}; this version takes observations of numbers (Box, Discrete, MultiDiscrete, "
            "MultiBinary) and Dicts and Tuples of them, and actions in a Box"
        )
    return Box.bounded(space.low, space.high, str(space.dtype))


def gymnasium_space(space: Space) -> gym.Space[Any]:
    """The Gymnasium space that a description is of; bounds are in the space's own dtype."""
    import gymnasium as gym

    if isinstance(space, DictSpace):
        return gym.spaces.Dict({key: gymnasium_space(part) for key, part in space.parts})
    if isinstance(space, TupleSpace):
        return gym.spaces.Tuple(tuple(map(gymnasium_space, space.parts)))
    if isinstance(space, DiscreteSpace):
        counts, starts = (np.array(numbers).reshape(space.shape) for numbers in (space.counts, space.starts))
        if space.shape:
            return gym.spaces.MultiDiscrete(counts, start=starts)
        return gym.spaces.Discrete(int(counts), start=int(starts))
    assert isinstance(space, Box), "there are no others"
    dtype = np.dtype(space.dtype)
    low, high = (np.array(bound).astype(dtype).reshape(space.shape) for bound in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=dtype.type)


def differences(expected: Space, given: Space, name: str) -> list[str]:
    """What differs in parts and shapes between two spaces, a phrase for each part; bounds and dtypes may differ.

    Args:
        expected: space that is needed.
        given: space that is there.
        name: of the values, as "observations".
    """
    if isinstance(expected, NestedSpace) and type(expected) is type(given):
        ours, theirs = dict(expected.named_parts), dict(given.named_parts)
        found = [f"{name} lack the part {key!r}" for key in ours if key not in theirs]
        found += [f"{name} have a part {key!r} too many" for key in theirs if key not in ours]
        shared = [key for key in ours if key in theirs]
        return found + [line for key in shared for line in differences(ours[key], theirs[key], f"{name}[{key!r}]")]
    if isinstance(expected, Box) and isinstance(given, Box):
        same = expected.shape == given.shape
        return [] if same else [f"{name} have shape {given.shape} in place of {expected.shape}"]
    if expected == given:
        return []
    words = {Box: "a Box", DiscreteSpace: "discrete", DictSpace: "a Dict", TupleSpace: "a Tuple"}
    if type(expected) is type(given):
        return [f"{name} are {given} in place of {expected}"]
    return [f"{name} are {words[type(given)]} in place of {words[type(expected)]}"]
