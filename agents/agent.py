"""What all agents share: episodes in a batch, what is asked for, the checks of what they are given."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from aaren_rl.actor import AUTO, Target, target_as_number
from aaren_rl.agents import environment_check
from aaren_rl.agents.acting import Acting
from aaren_rl.agents.stable_baselines3 import StableBaselines3Policy
from aaren_rl.agents.states import ActingState, Array
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.bounds import bounds_of
from aaren_rl.data.hindsight import DESIRED
from aaren_rl.data.packed import arrays_of, first_of, map_packed, numbers_of
from aaren_rl.data.spaces import Box, NestedSpace, Packed, Space
from aaren_rl.errors import InvalidInput


class Agent(StableBaselines3Policy):
    """Acts in one environment or in a batch of them, by stepping a state once per timestep.

    Subclasses implement `_begin`, which makes a state for a number of environments.

    Args:
        card: what the agent was trained on and for.
        observation_space: of the environments.
        action_space: of the environments.
        longest: steps that an episode can have; None for any number.
        greatest_return: return, in absolute value, from which on targets are all the same to it; None for none.
        reaches: True if it predicts the return in reach, which the target "auto" asks for.
        acting: how it acts, as `Acting.parse` takes it; None for what the card says.
        renew: resets the return-to-go to the target every this many steps of an episode; 0 for never. For episodes
            longer than the data's, in which the return-to-go would leave the trained range; the mixers' state goes on.
        temperature: of sampled actions: 1 samples with the learned probabilities, less keeps to the likelier actions, 0
            takes the most likely ones.
        seed: of sampled actions; None for another one each time.

    Raises:
        InvalidInput: acting cannot be read, or renew or the temperature is below 0.
    """

    def __init__(
        self,
        card: AgentCard,
        observation_space: Space,
        action_space: Space,
        longest: int | None,
        greatest_return: float | None,
        reaches: bool,
        acting: str | None = None,
        renew: int = 0,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= temperature < np.inf:
            raise InvalidInput(f"temperature is {temperature}; expected a number from 0 on")
        self.temperature, self.generator = temperature, np.random.default_rng(seed)
        if renew < 0:
            raise InvalidInput(f"renew is {renew}; expected a number of steps, or 0 for never")
        self.acting = Acting.parse(card.acting if acting is None else acting)
        self.card = replace(card, acting=str(self.acting))
        self.observation_space, self.action_space = observation_space, action_space
        self.longest, self.renew, self.greatest_return, self.reaches = longest, renew, greatest_return, reaches
        self._state: ActingState | None = None

    def _begin(self, rows: int) -> ActingState:
        raise NotImplementedError

    def _draw(self, rows: int) -> Array:
        """Random numbers of sampled actions, (rows, noise size)."""
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
        """What is still asked for in each row, (rows,), as of the last `act`; in a row at rest, what comes next.

        Raises:
            InvalidInput: the agent was not reset yet.
        """
        return self._running().return_to_go

    def check_environment(self, env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Checks that the agent fits an environment (see `aaren_rl.agents.environment_check`).

        Warns of wrappers that may rescale actions, observations or rewards, where it is not known if the data came
        through them.

        Raises:
            InvalidInput: the environment has other spaces, or a wrapper that the agent's own does not have changes the
                scale of observations, rewards or actions.
        """
        environment_check.check(env, self.card, self.observation_space, self.action_space)

    def reset(
        self,
        target_return: Target | Array | None = None,
        num_envs: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        goal: Any = None,
    ) -> None:
        """Starts new episodes everywhere.

        Args:
            target_return: the return to ask for, one number or one per environment, or "auto" for what is in reach at
                every step; None for the first of the agent's card. An agent that predicts the return in reach asks for
                no more than that.
            num_envs: rows of the batch; None for a single environment, without a batch dimension.
            autoreset_mode: how the vector environment starts new episodes (`envs.metadata["autoreset_mode"]`; the
                default is Gymnasium's). NEXT_STEP gives an episode's last observation before the first of the next,
                and ignores the action in between. With SAME_STEP, and with DISABLED when you reset the ended rows
                yourself before you call `act`, the observation after the end is the next episode's first.
            goal: to reach, in place of the observations' own `desired_goal`, of its space; one for each row where there
                are rows. None for what the observations say.

        Raises:
            InvalidInput: a number of environments below 1, a target return that is not finite, "auto" for an agent that
                does not predict the return in reach, or a goal for an agent without goals, or of another size.
        """
        if num_envs is not None and num_envs < 1:
            raise InvalidInput(f"num_envs is {num_envs}; expected at least 1, or None for a single environment")
        rows = num_envs or 1
        target = self._checked_target(self.card.target_returns[0] if target_return is None else target_return, rows)
        self._goal = self._checked_goal(goal, num_envs)
        self._warned_of_flags = False
        self._target_given, self._goal_given, self._predicted_anew = target_return, goal, False
        self.drop_reward()
        self._single = num_envs is None
        self._waits_for_reset = autoreset_mode == AutoresetMode.NEXT_STEP and not self._single
        self._target = np.broadcast_to(target, (rows,))
        self._forget_asked()
        # Steps since each row's episode began: when to renew, to forget, and to refuse.
        self._scheduled = bool(self.renew) or self.longest is not None or self.acting.mode == "reset"
        self._timestep = np.zeros(rows, dtype=np.int64)
        self._starting = True
        self._none, self._no_reward = np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.float32)
        self._rested = self._none
        self._state = self._begin(rows)
        self._state.restart(np.ones(rows, dtype=np.bool_), self._target)

    def ask(self, target_return: Target | Array) -> None:
        """Asks for another return from the next action on: in the episodes under way, and in those that follow.

        The rewards earned before do not count. The state of an agent of the condition "norm" holds no returns, so it is
        none the worse for the change; the state of another remembers what was asked for before. Where `predict` steps
        several states in turn, this one is asked of that state which `predict` returned last, and waits in it.

        Args:
            target_return: as for `reset`.

        Raises:
            InvalidInput: as `reset`, or the agent was not reset yet.
        """
        self._running()
        rows = len(self._timestep)
        self._target = np.broadcast_to(self._checked_target(target_return, rows), (rows,)).copy()
        self._target_given = target_return
        # In place, since the state that predict returned holds this array.
        self._asked[:] = self._target
        self._asks_anew = True

    def _forget_asked(self) -> None:
        self._asked, self._asks_anew = np.full(len(self._target), np.nan), False

    def _checked_target(self, target_return: Target | Array, rows: int) -> Array:
        """Targets as numbers, () or (rows,); infinity for "auto"."""
        if isinstance(target_return, str):
            if target_return != AUTO:
                raise InvalidInput(f"target_return is {target_return!r}; expected a number, or {AUTO}")
            if not self.reaches:
                raise InvalidInput(
                    f"target_return is {AUTO}, and this agent does not predict the return in reach; train it with "
                    "--condition norm --reach True, or give a number"
                )
            return np.array(target_as_number(AUTO))
        try:
            target = np.array(target_return, dtype=np.float64)
        except ValueError as error:
            raise InvalidInput(f"target_return is {target_return}; expected numbers, or {AUTO} for all rows") from error
        with np.errstate(over="ignore"):
            finite = np.isfinite(target.astype(np.float32)).all()
        if not finite or target.shape not in ((), (rows,)):
            raise InvalidInput(f"target_return is {target_return}; expected a finite number, or one for each of {rows}")
        if self.greatest_return is not None and (np.abs(target) > self.greatest_return).any():
            warnings.warn(
                f"target_return is {target.max():g}; the agent's returns are scaled for up to "
                f"{self.greatest_return:g}, and to it all targets beyond are the same",
                RuntimeWarning,
                stacklevel=3,
            )
        return target

    def act(
        self,
        observation: Any,
        reward: float | Array | None = None,
        terminated: bool | Array = False,
        truncated: bool | Array = False,
        executed_action: Any = None,
        deterministic: bool = False,
    ) -> Any:
        """The next action, from what the environment just returned.

        Args:
            observation: as the environment gives it: of the observation space's shape, or (rows, *shape) for a batch;
                a mapping or a tuple where it has parts.
            reward: of the last action, a number or (rows,), counted in float32; None only on the first call after
                `reset`.
            terminated: whether that step ended the episode, a bool or (rows,).
            truncated: whether that step cut the episode off.
            executed_action: what was done in that step, where it was not the agent's action: a safety layer, a person,
                or a limit of the actuators decided otherwise. Of the action's shape; rows that did as the agent said
                repeat its action. The model sees it as its last action. A value outside the bounds of training is
                clipped, with a warning.
            deterministic: takes the most likely action, whatever the temperature is.

        Returns:
            The action as the environment takes it: of the action space's shape or (rows, *shape), float32 and inside
            the bounds of training for a Box, whole numbers for discrete actions, a mapping or a tuple for parts.

        Raises:
            InvalidInput: not reset yet, shapes that do not fit, no reward, values that are not finite, more steps than
                a learned timestep embedding holds, an executed action before the first one, or an action that is not
                finite.
        """
        state = self._running()
        if terminated is False and truncated is False and not self._starting and not self._single:
            self._warn_of_flags()
        observed = self._packed(observation)
        done = self._ended_rows(terminated, truncated)
        if reward is None and not self._starting:
            raise InvalidInput("act was called without a reward; give the reward of the last action, or reset first")
        if self._single and done[0]:
            raise InvalidInput("the episode has ended; reset the environment and the agent before the next act")
        earned = self._no_reward if reward is None else self._checked("reward", reward, self._timestep.shape)
        executed = None if executed_action is None else self._checked_action(executed_action)
        if executed is not None:
            state.replace_action(executed)
        if self._starting:
            earned = self._no_reward
        else:
            self._timestep = self._timestep + 1
            if done is not self._none or self._rested is not self._none:
                earned = self._start_episodes(state, done, earned)
        if self._asks_anew:
            # The step takes the reward off.
            state.ask(~np.isnan(self._asked), self._asked + earned)
            self._forget_asked()
        if self._scheduled:
            self._on_schedule(state, earned)
        sampled = self.temperature > 0 and not deterministic
        noise = (self.temperature * self._draw(len(earned))).astype(np.float32) if sampled else None
        action = state.step(observed, earned, noise)
        self._starting = False
        if not np.isfinite(action).all():
            where = tuple(np.argwhere(~np.isfinite(action))[0])
            raise InvalidInput(
                f"the model's action is {action[where]} in row {where[0]}; its weights are damaged, or observations of "
                f"this episode were too large (now {_range(observed)}); reset the agent, and look at the scale of its "
                "observations"
            )
        if self._single:
            return self.action_space.unpack(np.array(action[0]))
        return self.action_space.unpack(action.copy(), batch=1)

    def _warn_of_flags(self) -> None:
        if not self._warned_of_flags:
            warnings.warn(
                "act got neither terminated nor truncated of a vector environment, so rows whose episode has ended go "
                "on as if it had not; pass both, as act(observation, reward, terminated, truncated)",
                RuntimeWarning,
                stacklevel=3,
            )
        self._warned_of_flags = True

    def _start_episodes(self, state: ActingState, done: Array, earned: Array) -> Array:
        """Restarts the rows whose next episode begins now; the rewards of those that go on, 0 elsewhere."""
        # In NEXT_STEP mode an ended row rests for one call, on an observation that belongs to no action. It restarts
        # before that call, so that no step is beyond the episode's end, and once more after it.
        restart = done | self._rested if self._waits_for_reset else done
        self._rested = done if self._waits_for_reset else self._none
        if not restart.any():
            return earned
        state.restart(restart, self._target)
        self._timestep = np.where(restart, 0, self._timestep)
        return np.where(restart, np.float32(0), earned)

    def _on_schedule(self, state: ActingState, earned: Array) -> None:
        """Renews targets, empties states, and refuses steps, by the number of each row's step."""
        if self.renew and (due := (self._timestep > 0) & (self._timestep % self.renew == 0)).any():
            # The step takes the reward off.
            state.ask(due, self._target + earned)
        if self.longest is not None and self._timestep.max() >= self.longest:
            raise InvalidInput(
                f"the episode is longer than the {self.longest} steps of the agent's learned timestep embedding; train "
                "with --timesteps none or sinusoidal, or a larger --max-steps"
            )
        if (
            self.acting.mode == "reset"
            and (due := (self._timestep > 0) & (self._timestep % self.acting.steps == 0)).any()
        ):
            state.forget(due)

    def _running(self) -> ActingState:
        if self._state is None:
            raise InvalidInput("the agent has no episode under way; call reset first")
        return self._state

    def _packed(self, observation: Any) -> Packed:
        """An observation as the model takes it, (rows, ...)."""
        space, rows = self.observation_space, len(self._timestep)
        if self._goal is not None:
            if not isinstance(observation, Mapping):
                raise InvalidInput(
                    f"the observation is a {type(observation).__name__}, and the agent was reset with a goal; give the "
                    "observation's other parts as a mapping"
                )
            observation = {**observation, DESIRED: self._goal}
        if isinstance(space, Box):
            if isinstance(observation, Mapping | tuple):
                raise InvalidInput(
                    f"the observation is a {type(observation).__name__} of parts; this agent was trained on arrays of "
                    f"shape {space.shape}: give it one array, with the parts in the order of its data, or train it on "
                    "data whose observations have parts (a Minari dataset of this environment)"
                )
            return self._checked("observation", observation, (rows, *space.shape))
        try:
            packed = space.pack(observation, batch=0 if self._single else 1)
        except InvalidInput as error:
            raise InvalidInput(f"the observation does not fit: {error}") from error
        if self._single:
            packed = map_packed(lambda part: np.asarray(part)[None], packed)
        for part in arrays_of(packed).values():
            if len(part) != rows:
                raise InvalidInput(f"the observation has {len(part)} rows; expected {rows}")
        with np.errstate(over="ignore"):
            found: Packed = map_packed(
                lambda part: part if part.dtype == np.uint8 else part.astype(np.float32, copy=False), packed
            )
        for path, part in arrays_of(found).items():
            if part.dtype != np.uint8 and not np.isfinite(part).all():
                place = np.argwhere(~np.isfinite(part))[0]
                raise InvalidInput(
                    f"the observation holds {part[tuple(place)]} in {path}, row {place[0]}, at {place[1:].tolist()}; "
                    "agents take finite float32 numbers"
                )
        return found

    def _checked_goal(self, goal: Any, rows: int | None) -> Any:
        """A goal that fits the observations; None for none."""
        if goal is None:
            return None
        parts = dict(self.observation_space.named_parts) if isinstance(self.observation_space, NestedSpace) else {}
        if DESIRED not in parts:
            raise InvalidInput(
                f"a goal for an agent whose observations have no {DESIRED!r}; train it on data with goals, or leave it "
                "out"
            )
        try:
            packed = parts[DESIRED].pack(goal, 1 if rows else 0)
        except InvalidInput as error:
            raise InvalidInput(f"the goal does not fit: {error}") from error
        if rows is not None and len(first_of(packed)) != rows:
            raise InvalidInput(f"{len(first_of(packed))} goals for {rows} environments; give one for each")
        return goal

    def _checked_action(self, executed: Any) -> Array:
        """An executed action inside the bounds of training, packed, (rows, *shape) float32."""
        if self._starting:
            raise InvalidInput("executed_action was given before the agent's first action; leave it out at that call")
        shape = (len(self._timestep), *self.action_space.shape)
        if not isinstance(self.action_space, Box):
            try:
                executed = self.action_space.pack(executed, batch=0 if self._single else 1)
            except InvalidInput as error:
                raise InvalidInput(f"executed_action does not fit: {error}") from error
        action = self._checked("executed_action", executed, shape)
        low, high = bounds_of(self.action_space)
        inside = np.clip(action, low, high)
        if (np.abs(inside - action) > 1e-5 * (high - low)).any():
            warnings.warn(
                f"executed_action is {executed}, outside the agent's {low} to {high}, and was clipped",
                RuntimeWarning,
                stacklevel=3,
            )
        return inside

    def _checked(self, name: str, given: float | Array, shape: tuple[int, ...]) -> Array:
        """What was given as a float32 array of a shape."""
        try:
            array = np.asarray(given)
            if array.dtype != np.float32:
                with np.errstate(over="ignore"):
                    array = array.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{name} is not made of numbers: {error}") from error
        if self._single:
            array = array[None]
        if array.shape != shape:
            expected = shape[1:] if self._single else shape
            raise InvalidInput(f"{name} has shape {np.shape(given)}; expected {expected}")
        if not np.isfinite(array).all():
            raise InvalidInput(f"{name} holds a NaN or an infinite value, in float32: {given}")
        return array

    def _ended_rows(self, terminated: bool | Array, truncated: bool | Array) -> npt.NDArray[np.bool_]:
        if terminated is False and truncated is False:
            return self._none
        return self._row_flags("terminated", terminated) | self._row_flags("truncated", truncated)

    def _row_flags(self, name: str, given: bool | Array) -> npt.NDArray[np.bool_]:
        flags = np.asarray(given, dtype=np.bool_)
        if flags.shape not in ((), self._timestep.shape):
            raise InvalidInput(f"{name} has shape {flags.shape}; expected {self._timestep.shape}")
        return np.broadcast_to(flags, self._timestep.shape)


def _range(observed: Packed) -> str:
    """Least and greatest number of an observation, in words."""
    numbers = numbers_of(observed)
    return "images alone" if numbers is None or not numbers.size else f"{numbers.min()} to {numbers.max()}"
