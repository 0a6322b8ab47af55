"""The convention of Stable-Baselines3: `predict`, for its `evaluate_policy` and whatever else calls it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from aaren_rl.actor import Target
from aaren_rl.agents.states import ActingState, Array
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.spaces import NestedSpace, Space, TextSpace
from aaren_rl.errors import InvalidInput


class StableBaselines3Policy:
    """What `aaren_rl.agents.agent.Agent` offers to Stable-Baselines3."""

    card: AgentCard
    observation_space: Space
    temperature: float
    _state: ActingState | None
    _timestep: Array
    _starting: bool
    _waits_for_reset: bool
    _asks_anew: bool
    # What waits to be asked for in each row, NaN for nothing.
    _asked: Array
    _target: Array

    def __init__(self) -> None:
        self._observed_reward: Array | None = None
        self._target_given: Target | Array | None = None
        self._goal_given: Any = None
        self._single = False
        # Whether the last predict started episodes without having been given a state, and an environment to check.
        self._predicted_anew, self._checks_environment = False, False

    def check_environment(self, env: Any) -> None:
        """See `aaren_rl.agents.agent.Agent.check_environment`."""
        raise NotImplementedError

    def reset(
        self,
        target_return: Target | Array | None,
        num_envs: int | None,
        autoreset_mode: AutoresetMode,
        goal: Any = None,
    ) -> None:
        """See `aaren_rl.agents.agent.Agent.reset`."""
        raise NotImplementedError

    def _forget_asked(self) -> None:
        raise NotImplementedError

    def act(
        self,
        observation: Any,
        reward: Array | None = None,
        terminated: bool | Array = False,
        *,
        deterministic: bool = False,
    ) -> Any:
        """See `aaren_rl.agents.agent.Agent.act`."""
        raise NotImplementedError

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, tuple[Array, ...] | None]:
        """Stable-Baselines3's `predict`.

        The state is all that the agent carries, the target return of each row included: environments can be
        interleaved, and states kept and gone back to. What `ask` asks for waits in the state that was returned last. A
        goal is not in it: all follow the goal of the last `reset`.
        States of an agent and of its export are not the same numbers, so keep them apart. Without a state, the agent
        asks for the target return of the last `reset`. A second call without a state in a row, which would start anew
        again, warns, unless `reset` was called in between or `episode_start` says so.

        That convention hands over no rewards, without which the return-to-go cannot count down: pass
        `callback=agent.sb3_callback` to `evaluate_policy`, wrap the environment in `ObserveReward`, or call
        `observe_reward` before every `predict`.

        Args:
            observation: of the observation space's shape, or (rows, *shape), or a mapping of such parts.
            state: None to start anew, else as returned before.
            episode_start: (rows,) bool, True where a new episode starts with this observation.
            deterministic: True for the most likely action; False samples one, which takes an agent with a temperature.

        Returns:
            The action, with the batch dimension of the observation, and the state to hand in next: arrays whose first
            dimension is the rows.

        Raises:
            InvalidInput: deterministic is False and the agent has no temperature, the state is not one of this agent,
                or as `act`.
        """
        if not deterministic and not self.temperature:
            raise InvalidInput(
                "predict was asked for random actions; this agent is deterministic: pass deterministic=True, or make "
                "the agent with a temperature"
            )
        rows = self._rows(observation)
        batch = observation if rows else _with_batch(observation)
        if state is None:
            if self._predicted_anew and (episode_start is None or not np.all(episode_start)):
                warnings.warn(
                    "predict was called again without a state, so it starts a new episode and forgets all that it saw; "
                    "pass what it returned, as action, state = agent.predict(observation, state), and the reward with "
                    "agent.observe_reward(reward); call agent.reset() where an episode starts",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._reset_for_predict(rows)
            self._predicted_anew = self._checks_environment = True
            action = self.act(batch, deterministic=deterministic)
        else:
            self._predicted_anew = False
            self._restore(state, rows)
            starts = np.zeros(len(self._timestep), dtype=np.bool_) if episode_start is None else episode_start
            if self._observed_reward is None and not np.all(starts):
                warnings.warn(
                    "predict got no reward of the last step, so the return-to-go stays as it is; "
                    "pass callback=agent.sb3_callback to evaluate_policy, or call agent.observe_reward(reward)",
                    RuntimeWarning,
                    stacklevel=2,
                )
            reward = np.zeros(len(self._timestep)) if self._observed_reward is None else self._observed_reward
            action = self.act(batch, reward, terminated=starts, deterministic=deterministic)
        self._observed_reward = None
        assert self._state is not None
        # Every state has an array of its own that `ask` writes into.
        self._forget_asked()
        carried = self._timestep.copy(), self._target.astype(np.float64), self._asked, *self._state.save()
        return (action if rows else _first(action)), carried

    def _reset_for_predict(self, rows: int | None) -> None:
        # An SB3 vector environment returns the first observation of the next episode with the end of the last.
        goal = _with_batch(self._goal_given) if self._single and self._goal_given is not None else self._goal_given
        self.reset(self._target_given, rows or 1, AutoresetMode.SAME_STEP, goal)

    def _restore(self, state: tuple[Array, ...], rows: int | None) -> None:
        """Goes on from a state that `predict` returned.

        Raises:
            InvalidInput: it is not a state of this agent, or of another number of rows.
        """
        if not isinstance(state, tuple) or len(state) < 3 or {np.shape(part) for part in state[:3]} != {(rows or 1,)}:
            given = [np.shape(part) for part in state] if isinstance(state, tuple) else type(state).__name__
            raise InvalidInput(
                f"the state is {given}, and the observation has {rows or 1} rows; pass what predict returned for them"
            )
        # Not every state knows if its episodes are under way; those that were saved are.
        if self._state is None or self._single or self._waits_for_reset or len(self._timestep) != len(state[0]):
            reward = self._observed_reward
            self._reset_for_predict(rows)
            self._observed_reward = reward
        assert self._state is not None
        self._state.restore(state[3:])
        self._timestep, self._starting, self._asked = np.array(state[0]), False, np.array(state[2])
        waits = ~np.isnan(self._asked)
        self._target, self._asks_anew = np.where(waits, self._asked, state[1]), bool(waits.any())

    def _rows(self, observation: Any) -> int | None:
        """Rows of a batch of observations; None for a single observation."""
        first = self.observation_space.parts()[0]
        space, value = self.observation_space, observation
        while isinstance(space, NestedSpace):
            value, space = space.values_of(value)[0], space.named_parts[0][1]
        dimensions = 0 if isinstance(first.space, TextSpace) else len(first.space.shape)
        shape = np.shape(value)
        return shape[0] if len(shape) > dimensions else None

    def observe_reward(self, reward: float | Array) -> None:
        """Takes the reward of the last step, for the next `predict`."""
        self._observed_reward = np.atleast_1d(np.asarray(reward, dtype=np.float64)).copy()

    def drop_reward(self) -> None:
        """Forgets a reward that no `predict` has taken."""
        self._observed_reward = None

    @property
    def has_reward(self) -> bool:
        """True if a reward waits for the next `predict`."""
        return self._observed_reward is not None

    def sb3_callback(self, local_variables: Mapping[str, Any], _global_variables: Mapping[str, Any]) -> None:
        """A callback for Stable-Baselines3's `evaluate_policy` that passes the rewards on to the agent.

        Raises:
            InvalidInput: the agent does not fit the environment (see `check_environment`).
        """
        if self._checks_environment and "env" in local_variables:
            self.check_environment(local_variables["env"])
        self._checks_environment = False
        self.observe_reward(local_variables["rewards"])


class ObserveReward(gym.Wrapper[Any, Any, Any, Any]):
    """Hands every reward of an environment to an agent, for loops that call `predict` and have no place for rewards.

    One environment at a time: a step before `predict` has taken the reward of the last one is an error.

    Args:
        env: to wrap.
        agent: that acts in it.
    """

    def __init__(self, env: gym.Env[Any, Any], agent: StableBaselines3Policy) -> None:
        super().__init__(env)
        self._agent = agent

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; the last reward of the one before is dropped."""
        self._agent.drop_reward()
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment, and hands its reward on.

        Raises:
            InvalidInput: the agent still has the reward of the step before.
        """
        if self._agent.has_reward:
            raise InvalidInput(
                "the agent still has a reward that no predict has taken; call predict after every step, and where "
                "several environments take turns agent.observe_reward before each predict, without this wrapper"
            )
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._agent.observe_reward(float(reward))
        return observation, reward, terminated, truncated, info


def _with_batch(observation: Any) -> Any:
    """A single observation as a batch of one."""
    if isinstance(observation, Mapping):
        return {key: _with_batch(part) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(map(_with_batch, observation))
    return [observation] if isinstance(observation, str) else np.asarray(observation)[None]


def _first(action: Any) -> Any:
    """The first of a batch of actions."""
    if isinstance(action, Mapping):
        return {key: _first(part) for key, part in action.items()}
    return tuple(map(_first, action)) if isinstance(action, tuple) else action[0]
