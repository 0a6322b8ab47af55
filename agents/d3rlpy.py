"""d3rlpy: its datasets from trajectories and back, and an agent that its evaluation of transformers lets act."""

from __future__ import annotations

from typing import Any

import d3rlpy
import gymnasium as gym
import numpy as np
from d3rlpy.dataset import MDPDataset, ReplayBufferBase

from aaren_rl.actor import Target
from aaren_rl.agents.agent import Agent
from aaren_rl.data.d3rlpy_values import values_of
from aaren_rl.data.spaces import Space
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import DataError


def mdp_dataset(trajectories: Trajectories) -> MDPDataset:
    """A dataset of d3rlpy with the same episodes; those that are not terminated end by a timeout.

    d3rlpy leaves out truncated episodes of one step, which make no transition; a warning counts them. It has no place
    for the observation after the last action. Actions stay as they are: algorithms whose actions
    lie between -1 and 1 need d3rlpy's `action_scaler` where the environment's do not.

    Raises:
        DataError: d3rlpy has no such observations or actions, or all episodes are truncated ones of one step.
    """
    values = values_of(trajectories)
    terminals, timeouts = (np.zeros(trajectories.steps, np.float32) for _ in range(2))
    ends = trajectories.offsets[1:] - 1
    terminals[ends], timeouts[ends] = trajectories.terminated, ~trajectories.terminated
    action_space = d3rlpy.ActionSpace.DISCRETE if values.discrete else d3rlpy.ActionSpace.CONTINUOUS
    return MDPDataset(
        values.observations,
        values.actions,
        trajectories.rewards,
        terminals,
        timeouts,
        action_space=action_space,
        action_size=values.size,
    )


def trajectories_of(
    dataset: ReplayBufferBase,
    observation_space: Space | gym.Space[Any] | None = None,
    action_space: Space | gym.Space[Any] | None = None,
) -> Trajectories:
    """The episodes of a dataset or replay buffer of d3rlpy.

    Episodes that are not terminated count as cut off. So does the episode under way of a buffer that `append` fills,
    before `clip_episode` ends it. None has an observation after its last action.

    Args:
        dataset: to read.
        observation_space: of the observations, Gymnasium's or ours; None for what they show.
        action_space: of the actions, Gymnasium's or ours, with the bounds, which d3rlpy does not keep; None for the
            choices or vectors that d3rlpy counts.

    Raises:
        DataError: there is no episode, or the arrays make no episodes.
    """
    if not dataset.episodes:
        raise DataError("the dataset has no episode; expected at least one")
    info = dataset.dataset_info
    discrete = info.action_space == d3rlpy.ActionSpace.DISCRETE
    if discrete and action_space is None:
        action_space = gym.spaces.Discrete(info.action_size)
    episodes = [
        Episode(
            one.observations if isinstance(one.observations, np.ndarray) else tuple(one.observations),
            one.actions.reshape(-1) if discrete else one.actions,
            one.rewards.reshape(-1),
            bool(one.terminated),
            not one.terminated,
        )
        for one in dataset.episodes
    ]
    return Trajectories.from_episodes(episodes, observation_space, action_space)


class StatefulAgent:
    """An agent as d3rlpy's `StatefulTransformerWrapper`, for `evaluate_transformer_with_environment`.

    d3rlpy's `EnvironmentEvaluator` is for agents without a state: it hands over neither rewards nor starts of episodes.

    Args:
        agent: that acts.
        target_return: return to ask for; None for the agent's default.

    Raises:
        InvalidInput: the target return is not one for this agent (see `Agent.reset`).
    """

    def __init__(self, agent: Agent, target_return: Target | None = None) -> None:
        self.agent, self.target_return = agent, target_return
        self.reset()

    def reset(self) -> None:
        """Starts an episode."""
        self.agent.reset(self.target_return)
        self._starting = True

    def predict(self, x: Any, reward: float) -> Any:
        """The next action.

        Args:
            x: observation.
            reward: of the last action; of no meaning at the start of an episode.
        """
        action = self.agent.act(x, None if self._starting else reward)
        self._starting = False
        return action
