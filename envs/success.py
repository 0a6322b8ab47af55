"""Whether an episode reached its goal: by what infos report, or by what is known of the environment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.hindsight import DESIRED
from aaren_rl.envs.environments import make
from aaren_rl.envs.references import arguments_of

KEYS = ("success", "is_success", "goal_achieved")
"""Names under which infos report it: in Meta-World, OGBench and Gymnasium-Robotics' mazes and hands; in its Fetch and
hand tasks; in D4RL's Adroit."""

BY_INFO = "its info says so at any step of the episode"
"""When an episode is a success, where infos report it. Some of these environments end at the goal, others go on."""

Flags = npt.NDArray[np.bool_]


class Rule(NamedTuple):
    """When an episode is a success, where infos do not report it.

    Attributes:
        name: in words, as results hold it.
        reached: whether steps reach the goal, (rows,), of their rewards (rows,) and `terminated` (rows,).
    """

    name: str
    reached: Callable[[npt.NDArray[Any], Flags], Flags]


PAID_END = Rule(
    "a reward above 0 in the step that terminates the episode", lambda reward, terminated: terminated & (reward > 0)
)
TERMINATION = Rule("the episode terminates", lambda reward, terminated: terminated)

_FROZEN_LAKE = "gymnasium.envs.toy_text.frozen_lake:"
"""Pays what its argument `reward_schedule` says, so the rule holds for its default alone."""

_RULES = {
    # Failures, such as lava, pay 0 or less.
    "minigrid.": PAID_END,
    _FROZEN_LAKE: PAID_END,
    # These terminate at the goal alone.
    "gymnasium.envs.toy_text.taxi:": TERMINATION,
    "gymnasium.envs.toy_text.cliffwalking:": TERMINATION,
    "gymnasium.envs.classic_control.mountain_car:": TERMINATION,
    "gymnasium.envs.classic_control.continuous_mountain_car:": TERMINATION,
    "gymnasium.envs.classic_control.acrobot:": TERMINATION,
}
"""Rules by how the entry point that an environment is registered with begins."""

_KITCHEN = "gymnasium_robotics.envs.franka_kitchen:KitchenEnv"
"""Terminates once all of its tasks are completed, unless an argument says otherwise."""


def rule_of(spec: EnvironmentSpec, observation_space: gym.Space[Any]) -> Rule | None:
    """The rule of an environment whose infos report no success; None where nothing is known of it.

    Of an environment with goals that pays two rewards alone, the reward of a reached goal is a success.

    Args:
        spec: of the environment, whose id is registered.
        observation_space: its own.

    Raises:
        InvalidInput: the environment cannot be made.
    """
    registered = gym.registry.get(spec.registered_id)
    entry = "" if registered is None else registered.entry_point
    entry = entry if isinstance(entry, str) else f"{getattr(entry, '__module__', '')}:"
    if entry.startswith(_FROZEN_LAKE) and tuple(arguments_of(spec).get("reward_schedule", (1, 0, 0))) != (1, 0, 0):
        return None
    if entry == _KITCHEN:
        return TERMINATION if spec.kwargs.get("terminate_on_tasks_completed", True) else None
    known = next((rule for start, rule in _RULES.items() if entry.startswith(start)), None)
    goals = observation_space.spaces.get(DESIRED) if isinstance(observation_space, gym.spaces.Dict) else None
    rescaled = any("Reward" in wrapper.name for wrapper in spec.wrappers)
    if known is not None or rescaled or not isinstance(goals, gym.spaces.Box):
        return known
    env = make(spec)
    try:
        hit = _reward_of_a_goal(getattr(env.unwrapped, "compute_reward", None), goals)
    finally:
        env.close()
    if hit is None:
        return None
    return Rule(f"a reward of {hit:g}, that of a reached goal, at any step", lambda reward, _: reward == hit)


def _reward_of_a_goal(compute: Callable[..., Any] | None, goals: gym.spaces.Box) -> float | None:
    """What an environment pays at a goal, if it computes that and pays one other reward elsewhere."""
    if compute is None:
        return None
    goals.seed(0)
    drawn = [goals.sample() for _ in range(50)]
    try:
        there = {float(compute(goal, goal, {})) for goal in drawn}
        elsewhere = {float(compute(goal, other, {})) for goal, other in itertools.pairwise(drawn)}
    except Exception:  # An environment's method is anyone's code, and one that fails says nothing.
        return None
    return there.pop() if len(there) == 1 and len(there | elsewhere) == 2 else None


class Reached(NamedTuple):
    """What the info of a step says.

    Attributes:
        says: rows whose info says whether the goal is reached, (rows,).
        reached: rows in which it is, (rows,).
    """

    says: Flags
    reached: Flags


def read(info: Any, done: Flags) -> Reached:
    """Whether a step of a vector environment reached the goal, by row.

    Args:
        info: of the step, as Gymnasium batches infos: an array for a key, and a mask under the key with an underscore.
            Where it has "final_info", the rows that end take theirs from there: the rest is of their next episode.
        done: rows in which an episode ends with the step, (rows,).
    """
    now, final = _read(info, len(done)), info.get("final_info") if isinstance(info, Mapping) else None
    if not isinstance(final, Mapping):
        return now
    last = _read(final, len(done))
    return Reached(np.where(done, last.says, now.says), np.where(done, last.reached, now.reached))


def _read(info: Any, rows: int) -> Reached:
    says, reached = np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_)
    for key in KEYS if isinstance(info, Mapping) else ():
        values = np.asarray(info.get(key))
        if values.shape[:1] == (rows,):
            mask = np.broadcast_to(np.asarray(info.get(f"_{key}", True), dtype=np.bool_), (rows,))
            says |= mask
            reached |= mask & [_is_positive(value) for value in values]
    return Reached(says, reached)


def _is_positive(value: Any) -> bool:
    try:
        # None, of rows without the key, becomes NaN, which is not above 0.
        return bool(np.any(np.asarray(value, dtype=np.float64) > 0))
    except (TypeError, ValueError):
        return False
