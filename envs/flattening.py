"""Nested spaces as flat ones, in Gymnasium's order of keys; no other file knows that spaces are flattened."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Tuple

from aaren_rl.errors import InvalidInput


def is_continuous(space: gym.Space[Any]) -> bool:
    """True if the space is a Box, or nested spaces that end in Boxes."""
    if isinstance(space, Dict | Tuple):
        return all(map(is_continuous, space.values() if isinstance(space, Dict) else space.spaces))
    return isinstance(space, Box)


def flat_space(space: gym.Space[Any]) -> Box:
    """The Box of vectors that the values of a space are flattened to.

    Raises:
        InvalidInput: its values have no flat form of fixed size.
    """
    try:
        flat = gym.spaces.flatten_space(space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, Box):
        raise InvalidInput(f"{space} cannot be flattened to vectors of fixed size; expected a space made of Boxes")
    return flat


def flat_values(space: gym.Space[Any], values: Any) -> npt.NDArray[Any]:
    """Values of a whole episode, each laid out as `gymnasium.spaces.flatten` does.

    Args:
        space: made of Boxes.
        values: as Minari stores them: an array (time, *shape) for a Box, a dict or tuple of such for nested spaces.

    Returns:
        (time, size).

    Raises:
        InvalidInput: a part of the space is no Box.
    """
    if isinstance(space, Dict):
        return np.concatenate([flat_values(part, values[key]) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, Tuple):
        parts = zip(space.spaces, values, strict=True)
        return np.concatenate([flat_values(part, value) for part, value in parts], axis=1)
    if not isinstance(space, Box):
        raise InvalidInput(f"{space} is not made of Boxes; this agent reads continuous observations and actions only")
    array = np.asarray(values)
    return array.reshape(len(array), -1)


def flatten_observations(env: gym.Env[Any, Any]) -> gym.Env[npt.NDArray[Any], Any]:
    """The environment with vectors for observations; unchanged if it has them already.

    Raises:
        InvalidInput: its observations have no flat form of fixed size.
    """
    space = env.observation_space
    if isinstance(space, Box) and len(space.shape) == 1:
        return env
    flat_space(space)
    return gym.wrappers.FlattenObservation(env)
