"""Contamination: how long one foreign observation changes what an agent does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from aaren_rl.actor import Actor, Target
from aaren_rl.agents import DecisionAgent
from aaren_rl.envs.environments import make_vector
from aaren_rl.envs.episodes import Episodes
from aaren_rl.envs.rollout import roll_out
from aaren_rl.experiments.memory.accuracy import protocol_of

STEP = 64
"""Step of the foreign observation, counted from 0."""

AGES = (1, 4, 16, 64, 256)
"""Numbers of steps since the foreign observation at which actions are compared."""

FAR = 10.0
"""Distance of a foreign observation of a Box from the middle of its bounds, in halves of their range."""


@dataclass(frozen=True)
class Contamination:
    """Effect of one foreign observation.

    Attributes:
        length: of the task.
        episodes: number of episodes, each played with and without the foreign observation.
        deviation: by the number of steps since it (`AGES`): the share of discrete actions that differ, or the mean
            absolute difference of continuous ones.
        accuracy: share of right answers without it.
        disturbed_accuracy: share of right answers with it.
    """

    length: int
    episodes: int
    deviation: dict[int, float]
    accuracy: float
    disturbed_accuracy: float


class Disturbed:
    """An actor that is shown one foreign observation, at the same step in all rows of its first episodes.

    A foreign observation of a Box lies at random `FAR` above or below the middle of its bounds, in every number: beyond
    what data can hold. A discrete one is another one than was shown, as in another episode.

    Args:
        actor: who acts.
        space: of a row's observation: a Box with bounds, or Discrete.
        step: of the foreign observation, counted from 0.
        seed: of the foreign observation.
    """

    def __init__(self, actor: Actor, space: gym.Space[Any], step: int, seed: int) -> None:
        self.actor, self.space, self.step, self.seed = actor, space, step, seed

    def reset(self, target_return: Target | None, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        """See `Actor`."""
        self._acted, self._rng = 0, np.random.default_rng(self.seed)
        self.actor.reset(target_return, num_envs, autoreset_mode)

    def act(
        self,
        observation: Any,
        reward: npt.NDArray[Any] | None,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> Any:
        """See `Actor`."""
        seen = self._foreign(observation) if self._acted == self.step else observation
        self._acted += 1
        return self.actor.act(seen, reward, terminated, truncated)

    def _foreign(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        space = self.space
        if isinstance(space, gym.spaces.Box):
            middle, half = (space.low + space.high) / 2, (space.high - space.low) / 2
            signs = self._rng.choice([-1.0, 1.0], observation.shape)
            return np.asarray(middle + signs * FAR * half, dtype=observation.dtype)
        assert isinstance(space, gym.spaces.Discrete)
        moved = observation - space.start + self._rng.integers(1, space.n, observation.shape)
        return np.asarray(moved % space.n + space.start)


def measure(agent: DecisionAgent, episodes: int, seed: int) -> Contamination:
    """Plays an agent with and without one foreign observation, and compares its actions step by step.

    No action changes what a memory task shows, so both see the same but for that observation.

    Args:
        agent: trained on a memory task.
        episodes: number of episodes, all at once.
        seed: of the first row; row i has seed + i.

    Raises:
        InvalidInput: episodes below 1.
    """
    length = STEP + AGES[-1] + 1
    protocol = protocol_of(agent, length, episodes, seed)
    envs = make_vector(protocol.environment, episodes)
    try:

        def play(actor: Actor) -> Episodes:
            return roll_out(actor, envs, episodes, protocol.target_return, seed, record=True)

        clean, disturbed = play(agent), play(Disturbed(agent, envs.single_observation_space, STEP, seed))
        discrete = not isinstance(envs.single_action_space, gym.spaces.Box)
    finally:
        envs.close()
    ones, others = (
        np.stack([episode.actions[:length] for episode in played.recorded]) for played in (clean, disturbed)
    )  # (episodes, length, *action shape)
    apart = (ones != others) if discrete else np.abs(ones.astype(np.float64) - others)
    return Contamination(
        length=length,
        episodes=episodes,
        deviation={age: float(apart[:, STEP + age].mean()) for age in AGES},
        accuracy=float(clean.returns.mean()),
        disturbed_accuracy=float(disturbed.returns.mean()),
    )
