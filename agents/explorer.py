"""An actor that explores: actions of an agent whose head predicts one action alone, with noise on them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from gymnasium.vector import AutoresetMode

from aaren_rl.actor import Target
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.states import Array
from aaren_rl.data.bounds import bounds_of
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput


class Explorer:
    """Adds Gaussian noise to an agent's actions, and tells the agent what was done.

    Args:
        agent: whose actions are vectors.
        noise: standard deviation, as a share of half the range of each number.
        seed: of the noise.

    Raises:
        InvalidInput: the actions are no vectors, or the noise is below 0.
    """

    def __init__(self, agent: Agent, noise: float, seed: int) -> None:
        if not isinstance(agent.action_space, Box):
            raise InvalidInput("noise is for actions that are vectors; give the agent a temperature instead")
        if not 0 <= noise < np.inf:
            raise InvalidInput(f"noise is {noise}; expected a number from 0 on")
        self.agent, self._low_high = agent, bounds_of(agent.action_space)
        self._deviation = noise * (self._low_high[1] - self._low_high[0]) / 2
        self._generator = np.random.default_rng(seed)
        self._done: Array | None = None

    def reset(self, target_return: Target | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """See `aaren_rl.actor.Actor.reset`."""
        self.agent.reset(target_return, num_envs, autoreset_mode)
        self._done = None

    def act(self, observation: Any, reward: Array | None, terminated: Array, truncated: Array) -> Array:
        """See `aaren_rl.actor.Actor.act`."""
        action = self.agent.act(observation, reward, terminated, truncated, executed_action=self._done)
        noisy = action + self._deviation * self._generator.standard_normal(action.shape)
        done = np.clip(noisy, *self._low_high)
        done = (done if action.dtype.kind == "f" else np.rint(done)).astype(action.dtype)
        self._done = done
        return cast(Array, done)
