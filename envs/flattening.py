"""Environments with nested or shaped observations as ones of vectors; no other file knows that they are flattened."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy.typing as npt

from aaren_rl.data.spaces import Box, gymnasium_space, space_of


class FlatObservations(gym.ObservationWrapper[npt.NDArray[Any], Any, Any], gym.utils.RecordConstructorArgs):
    """An environment whose observations are vectors, in the one order of `aaren_rl.data.spaces`.

    Gymnasium's own FlattenObservation takes the order in which a Dict was written down, which files do not keep.

    Raises:
        InvalidInput: a part of the observations is no array of numbers.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.raw_space = space_of(env.observation_space)
        self.observation_space = gymnasium_space(self.raw_space.flat())

    def observation(self, observation: Any) -> npt.NDArray[Any]:
        """The observation as a vector."""
        return self.raw_space.flatten(observation)


def flatten_observations(env: gym.Env[Any, Any]) -> gym.Env[npt.NDArray[Any], Any]:
    """The environment with vectors for observations; unchanged if it has them already.

    Raises:
        InvalidInput: a part of its observations is no array of numbers.
    """
    space = space_of(env.observation_space)
    return env if isinstance(space, Box) and len(space.shape) == 1 else FlatObservations(env)
