"""Rolls an actor out in a vector environment and counts, or records, whole episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from aaren_rl.actor import Actor, Target
from aaren_rl.envs import success
from aaren_rl.envs.batches import row_of, stacked, where
from aaren_rl.envs.episodes import Counter, Episodes, Recorder
from aaren_rl.envs.failures import Watch
from aaren_rl.errors import InvalidInput

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


def roll_out(
    actor: Actor,
    envs: VectorEnv[Any, Any, Any],
    episodes: int,
    target_return: Target | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
    record: bool = False,
    longest: int | None = None,
    rule: success.Rule | None = None,
) -> Episodes:
    """Runs whole episodes.

    Each row of the vector has its share of the episodes from the start; otherwise short episodes would count for more.
    Every autoreset mode of Gymnasium gives the same episodes. A row that has played its share rests: a
    `RestingVectorEnv` simulates it no more, and others go on without being looked at. The actor then sees the row's
    first observation, as of an episode that has ended.

    Args:
        actor: acts in all rows; it is reset first.
        envs: the environments, of any `autoreset_mode`.
        episodes: number of episodes in all.
        target_return: return to ask the actor for; None for its default.
        seed: row i is seeded with seed + i before its first episode.
        progress: called with the number of episodes done since the last call.
        record: keep the episodes as well as their returns.
        longest: steps after which an episode that goes on is an error; None for never.
        rule: says when an episode is a success, where no info does; None for none.

    Returns:
        The episodes.

    Raises:
        InvalidInput: the number of episodes is below 1, or an episode is longer than `longest`. Or they are to be
            recorded, and the environment resets in the same step without giving the observation before.
        EpisodeFailed: an environment raised an error. Or an observation or a reward is not finite, or has another shape
            than its space.
    """
    if episodes < 1:
        raise InvalidInput(f"{episodes} episodes; expected at least 1")
    mode = AutoresetMode(envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
    rows = envs.num_envs
    counter = Counter(np.full(rows, episodes // rows) + (np.arange(rows) < episodes % rows), rule)
    watch = Watch(envs, counter, seed)
    observation = watch.first(~counter.rests)
    first, reward = copy.deepcopy(observation), None
    done = terminated = truncated = np.zeros(rows, dtype=np.bool_)
    recorder = Recorder(observation, rows) if record else None
    actor.reset(target_return, rows, mode)
    while True:
        awake = ~counter.rests
        action = actor.act(*_shown(awake, first, observation, reward, terminated, truncated))
        # In NEXT_STEP mode the step after an end only resets: its action and its reward belong to no episode.
        resets = done if mode == AutoresetMode.NEXT_STEP else np.zeros_like(done)
        observation, reward, terminated, truncated, info = watch.step(action, awake, resets)
        done = terminated | truncated
        # In SAME_STEP mode the observation is of the next episode where one ends; the last one is in the info.
        watch.check(observation, awake & ~done if mode == AutoresetMode.SAME_STEP else awake)
        if recorder is not None:
            last = _before_reset(observation, info, done) if mode == AutoresetMode.SAME_STEP else observation
            watch.check(last, awake & done)
            recorder.step(action, reward, last, awake & ~resets)
            recorder.start(observation, awake & resets)
        counted = counter.step(reward, terminated, done, resets, success.read(info, done))
        _check_ends(counter, longest)
        if recorder is not None:
            recorder.end(counted, terminated, truncated)
        if counted:
            progress(len(counted))
        if counter.rests.all():
            return counter.episodes(recorder)
        begins = done & ~counter.rests
        if mode != AutoresetMode.NEXT_STEP and done.any():
            observation = watch.next(observation, begins, done, mode)
            if recorder is not None:
                recorder.start(observation, begins)


def _check_ends(counter: Counter, longest: int | None) -> None:
    if longest is not None and counter.steps[~counter.rests].max(initial=0) >= longest:
        raise InvalidInput(
            f"an episode has not ended after {longest} steps; pass a time limit as --horizon (in Python: "
            "max_episode_steps of the EnvironmentSpec)"
        )


def _shown(
    awake: Flags, first: Any, observation: Any, reward: Array | None, terminated: Flags, truncated: Flags
) -> Any:
    """What the actor sees: of rows at rest an episode that has ended, with its first observation and no reward."""
    if awake.all():
        return observation, reward, terminated, truncated
    earned = None if reward is None else np.where(awake, reward, 0.0)
    return where(awake, observation, first), earned, terminated | ~awake, truncated & awake


def _before_reset(observation: Any, info: dict[str, Any], done: Flags) -> Any:
    """The observations after a step, with the last of each episode that ended instead of the first of the next."""
    if not done.any():
        return observation
    if "final_obs" not in info:
        raise InvalidInput(
            'the vector environment resets in the same step and its info lacks "final_obs", the observation before the '
            "reset; roll out in another autoreset mode, or without record"
        )
    rows = [info["final_obs"][row] if ended else row_of(observation, row) for row, ended in enumerate(done)]
    return stacked(rows)
