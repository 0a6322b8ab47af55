"""What all agents that step a state share: return-to-go, episodes in a batch, the conventions of other libraries."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import InvalidInput
from aaren_rl.stepping.step import ACTION, RETURN_TO_GO, TIMESTEP

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Acting:
    """How an agent comes from what it saw to its next action.

    Attributes:
        mode: "stream" steps a state that holds the whole episode; "reset" empties what the mixers remember every so
            many steps of an episode; "window" keeps no state and runs the last steps through the model again, as public
            Decision Transformers do.
        steps: between two resets, or of the window.
    """

    mode: Literal["stream", "reset", "window"] = "stream"
    steps: int = 0

    @classmethod
    def parse(cls, text: str) -> Acting:
        """From its written form: "stream", "reset:20" or "window:20".

        Raises:
            InvalidInput: it is none of these.
        """
        if text == "stream":
            return cls()
        if found := re.fullmatch(r"(reset|window):([1-9]\d*)", text):
            return cls("reset" if found[1] == "reset" else "window", int(found[2]))
        raise InvalidInput(f"acting is {text!r}; expected stream, reset:STEPS or window:STEPS, as window:20")

    def __str__(self) -> str:
        return self.mode if self.mode == "stream" else f"{self.mode}:{self.steps}"


class Stepping(Protocol):
    """A model that is stepped, with the state of all rows of the batch."""

    def restart(self, rows: Array) -> None:
        """Puts the rows marked in `rows`, (batch,) bool, back at the start of an episode."""
        ...

    def forget(self, rows: Array) -> None:
        """Empties what the mixers remember of the rows marked in `rows`, whose episodes go on."""
        ...

    def step(self, observation: Array, reward: Array, return_to_go: Array, timestep: Array) -> Array:
        """The next actions, (batch, action size).

        Args:
            observation: (batch, observation size).
            reward: float32, of the last actions, (batch,); without meaning at the first step of an episode.
            return_to_go: float64, (batch,); the reward is taken off already.
            timestep: (batch,).
        """
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all rows."""
        ...


class Rows:
    """Steps a function of arrays whose state is one row of numbers per environment (see `aaren_rl.stepping.step.Step`).

    Args:
        function: (observation, reward, state) to (action, state); the state is float64.
        start: the row before an episode, (state size,).
        rows: how many environments.
        action_size: components of an action.
    """

    def __init__(
        self,
        function: Callable[[Array, Array, Array], tuple[Array, Array]],
        start: Array,
        rows: int,
        action_size: int,
    ) -> None:
        self.function, self.start = function, start
        self.state = np.tile(start, (rows, 1))
        self.remembered = slice(ACTION + action_size, None)

    def restart(self, rows: Array) -> None:
        """See `Stepping.restart`."""
        self.state[rows] = self.start

    def forget(self, rows: Array) -> None:
        """See `Stepping.forget`."""
        self.state[rows, self.remembered] = self.start[self.remembered]

    def step(self, observation: Array, reward: Array, return_to_go: Array, timestep: Array) -> Array:
        """See `Stepping.step`."""
        # The agent counts the return-to-go itself; the function takes the reward off once more.
        self.state[:, RETURN_TO_GO], self.state[:, TIMESTEP] = return_to_go + reward, timestep
        action, self.state = self.function(observation, reward, self.state)
        return action

    @property
    def state_bytes(self) -> int:
        """See `Stepping.state_bytes`."""
        return self.state.nbytes


class SteppedAgent:
    """Acts in one environment or in a batch of them, by stepping a state once per timestep.

    Subclasses implement `_begin`, which makes the model ready for a number of environments.

    Args:
        card: what the agent was trained on and for.
        action_low: lowest actions, (action size,).
        action_high: highest actions, (action size,).
        observation_size: components of an observation.
        longest: steps that an episode can have; None for any number.
        acting: how it acts, as `Acting.parse` takes it; None for what the card says.
        renew: steps of an episode after which its target return is asked for anew; 0 for never. For episodes longer
            than the data's, in which the return-to-go would leave all that was trained on; the mixers' state goes on.

    Raises:
        InvalidInput: acting is not understood, or renew is below 0.
    """

    def __init__(
        self,
        card: AgentCard,
        action_low: Array,
        action_high: Array,
        observation_size: int,
        longest: int | None,
        acting: str | None = None,
        renew: int = 0,
    ) -> None:
        if renew < 0:
            raise InvalidInput(f"renew is {renew}; expected a number of steps, or 0 for never")
        self.acting = Acting.parse(card.acting if acting is None else acting)
        self.card = replace(card, acting=str(self.acting))
        self.action_low, self.action_high = action_low, action_high
        self.observation_size, self.longest = observation_size, longest
        self.renew = renew
        self._stepping: Stepping | None = None
        self._sb3_rewards: Array | None = None
        self._asked: float | Array | None = None

    def _begin(self, rows: int) -> Stepping:
        raise NotImplementedError

    @property
    def state_bytes(self) -> int:
        """Bytes of the state carried from step to step, all rows together.

        Raises:
            InvalidInput: the agent was not reset yet.
        """
        return self._running().state_bytes

    @property
    def return_to_go(self) -> Array:
        """What is still asked for in each row, (rows,), as of the last `act`.

        Raises:
            InvalidInput: the agent was not reset yet.
        """
        self._running()
        return self._return_to_go.copy()

    def check_environment(self, env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Makes sure that the agent fits an environment.

        Raises:
            InvalidInput: its observations or actions have another size or range.
        """
        vector = isinstance(env, gym.vector.VectorEnv)
        observation_space = env.single_observation_space if vector else env.observation_space  # type: ignore[union-attr]
        action_space = env.single_action_space if vector else env.action_space  # type: ignore[union-attr]
        trained = f"this agent was trained on {self.card.dataset_id} for {self.card.env_id}"
        if observation_space.shape != (self.observation_size,):
            raise InvalidInput(
                f"the environment's observations have shape {observation_space.shape}; the agent expects "
                f"({self.observation_size},); {trained}"
            )
        if not isinstance(action_space, gym.spaces.Box) or action_space.shape != self.action_low.shape:
            raise InvalidInput(
                f"the environment's action space is {action_space}; the agent gives Box actions of shape "
                f"{self.action_low.shape}; {trained}"
            )
        low, high = self.action_low, self.action_high
        if (low < action_space.low - 1e-5).any() or (high > action_space.high + 1e-5).any():
            raise InvalidInput(
                f"the agent gives actions from {low} to {high}, outside the environment's {action_space}; {trained}"
            )

    def reset(
        self,
        target_return: float | Array | None = None,
        num_envs: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Starts new episodes everywhere.

        Args:
            target_return: what to ask for, one number or one per environment; None for the first of the agent's card.
            num_envs: rows of the batch; None for a single environment, without a batch dimension.
            autoreset_mode: how the vector environment starts new episodes (`envs.metadata["autoreset_mode"]`; the
                default is Gymnasium's). NEXT_STEP gives an episode's last observation before the first of the next,
                and the action in between is ignored; with SAME_STEP, and with DISABLED when you reset the ended rows
                yourself before you call `act`, the observation after the end is the next episode's first.

        Raises:
            InvalidInput: a number of environments below 1, or a target return that is not finite.
        """
        if num_envs is not None and num_envs < 1:
            raise InvalidInput(f"num_envs is {num_envs}; expected at least 1, or None for a single environment")
        rows = num_envs or 1
        target = np.array(self.card.target_returns[0] if target_return is None else target_return, dtype=np.float64)
        if not np.isfinite(target).all() or target.shape not in ((), (rows,)):
            raise InvalidInput(f"target_return is {target_return}; expected a finite number, or one for each of {rows}")
        self._asked = target_return
        self._single = num_envs is None
        self._waits_for_reset = autoreset_mode == AutoresetMode.NEXT_STEP and not self._single
        self._target = np.broadcast_to(target, (rows,))
        self._return_to_go = self._target.copy()
        self._timestep = np.zeros(rows, dtype=np.int64)
        self._starting = True
        self._none, self._no_reward = np.zeros(rows, dtype=np.bool_), np.zeros(rows)
        self._ended = self._none
        self._stepping = self._begin(rows)

    def act(
        self,
        observation: Array,
        reward: float | Array | None = None,
        terminated: bool | Array = False,
        truncated: bool | Array = False,
    ) -> Array:
        """The next action, from what the environment just returned.

        Args:
            observation: (observation size,), or (rows, observation size) for a batch.
            reward: of the last action, a number or (rows,); None only on the first call after `reset`.
            terminated: whether that step ended the episode, a bool or (rows,).
            truncated: whether that step cut the episode off.

        Returns:
            The action, (action size,) or (rows, action size), float32, inside the bounds the agent was trained with.

        Raises:
            InvalidInput: not reset yet, shapes that do not fit, no reward, values that are not finite, or more
                steps than a learned timestep embedding holds.
        """
        stepping = self._running()
        rows = len(self._timestep)
        observed = self._checked("observation", observation, (rows, self.observation_size), np.float32)
        going_on = terminated is False and truncated is False
        done = (
            self._none
            if going_on
            else self._row_flags("terminated", terminated) | self._row_flags("truncated", truncated)
        )
        if reward is None and not self._starting:
            raise InvalidInput("act was called without a reward; give the reward of the last action, or reset first")
        if self._single and done[0]:
            raise InvalidInput("the episode has ended; reset the environment and the agent before the next act")
        # In NEXT_STEP mode an ended row rests for one call, whose action the environment ignores.
        resting, restart = (done, self._ended) if self._waits_for_reset else (self._none, done)
        earned = self._no_reward if reward is None else self._checked("reward", reward, (rows,), np.float64)
        if not self._starting:
            self._return_to_go = self._return_to_go - earned
            self._timestep = self._timestep + ~resting
            if restart.any():
                self._return_to_go = np.where(restart, self._target, self._return_to_go)
                self._timestep = np.where(restart, 0, self._timestep)
                stepping.restart(restart)
        if self.renew and (due := (self._timestep > 0) & (self._timestep % self.renew == 0) & ~resting).any():
            self._return_to_go = np.where(due, self._target, self._return_to_go)
        if self.longest is not None and self._timestep.max() >= self.longest:
            raise InvalidInput(
                f"the episode is longer than the {self.longest} steps of the agent's learned timestep embedding; train "
                "with --timesteps none or sinusoidal, or a larger --max-steps"
            )
        if (
            self.acting.mode == "reset"
            and (due := (self._timestep > 0) & (self._timestep % self.acting.steps == 0)).any()
        ):
            stepping.forget(due)
        # A resting row steps on an observation that belongs to no action; it is reset at the next call anyway.
        action = stepping.step(observed, earned.astype(np.float32), self._return_to_go, self._timestep)
        self._ended, self._starting = resting, False
        return action[0].copy() if self._single else action.copy()

    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """Stable-Baselines3's `predict`, for its `evaluate_policy` and whatever else calls it.

        That protocol hands over no rewards, without which the return-to-go cannot count down: pass
        `callback=agent.sb3_callback` to `evaluate_policy`, or call `observe_reward` after every step. It asks for the
        target return of the last `reset`. The state is kept inside the agent; what is returned and taken back is a
        token that says that an episode is under way.

        Args:
            observation: (observation size,) or (rows, observation size).
            state: None to start anew, else as returned before.
            episode_start: (rows,) bool, where a new episode starts with this observation.
            deterministic: must be True; the agent has no random actions.

        Returns:
            The action, of the batch dimension of the observation, and the state to hand in next.

        Raises:
            InvalidInput: deterministic is False, or as `act`.
        """
        if not deterministic:
            raise InvalidInput(
                "predict was asked for random actions; this agent is deterministic, pass deterministic=True"
            )
        observation = np.asarray(observation)
        rows = len(observation) if observation.ndim > 1 else None
        if state is None or self._stepping is None:
            # An SB3 vector environment returns the first observation of the next episode with the end of the last.
            self.reset(self._asked, rows or 1, AutoresetMode.SAME_STEP)
            self._sb3_rewards = None
            action = self.act(np.atleast_2d(observation))
        else:
            starts = np.zeros(len(self._timestep), dtype=np.bool_) if episode_start is None else episode_start
            if self._sb3_rewards is None and not np.all(starts):
                warnings.warn(
                    "predict got no reward of the last step, so the return-to-go stays as it is; "
                    "pass callback=agent.sb3_callback to evaluate_policy, or call agent.observe_reward(reward)",
                    RuntimeWarning,
                    stacklevel=2,
                )
            reward = np.zeros(len(self._timestep)) if self._sb3_rewards is None else self._sb3_rewards
            self._sb3_rewards = None
            action = self.act(np.atleast_2d(observation), reward, terminated=starts)
        return (action if rows else action[0]), (self._timestep.copy(),)

    def observe_reward(self, reward: float | Array) -> None:
        """Tells the agent the reward of the last step, for the next `predict`."""
        self._sb3_rewards = np.atleast_1d(np.asarray(reward, dtype=np.float64)).copy()

    def sb3_callback(self, local_variables: Mapping[str, Any], _global_variables: Mapping[str, Any]) -> None:
        """A callback for Stable-Baselines3's `evaluate_policy` that passes the rewards on to the agent."""
        self.observe_reward(local_variables["rewards"])

    def _running(self) -> Stepping:
        if self._stepping is None:
            raise InvalidInput("the agent has no episode under way; call reset first")
        return self._stepping

    def _checked(self, name: str, given: float | Array, shape: tuple[int, ...], kind: type[np.floating]) -> Array:
        try:
            array = np.asarray(given)
            if array.dtype != kind:
                with np.errstate(over="ignore"):
                    array = array.astype(kind)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{name} is not made of numbers: {error}") from error
        if self._single:
            array = array[None]
        if array.shape != shape:
            expected = shape[1:] if self._single else shape
            raise InvalidInput(f"{name} has shape {np.shape(given)}; expected {expected}")
        if not np.isfinite(array).all():
            raise InvalidInput(f"{name} holds a NaN or an infinite value: {given}")
        return array

    def _row_flags(self, name: str, given: bool | Array) -> npt.NDArray[np.bool_]:
        flags = np.asarray(given, dtype=np.bool_)
        if flags.shape not in ((), self._timestep.shape):
            raise InvalidInput(f"{name} has shape {flags.shape}; expected {self._timestep.shape}")
        return np.broadcast_to(flags, self._timestep.shape)
