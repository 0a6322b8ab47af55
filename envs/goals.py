"""Goals of data and of environments: data without any get some, and what reaching another goal would have paid."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.hindsight import (
    ACHIEVED,
    DESIRED,
    GoalRewards,
    Hindsight,
    Relabelling,
    achieved_after,
    describe,
    goal_columns,
    own_outcome,
)
from aaren_rl.data.spaces import Box, DictSpace, NestedSpace, Space
from aaren_rl.data.storage import blocks, episode_blocks
from aaren_rl.data.trajectories import Floats, Trajectories
from aaren_rl.envs.environments import make
from aaren_rl.envs.goal_observation import GOAL, OBSERVATION, GoalObservation, checked_columns
from aaren_rl.errors import DataError, InvalidInput

PROBES = 500
"""Pairs of goals that tell whether an environment pays two rewards alone."""

Say = Callable[[str], object]
Doubles = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Goals:
    """What a user says of goals.

    Attributes:
        hindsight: which segments are relabelled.
        distance: from a goal at which it counts as reached; None for what the environment says.
        columns: numbers of an observation that a goal is made of, where the data have no goals; none for all.
    """

    hindsight: Hindsight
    distance: float | None = None
    columns: tuple[int, ...] = ()


class Relabelled(NamedTuple):
    """Data that are ready to be relabelled.

    Attributes:
        trajectories: with the rewards of their own goals.
        relabelling: of their segments.
        returns: of the episodes to where they reach their goals; and, where any are relabelled, with what they achieve
            at their ends as goals.
    """

    trajectories: Trajectories
    relabelling: Relabelling
    returns: Floats


def has_goals(space: Space | None) -> bool:
    """True if observations have the parts `achieved_goal` and `desired_goal`."""
    names = [name for name, _ in space.named_parts] if isinstance(space, NestedSpace) else []
    return ACHIEVED in names and DESIRED in names


def with_goals(
    name: str, trajectories: Trajectories, environment: EnvironmentSpec | None, goals: Goals, say: Say
) -> tuple[Trajectories, EnvironmentSpec | None]:
    """Data and environment whose observations have goals.

    Data that have none get what each episode achieves at its end. Their environment gives its own through the wrapper
    `GoalObservation`, which its spec has from then on.

    Args:
        name: of the data, for messages.
        trajectories: the data.
        environment: to act in; None for none.
        goals: what the user says of them.
        say: called with a line on what is done.

    Raises:
        InvalidInput: the environment gives no goal, or the columns do not fit.
        DataError: goals cannot be made of the data.
    """
    space = trajectories.observation_space
    if has_goals(space):
        if goals.columns:
            raise InvalidInput(f"goal_columns are for data without goals; {name} has some, so leave them out")
        return trajectories, environment
    if (
        isinstance(trajectories.observations, dict)
        or trajectories.observations.ndim != 2
        or not (space is None or isinstance(space, Box))
    ):
        raise DataError(
            f"{name} has no goals, and none can be made of its observations; expected vectors, or the parts "
            f"{ACHIEVED!r} and {DESIRED!r}"
        )
    columns = checked_columns(goals.columns, trajectories.observations.shape[1])
    if environment is not None:
        kwargs = {"columns": list(goals.columns)} if goals.columns else {}
        wrapper = Wrapper(GoalObservation.__name__, kwargs)
        environment = dataclasses.replace(environment, wrappers=(*environment.wrappers, wrapper))
        _check_gives_goal(environment)
        say(f"goals: those of {environment.id} are in the info of its reset; it is acted in through {wrapper}")
    made_of = f"numbers {', '.join(map(str, goals.columns))} of an observation" if goals.columns else "an observation"
    say(f"goals: the data have none; an episode's is what it achieves at its end, {made_of}")
    return _with_ends_as_goals(trajectories, columns), environment


def _check_gives_goal(environment: EnvironmentSpec) -> None:
    env = make(environment)
    try:
        env.reset(seed=0)
    except InvalidInput as error:
        raise InvalidInput(
            f"hindsight needs goals, and {environment.id} has none ({error}); leave out --goals hindsight, name "
            f"an environment with the part {DESIRED!r} or info[{GOAL!r}], or train without roll-outs (--env-id none)"
        ) from error
    finally:
        env.close()


def _with_ends_as_goals(trajectories: Trajectories, columns: list[int]) -> Trajectories:
    given, last = trajectories.observations, trajectories.final_observations
    assert isinstance(given, np.ndarray), "the observations are vectors"
    if last is None:
        raise DataError(
            "hindsight needs the observation after each episode's last action, which these data lack; take data that "
            "have it, or pass final_observations"
        )
    assert isinstance(last, np.ndarray), "they are alike"
    whole = trajectories.observation_space
    bounds = whole if isinstance(whole, Box) else Box.unbounded(given.shape[1:])
    low, high = (tuple(ends[i] for i in columns) for ends in (bounds.low, bounds.high))
    goal = Box((len(columns),), low, high, bounds.dtype)
    space = DictSpace(((OBSERVATION, bounds), (ACHIEVED, goal), (DESIRED, goal)))

    def packed(observations: Floats, ends: Floats) -> Floats:
        parts = {OBSERVATION: observations, ACHIEVED: observations[:, columns], DESIRED: ends}
        return np.concatenate([parts[part.path] for part in space.parts()], axis=1)

    ends, lengths = last[:, columns], trajectories.lengths
    observations = (
        packed(given[steps], np.repeat(ends[episodes], lengths[episodes], axis=0))
        for episodes, steps in episode_blocks(trajectories.offsets, space.shape)
    )
    unpaid = (np.zeros_like(block) for _, block in blocks(trajectories.rewards))
    storage = trajectories.storage
    return dataclasses.replace(
        trajectories,
        observations=storage.array((trajectories.steps, *space.shape), np.float32, observations),
        final_observations=packed(last, ends),
        observation_space=space,
        rewards=storage.array(trajectories.rewards.shape, np.float32, unpaid),
    )


def relabelled(
    name: str,
    trajectories: Trajectories,
    environment: EnvironmentSpec | None,
    goals: Goals,
    own: bool,
    say: Say,
) -> Relabelled:
    """The data with the rewards of their goals, and how their segments get other goals.

    Args:
        name: of the data, for messages.
        trajectories: with goals.
        environment: to act in, whose `compute_reward` says what a goal pays; None for none.
        goals: what the user says of them.
        own: True if the goals were in the data; False for those of `with_goals`.
        say: called with a line on how goals are drawn, and on rewards that differ from the data's.

    Raises:
        InvalidInput: nothing says when a goal is reached, or the environment's rewards cannot be computed.
        DataError: goals are no vectors, or the observation after an episode's last action is missing.
    """
    goal_columns(trajectories.observation_space)
    rewards = GoalRewards(distance=goals.distance)
    if own:
        rewards = _rewards_of(name, trajectories, environment, goals.distance, say)
    found = own_outcome(trajectories, rewards)
    differing = sum(
        int((np.abs(block - trajectories.rewards[start : start + len(block)]) > 1e-5).sum())
        for start, block in blocks(found.rewards)
    )
    if own and differing:
        say(
            f"warning: under their own goals {differing} of {trajectories.steps} steps are paid otherwise than the "
            f"data of {name} record; the rewards are computed anew for all"
        )
    relabelling = Relabelling(goals.hindsight, rewards)
    say(describe(relabelling))
    returns = found.returns
    if goals.hindsight.share:
        returns = np.concatenate([returns, own_outcome(trajectories, rewards, ends_as_goals=True).returns])
    paid = trajectories.storage.array(
        trajectories.rewards.shape, np.float32, (block.astype(np.float32) for _, block in blocks(found.rewards))
    )
    return Relabelled(dataclasses.replace(trajectories, rewards=paid), relabelling, returns)


def _rewards_of(
    name: str, trajectories: Trajectories, environment: EnvironmentSpec | None, distance: float | None, say: Say
) -> GoalRewards:
    env = None if environment is None else make(environment)
    try:
        rewards = _rewards_in(env, name, trajectories, environment, distance, say)
    except BaseException:
        if env is not None:
            env.close()
        raise
    if env is not None and rewards.compute is not None:
        # The rewards are the environment's own method, so it stays open as long as they are used.
        weakref.finalize(rewards.compute, env.close)
    elif env is not None:
        env.close()
    return rewards


def _rewards_in(
    made: gym.Env[Any, Any] | None,
    name: str,
    trajectories: Trajectories,
    environment: EnvironmentSpec | None,
    distance: float | None,
    say: Say,
) -> GoalRewards:
    env = None if made is None else made.unwrapped
    computed, threshold = getattr(env, "compute_reward", None), getattr(env, "distance_threshold", None)
    if computed is not None:
        try:
            return _computed(env, computed, trajectories, distance)
        except InvalidInput as error:
            if distance is None:
                raise
            say(f"goals: {error}, so rewards are 1 at the goal and 0 elsewhere")
    if distance is None and isinstance(threshold, int | float):
        say(f"goals: {environment} calls a goal reached within a distance of {threshold:g}")
        distance = float(threshold)
    if distance is None:
        where = "no environment is known" if environment is None else f"{environment} computes no rewards of goals"
        raise InvalidInput(
            f"nothing says when a goal of {name} is reached, since {where}; pass --goal-distance, as --goal-distance "
            "0.5"
        )
    return GoalRewards(distance=distance)


def _computed(env: Any, computed: Callable[..., Any], data: Trajectories, distance: float | None) -> GoalRewards:
    """Rewards by an environment's `compute_reward`, and whether they say that a goal is reached.

    Raises:
        InvalidInput: it does not take a batch, or pays by distance and says nothing of when its episodes end.
    """

    def compute(achieved: Doubles, desired: Doubles) -> Doubles:
        return np.asarray(computed(achieved, desired, {}), np.float64)

    points = achieved_after(data)
    rng = np.random.default_rng(0)
    first, second = (points[rng.integers(0, len(points), PROBES)].astype(np.float64) for _ in range(2))
    try:
        paid, there = compute(first, second), compute(first, first)
        single = [float(compute(one, other)) for one, other in zip(first[:5], second[:5], strict=True)]
    except Exception as error:  # An environment's method is anyone's code.
        raise InvalidInput(f"compute_reward takes no batch of goals: {error!r}; pass --goal-distance") from error
    if paid.shape != (PROBES,) or not np.isfinite(paid).all() or not np.allclose(paid[:5], single):
        raise InvalidInput(
            f"compute_reward gives rewards of shape {paid.shape} for {PROBES} goals, or others than one by one; pass "
            "--goal-distance"
        )
    if distance is not None:
        return GoalRewards(compute, distance=distance)
    if len(np.unique([*paid, *there])) <= 2 and np.ptp(there) == 0:
        return GoalRewards(compute, hit=float(there[0]))
    if (ends := getattr(env, "compute_terminated", None)) is not None and bool(ends(first[0], first[0], {})):
        raise InvalidInput(
            "compute_reward pays by distance, and episodes end at the goal, so rewards do not say where; pass "
            "--goal-distance"
        )
    return GoalRewards(compute)
