"""Rolls an actor out in a vector environment and counts, or records, whole episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from aaren_rl.actor import Actor
from aaren_rl.data.trajectories import Episode
from aaren_rl.errors import InvalidInput

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, in the order of the vector's rows.

    Attributes:
        returns: undiscounted, (episodes,).
        lengths: steps, (episodes,).
        recorded: the episodes themselves, T + 1 observations each; empty unless `roll_out` records.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    recorded: tuple[Episode, ...] = ()


def roll_out(
    actor: Actor,
    envs: VectorEnv[Any, Any, Any],
    episodes: int,
    target_return: float | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
    record: bool = False,
) -> Episodes:
    """Runs whole episodes.

    Each row of the vector has its share of the episodes from the start; otherwise short episodes would count for more.
    Every autoreset mode of Gymnasium gives the same episodes.

    Args:
        actor: acts in all rows; it is reset first.
        envs: the environments, of any `autoreset_mode`.
        episodes: number of episodes in all.
        target_return: return to ask the actor for; None for its default.
        seed: row i is seeded with seed + i before its first episode.
        progress: called with the number of episodes done since the last call.
        record: keep the episodes as well as their returns.

    Returns:
        The episodes.

    Raises:
        InvalidInput: the number of episodes is below 1, or they are to be recorded and the environment resets in the
            same step without giving the observation before the reset.
    """
    if episodes < 1:
        raise InvalidInput(f"{episodes} episodes; expected at least 1")
    mode = AutoresetMode(envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
    rows = envs.num_envs
    counter = _Counter(np.full(rows, episodes // rows) + (np.arange(rows) < episodes % rows))
    done = terminated = truncated = np.zeros(rows, dtype=np.bool_)
    reward = None
    # A list of seeds, since vector environments differ in how they spread a single seed.
    observation, _ = envs.reset(seed=[seed + row for row in range(rows)])  # type: ignore[arg-type]
    recorder = _Recorder(observation) if record else None
    actor.reset(target_return, rows, mode)
    while True:
        action = actor.act(observation, reward, terminated, truncated)
        observation, reward, terminated, truncated, info = envs.step(action)
        # In NEXT_STEP mode the step after an end only resets: its action and its reward belong to no episode.
        resets = done if mode == AutoresetMode.NEXT_STEP else np.zeros_like(done)
        done = terminated | truncated
        counted = counter.step(reward, done, resets)
        if recorder is not None:
            last = _before_reset(observation, info, done) if mode == AutoresetMode.SAME_STEP else observation
            recorder.step(action, reward, last, resets)
            recorder.end(counted, terminated, truncated)
        if counted:
            progress(len(counted))
        if counter.complete:
            return counter.episodes(recorder)
        if mode == AutoresetMode.DISABLED and done.any():
            observation, _ = envs.reset(options={"reset_mask": done})
        if recorder is not None and mode != AutoresetMode.NEXT_STEP:
            recorder.start(observation, done)


class _Counter:
    """Returns and lengths of the episodes of each row, up to the row's share.

    Args:
        share: episodes of each row, (rows,).
    """

    def __init__(self, share: npt.NDArray[np.int64]) -> None:
        self._share = share
        self._returns: list[list[float]] = [[] for _ in share]
        self._lengths: list[list[int]] = [[] for _ in share]
        self._total, self._steps = np.zeros(len(share)), np.zeros(len(share), dtype=np.int64)

    @property
    def complete(self) -> bool:
        return all(len(ended) == wanted for ended, wanted in zip(self._returns, self._share, strict=True))

    def step(self, reward: Array, done: Flags, resets: Flags) -> list[int]:
        """Adds a step to the rows that do not reset, and returns the rows in which an episode of the share ends."""
        self._total, self._steps = self._total + np.where(resets, 0.0, reward), self._steps + ~resets
        ended = [int(row) for row in np.flatnonzero(done) if len(self._returns[row]) < self._share[row]]
        for row in ended:
            self._returns[row].append(float(self._total[row]))
            self._lengths[row].append(int(self._steps[row]))
        self._total[done], self._steps[done] = 0.0, 0
        return ended

    def episodes(self, recorder: _Recorder | None) -> Episodes:
        returns = np.array([value for row in self._returns for value in row])
        lengths = np.array([value for row in self._lengths for value in row])
        return Episodes(returns, lengths, () if recorder is None else recorder.episodes())


class _Recorder:
    """The episode under way in each row, and the whole ones.

    Args:
        observation: the first of each row, (rows, *observation shape).
    """

    def __init__(self, observation: Array) -> None:
        rows = len(observation)
        self._whole: list[list[Episode]] = [[] for _ in range(rows)]
        self._observations: list[list[Array]] = [[] for _ in range(rows)]
        self._actions: list[list[Array]] = [[] for _ in range(rows)]
        self._rewards: list[list[float]] = [[] for _ in range(rows)]
        self.start(observation, np.ones(rows, dtype=np.bool_))

    def start(self, observation: Array, rows: Flags) -> None:
        """Starts an episode in some rows with their first observation."""
        for row in np.flatnonzero(rows):
            # Copies, since environments and actors may write into their arrays again.
            self._observations[row] = [np.array(observation[row])]
            self._actions[row], self._rewards[row] = [], []

    def step(self, action: Array, reward: Array, observation: Array, resets: Flags) -> None:
        """Adds a step and the observation after it; rows that only reset start with that observation instead."""
        for row in np.flatnonzero(~resets):
            self._observations[row].append(np.array(observation[row]))
            self._actions[row].append(np.array(action[row]))
            self._rewards[row].append(float(reward[row]))
        self.start(observation, resets)

    def end(self, rows: list[int], terminated: Flags, truncated: Flags) -> None:
        """Keeps the episodes of some rows, which are whole."""
        for row in rows:
            observations, actions = np.stack(self._observations[row]), np.stack(self._actions[row])
            ends = bool(terminated[row]), bool(truncated[row])
            self._whole[row].append(Episode(observations, actions, np.array(self._rewards[row]), *ends))

    def episodes(self) -> tuple[Episode, ...]:
        return tuple(episode for row in self._whole for episode in row)


def _before_reset(observation: Array, info: dict[str, Any], done: Flags) -> Array:
    """The observations after a step, with the last of each episode that ended instead of the first of the next."""
    if not done.any():
        return observation
    if "final_obs" not in info:
        raise InvalidInput(
            'the vector environment resets in the same step and its info lacks "final_obs", the observation before the '
            "reset; roll out in another autoreset mode, or without record"
        )
    last = np.array(observation)
    for row in np.flatnonzero(done):
        last[row] = info["final_obs"][row]
    return last
