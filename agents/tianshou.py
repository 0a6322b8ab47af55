"""Tianshou: an agent as a policy of its collectors, and trajectories from its replay buffers and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tianshou.algorithm.algorithm_base import Policy
from tianshou.data import Batch, HERReplayBuffer, HERReplayBufferManager, ReplayBuffer, ReplayBufferManager

from aaren_rl.actor import Target
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.states import Array
from aaren_rl.data.spaces import Space, gymnasium_space
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.data.unpacking import episodes_of, known_spaces
from aaren_rl.errors import DataError, InvalidInput


class AgentPolicy(Policy):  # type: ignore[misc]
    """An agent that acts in a collector: `Collector(policy, envs, on_step_hook=policy.observe_rewards)`.

    The collector hands over no rewards, without which the return-to-go cannot count down; its hook does. An agent with
    a temperature samples.

    The states stay with the policy. What the collector keeps, and writes into its buffer, is the number of the call and
    the row of each environment, so the buffer does not grow with the state. Each collector needs a policy of its own.
    Random steps, `collect(random=True)`, leave no state behind, so the agent would start within their episodes: reset
    the collector after them. Wrappers around the environments are checked by `agent.check_environment(envs)` alone.

    Args:
        agent: that acts.
        target_return: return to ask for; None for the agent's default.

    Raises:
        InvalidInput: the target return is not one for this agent (see `Agent.reset`).
    """

    def __init__(self, agent: Agent, target_return: Target | None = None) -> None:
        spaces = gymnasium_space(agent.action_space), gymnasium_space(agent.observation_space)
        super().__init__(*spaces, action_scaling=False, action_bound_method=None)
        self.agent, self.target_return = agent, target_return
        agent.reset(target_return)
        self._calls = 0
        self._carried: tuple[Array, ...] = ()
        self._rewards: Array | None = None

    def observe_rewards(self, acted: Any, stepped: Any) -> None:
        """Hook of a collector, after each step: takes the rewards."""
        self._rewards = np.asarray(stepped.rew, dtype=np.float64)

    def forward(self, batch: Any, state: Any = None, **options: Any) -> Any:
        """The actions of the environments of a batch.

        Args:
            batch: with the observations under "obs".
            state: what the call before returned, rows of zeros where an episode starts; None to start all.
            options: of Tianshou's policies; none is used.

        Raises:
            InvalidInput: the state is not of the last call, or no rewards came since; or as `Agent.act`.
        """
        observation = _plain(batch.obs)
        sampled = self.agent.temperature > 0
        if state is None:
            starts = np.ones(len(batch), dtype=np.bool_)
            self.agent.reset(self.target_return)
            action, carried = self.agent.predict(observation, None, starts, deterministic=not sampled)
        else:
            before, starts = self._chosen(np.asarray(state))
            action, carried = self.agent.predict(observation, before, starts, deterministic=not sampled)
        assert carried is not None
        self._carried, self._rewards = carried, None
        self._calls += 1
        rows = np.arange(len(batch))
        return Batch(act=action, state=np.stack([np.full_like(rows, self._calls), rows], 1))

    def _chosen(self, state: npt.NDArray[np.int64]) -> tuple[tuple[Array, ...], npt.NDArray[np.bool_]]:
        """The states of the rows that go on, and which rows start; hands the rewards to the agent."""
        calls, rows = state.T
        starts = calls == 0
        if not starts.all():
            if (calls[~starts] != self._calls).any():
                raise InvalidInput("another collector acted with this policy in between; make a policy for each")
            if self._rewards is None:
                raise InvalidInput(
                    "the policy got no rewards; make a Collector with on_step_hook=policy.observe_rewards (an "
                    "AsyncCollector takes no hook)"
                )
            self.agent.observe_reward(self._rewards[rows])
        # Where an episode starts, row 0 stands in; the agent empties it.
        return tuple(part[rows] for part in self._carried), starts


def trajectories_of(
    buffer: ReplayBuffer,
    policy: Policy | None,
    observation_space: Space | gym.Space[Any] | None = None,
    action_space: Space | gym.Space[Any] | None = None,
) -> Trajectories:
    """Episodes of a replay buffer of Tianshou, of one environment or of several.

    The first steps of a full buffer may belong to an episode whose start was overwritten, and whose return would be
    wrong: those up to the first end are left out, with a warning. The last episode of each environment counts as cut
    off if the steps end within it. Frames are not stacked. A buffer with `ignore_obs_next` gives no observations after
    the last actions.

    Args:
        buffer: to read.
        policy: that acted, since buffers keep actions as they were before `policy.map_action`; None where the buffer's
            actions are the environment's. It has no default, since actions without their policy would be other ones.
        observation_space: of the observations, Gymnasium's or ours; None for what they show.
        action_space: of the environment's actions, Gymnasium's or ours; None for that of the policy, or without one for
            what the actions show.

    Raises:
        DataError: there is no episode with its start, a step does not follow the one before, the buffer rewrites or
            hides steps when it samples, or the arrays make no episodes.
    """
    if isinstance(buffer, HERReplayBuffer | HERReplayBufferManager):
        raise DataError("the buffer rewrites goals and rewards when it samples; keep the steps in a ReplayBuffer")
    if buffer.options["sample_avail"] and buffer.stack_num > 1:
        raise DataError("the buffer hides steps that lack frames to stack; make it with sample_avail=False")
    parts = buffer.buffers if isinstance(buffer, ReplayBufferManager) else [buffer]
    episodes: list[Episode] = []
    left_out = 0
    for offset, part in zip(buffer.subbuffer_edges[:-1], parts, strict=True):
        if not len(part):
            continue
        steps = part.sample_indices(0) + offset
        # What `from_data` filled was never added to; what was has its last index where the first steps end.
        filled_at_once = steps[:1] == offset and part.last_index[0] == 0
        if len(steps) == part.maxsize and not filled_at_once:
            ends = np.flatnonzero(buffer.done[steps])
            first = int(ends[0]) + 1 if len(ends) else len(steps)
            left_out, steps = left_out + first, steps[first:]
        if len(steps):
            episodes += _episodes(buffer, steps, policy)
    if left_out:
        warnings.warn(
            f"{left_out} steps were left out: the buffer is full and may have overwritten the starts of their episodes",
            RuntimeWarning,
            stacklevel=2,
        )
    if not episodes:
        raise DataError("the buffer has no episode with its start; expected at least one")
    if action_space is None and policy is not None:
        action_space = policy.action_space
    return Trajectories.from_episodes(episodes, observation_space, action_space)


def buffer_of(trajectories: Trajectories, policy: Policy | None) -> ReplayBuffer:
    """A replay buffer of Tianshou with the steps of trajectories, for its offline algorithms.

    Args:
        trajectories: with final observations.
        policy: that is trained, whose `map_action_inverse` makes its actions of the environment's; None to keep these.

    Raises:
        DataError: there are no final observations, a policy would have to be infinite to act so, or Tianshou has no
            such values.
    """
    if trajectories.final_observations is None:
        raise DataError("the trajectories have no observations after the last actions, which Tianshou's buffers keep")
    actions = known_spaces(trajectories)[1].unpack(trajectories.actions, batch=1)
    if not isinstance(actions, np.ndarray):
        raise DataError(f"the actions are {type(actions).__name__}s of parts; Tianshou takes arrays")
    if policy is not None:
        with np.errstate(all="ignore"):
            actions = policy.map_action_inverse(actions)
        if not np.isfinite(actions).all():
            raise DataError("actions at their bounds are infinite before the policy's tanh; make it with another bound")
    ends = trajectories.offsets[1:] - 1
    flags = {name: np.zeros(trajectories.steps, np.bool_) for name in ("terminated", "truncated")}
    flags["terminated"][ends] = trajectories.terminated
    # A truncation of a terminated episode changes nothing.
    flags["truncated"][ends] = ~trajectories.terminated
    seen = [one.observations for one in episodes_of(trajectories)]
    steps = {
        "obs": _joined([_map(lambda part: part[:-1], one) for one in seen]),
        "act": actions,
        "rew": trajectories.rewards.astype(np.float64),
        **flags,
        "done": flags["terminated"] | flags["truncated"],
        "obs_next": _joined([_map(lambda part: part[1:], one) for one in seen]),
    }
    # One more than the steps: a full buffer looks as if it had overwritten some.
    buffer = ReplayBuffer(trajectories.steps + 1)
    buffer.update(ReplayBuffer.from_data(**steps))
    return buffer


def _episodes(buffer: ReplayBuffer, steps: npt.NDArray[np.int64], policy: Policy | None) -> list[Episode]:
    """The episodes of steps of one environment in their order, by index."""
    observations = _plain(buffer.get(steps, "obs", stack_num=1))
    keeps_next = not buffer.options["ignore_obs_next"]
    after = _plain(buffer.get(steps, "obs_next", stack_num=1)) if keeps_next else None
    actions = buffer.act[steps] if policy is None else policy.map_action(buffer.act[steps])
    done = buffer.done[steps]
    if after is not None:
        _check_order(observations, after, done)
    ends = np.flatnonzero(done).tolist()
    ends = ends if ends and ends[-1] == len(steps) - 1 else [*ends, len(steps) - 1]
    found = []
    for start, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True):
        here = slice(start, end + 1)
        seen = _map(lambda part, here=here: part[here], observations)
        if after is not None:
            seen = _map(lambda part, last, end=end: np.concatenate([part, last[end : end + 1]]), seen, after)
        terminated = bool(buffer.terminated[steps[end]])
        found.append(Episode(seen, actions[here], buffer.rew[steps[here]], terminated, not terminated))
    return found


def _check_order(observations: Any, after: Any, done: npt.NDArray[np.bool_]) -> None:
    """Refuses steps whose observation is not the one after the step before, within an episode."""
    if len(done) < 2:
        return
    follows = done[:-1].copy()
    same: list[Any] = []
    _map(lambda now, then: same.append((now[1:] == then[:-1]).reshape(len(now) - 1, -1).all(1)), observations, after)
    follows |= np.logical_and.reduce(same)
    if not follows.all():
        step = int(np.flatnonzero(~follows)[0]) + 1
        raise DataError(
            f"step {step} of an environment does not follow the one before: its observation is another, and no episode "
            "ended; after a reset of the environments, empty the buffer too"
        )


def _plain(values: Any) -> Any:
    """A batch as a dict, part by part; arrays as they are."""
    return {key: _plain(part) for key, part in values.items()} if isinstance(values, Batch) else np.asarray(values)


def _map(function: Callable[..., Any], *values: Any) -> Any:
    """Values with what a function makes of each array in its place; all have the same parts."""
    if isinstance(values[0], Mapping):
        return {key: _map(function, *(value[key] for value in values)) for key in values[0]}
    return function(*values)


def _joined(values: list[Any]) -> Any:
    if not isinstance(values[0], Mapping | np.ndarray):
        raise DataError(f"the observations are {type(values[0]).__name__}s; Tianshou takes arrays, and Dicts of them")
    joined = _map(lambda *parts: np.concatenate(parts), *values)
    return Batch(joined) if isinstance(joined, dict) else joined
