"""A wrapper for environments that give their goal in the info of a reset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import RecordConstructorArgs

from aaren_rl.data.hindsight import ACHIEVED, DESIRED
from aaren_rl.errors import InvalidInput

GOAL = "goal"
"""Key of the goal in the info of a reset, as OGBench gives it."""

OBSERVATION = "observation"
"""Part that holds the observation itself, as Gymnasium-Robotics names it."""

Array = npt.NDArray[Any]


class GoalObservation(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Observations in the parts `observation`, `achieved_goal` and `desired_goal`.

    Args:
        env: its observations are vectors, and `info["goal"]` of a reset is an observation to reach, or the part of it
            that `columns` take.
        columns: numbers of an observation that a goal is made of; none for all.

    Raises:
        InvalidInput: the observations are no vectors, or there are no such columns.
    """

    def __init__(self, env: gym.Env[Any, Any], columns: Sequence[int] = ()) -> None:
        RecordConstructorArgs.__init__(self, columns=list(columns))
        gym.Wrapper.__init__(self, env)
        space: gym.Space[Any] = env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise InvalidInput(f"observations are {space}; expected a Box of one dimension to make goals of")
        self.columns = checked_columns(columns, space.shape[0])
        goal = gym.spaces.Box(space.low[self.columns], space.high[self.columns], dtype=space.dtype.type)
        self.observation_space = gym.spaces.Dict({OBSERVATION: space, ACHIEVED: goal, DESIRED: goal})
        self._size, self._goal = space.shape[0], np.zeros(goal.shape, space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode, and takes its goal.

        Raises:
            InvalidInput: the info has no goal, or one of another size.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._goal = self._checked(info.get(GOAL)).astype(self._goal.dtype)
        return self._parts(observation), info

    def step(self, action: Any) -> tuple[dict[str, Array], Any, bool, bool, dict[str, Any]]:
        """Steps, with the goal of the reset."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._parts(observation), reward, terminated, truncated, info

    def _parts(self, observation: Array) -> dict[str, Array]:
        return {OBSERVATION: observation, ACHIEVED: observation[self.columns], DESIRED: self._goal.copy()}

    def _checked(self, given: Any) -> Array:
        if given is None:
            raise InvalidInput(f"the environment gives no goal: the info of its reset has no {GOAL!r}")
        goal = np.asarray(given)
        if goal.shape == (self._size,):
            return goal[self.columns]
        if goal.shape != self._goal.shape:
            raise InvalidInput(
                f"the environment's goal has shape {goal.shape}; expected that of an observation, ({self._size},), or "
                f"of the columns that goals are made of, {self._goal.shape}"
            )
        return goal


def checked_columns(columns: Sequence[int], size: int) -> list[int]:
    """Columns of an observation; all of them where none are named.

    Raises:
        InvalidInput: one is not there, or stands twice.
    """
    if len(set(columns)) < len(columns) or not all(0 <= column < size for column in columns):
        raise InvalidInput(f"goal_columns are {list(columns)}; expected numbers from 0 to {size - 1}, each once")
    return list(columns) or list(range(size))
