"""Trajectories as the values that their environment had, the inverse of `Trajectories.from_episodes`."""

from __future__ import annotations

import numpy as np

from aaren_rl.data.packed import map_packed
from aaren_rl.data.spaces import Box, Packed, Space
from aaren_rl.data.trajectories import Episode, Trajectories


def known_spaces(trajectories: Trajectories) -> tuple[Space, Space]:
    """Spaces of observations and actions; unbounded boxes where none is known, and there are numbers alone."""
    observations, actions = trajectories.observation_space, trajectories.action_space
    if observations is None:
        assert isinstance(trajectories.observations, np.ndarray), "images have a space"
        observations = Box.unbounded(trajectories.observations.shape[1:])
    return observations, Box.unbounded(trajectories.actions.shape[1:]) if actions is None else actions


def episodes_of(
    trajectories: Trajectories, observation_space: Space | None = None, action_space: Space | None = None
) -> list[Episode]:
    """The episodes, values as their environment has them.

    Args:
        trajectories: to unpack.
        observation_space: of the observations; None for that of the trajectories.
        action_space: of the actions; None likewise.

    Returns:
        Episodes of T + 1 observations where the trajectories have final ones, else of T.
    """
    known = known_spaces(trajectories)
    spaces = observation_space or known[0], action_space or known[1]
    return [_episode(trajectories, number, *spaces) for number in range(trajectories.episodes)]


def _episode(trajectories: Trajectories, number: int, observations: Space, actions: Space) -> Episode:
    start, end = trajectories.offsets[number : number + 2]
    seen: Packed = map_packed(lambda part: part[start:end], trajectories.observations)
    if trajectories.final_observations is not None:
        last = map_packed(lambda part: part[number : number + 1], trajectories.final_observations)
        seen = map_packed(lambda part, after: np.concatenate([part, after]), seen, last)
    return Episode(
        observations.unpack(seen, batch=1),
        actions.unpack(trajectories.actions[start:end], batch=1),
        trajectories.rewards[start:end],
        bool(trajectories.terminated[number]),
        bool(trajectories.truncated[number]),
    )
