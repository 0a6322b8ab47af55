"""Trajectories as the values that d3rlpy's datasets hold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces import Box, DiscreteSpace
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.data.unpacking import known_spaces
from aaren_rl.errors import DataError

Observations = npt.NDArray[Any] | tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class D3rlpyValues:
    """All steps of a dataset, as d3rlpy keeps them.

    Attributes:
        observations: (steps, ...), vectors or images; a tuple of such arrays for Tuples.
        actions: (steps, numbers), float32; of choices (steps, 1), whole numbers from 0 on.
        discrete: True for choices.
        size: numbers of an action, or choices.
    """

    observations: Observations
    actions: npt.NDArray[Any]
    discrete: bool
    size: int


def values_of(trajectories: Trajectories) -> D3rlpyValues:
    """The steps of trajectories; d3rlpy has no place for the observations after the last actions.

    Warns of truncated episodes of one step. They make no transition, so d3rlpy's buffers leave them out.

    Raises:
        DataError: d3rlpy has no such observations or actions, or all episodes are truncated ones of one step.
    """
    left_out = int(((trajectories.lengths == 1) & ~trajectories.terminated).sum())
    if left_out == trajectories.episodes:
        raise DataError("all episodes are truncated after one step; d3rlpy makes no transition of such an episode")
    if left_out:
        warnings.warn(
            f"d3rlpy leaves out {left_out} of {trajectories.episodes} episodes: they are truncated after one step, "
            "which makes no transition",
            RuntimeWarning,
            stacklevel=3,
        )
    observation_space, action_space = known_spaces(trajectories)
    observations = observation_space.unpack(trajectories.observations, batch=1)
    parts = observations if isinstance(observations, tuple) else (observations,)
    if not all(isinstance(part, np.ndarray) and part.ndim > 1 for part in parts):
        raise DataError(
            f"the observations are of {observation_space}; d3rlpy holds vectors, images, and Tuples of these"
        )
    actions = action_space.unpack(trajectories.actions, batch=1)
    if isinstance(action_space, DiscreteSpace) and not action_space.shape:
        if action_space.starts != (0,):
            raise DataError(f"the choices begin with {action_space.starts[0]}; d3rlpy counts them from 0")
        return D3rlpyValues(observations, actions.reshape(-1, 1), True, action_space.counts[0])
    if isinstance(action_space, Box) and len(action_space.shape) == 1:
        return D3rlpyValues(observations, np.asarray(actions, np.float32), False, action_space.shape[0])
    raise DataError(f"the actions are of {action_space}; d3rlpy holds vectors and single choices")
