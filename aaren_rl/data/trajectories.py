"""Offline data: whole episodes packed one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import DataError

Floats = npt.NDArray[np.float32]

_BLOCK_STEPS, _BLOCK_NUMBERS = 65_536, 1 << 26
"""Most steps, and most numbers, that a pass over the data takes at once: it makes no second copy of the data."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, recorded in an environment or made from anyone's NumPy arrays.

    Attributes:
        observations: (T, *observation shape), or (T + 1, *observation shape) with the one after the last action.
        actions: (T, *action shape).
        rewards: (T,).
        terminated: True if the episode ended in a state that the task calls final.
        truncated: True if the episode was cut off, by a time limit for instance.
    """

    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[Any]
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class Trajectories:
    """Episodes of one environment in packed arrays of steps.

    float32 arrays are taken without a copy, others are converted. Observations and actions may have any shape.

    Attributes:
        observations: (steps, *observation shape), float32: those that an action follows.
        actions: (steps, *action shape), float32.
        rewards: (steps,), float32.
        offsets: (episodes + 1,), int64: episode i is the steps from offsets[i] up to offsets[i + 1].
        terminated: (episodes,) bool: the episode ended in a state that the task calls final.
        truncated: (episodes,) bool: the episode was cut off, by a time limit for instance.
        final_observations: (episodes, *observation shape), float32: the observation after an episode's last action.
            The value of a cut episode is bootstrapped from it. None where the data lack it.
        returns_to_go: (steps,), float32: undiscounted sum of the rewards from a step to its episode's end.

    Raises:
        DataError: empty, of lengths or shapes that do not match, not finite, or with offsets that do not cover the
            steps.
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    offsets: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final_observations: Floats | None = None
    returns_to_go: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "rewards", "final_observations"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        object.__setattr__(self, "offsets", np.asarray(self.offsets, dtype=np.int64))
        for name in ("terminated", "truncated"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.bool_))
        self._check_lengths()
        self._check_episodes()
        self._check_values()
        object.__setattr__(self, "returns_to_go", returns_to_go(self.rewards, self.offsets))

    @classmethod
    def from_episodes(cls, episodes: Iterable[Episode]) -> Trajectories:
        """Packs episodes one after another.

        T + 1 observations give a final observation, T observations give none. A mixture of both is refused: to drop
        the final observations of some episodes would go unnoticed. An episode that is neither terminated nor truncated
        counts as truncated, since nothing says that the task ended where its data end.

        Args:
            episodes: at least one, of the same observation shape and action shape.

        Raises:
            DataError: no episodes, arrays that are not numbers, lengths or shapes that do not match, values that are
                not finite, or a mixture of episodes with and without a final observation. The message names the
                episode, counted from 0.
        """
        whole = [_checked(number, episode) for number, episode in enumerate(episodes)]
        if not whole:
            raise DataError("no episodes; expected at least one")
        first = whole[0]
        for number, episode in enumerate(whole):
            _check_alike(number, episode, first)
        lengths = [len(episode.rewards) for episode in whole]
        final = _packed([episode.observations[-1:] for episode in whole]) if _has_final(first) else None
        return cls(
            _packed([episode.observations[: len(episode.rewards)] for episode in whole]),
            _packed([episode.actions for episode in whole]),
            _packed([episode.rewards for episode in whole]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.array([episode.terminated for episode in whole]),
            np.array([episode.truncated or not episode.terminated for episode in whole]),
            final,
        )

    def select(self, numbers: npt.NDArray[np.int64]) -> Trajectories:
        """Some of the episodes, (chosen,) by number, in the order given.

        Raises:
            DataError: none are chosen.
            IndexError: a number is out of range.
        """
        lengths, starts = self.lengths[numbers], self.offsets[:-1][numbers]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        steps = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Trajectories(
            self.observations[steps],
            self.actions[steps],
            self.rewards[steps],
            offsets,
            self.terminated[numbers],
            self.truncated[numbers],
            None if self.final_observations is None else self.final_observations[numbers],
        )

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.offsets) - 1

    @property
    def steps(self) -> int:
        """Number of steps of all episodes together."""
        return len(self.rewards)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Steps of each episode, (episodes,)."""
        return np.diff(self.offsets)

    @property
    def returns(self) -> Floats:
        """Undiscounted return of each episode, (episodes,)."""
        return self.returns_to_go[self.offsets[:-1]]

    def observation_statistics(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the observations, each of the observation shape.

        A component that does not vary gets a deviation of 1. Dividing by next to nothing would magnify whatever the
        component does when the agent acts.
        """
        # 1. A mean of some 10,000 steps, near enough that the differences from it are small.
        mean = self.observations[:: max(1, self.steps // 10_000)].mean(0, dtype=np.float64)
        # 2. Sums of the differences and of their squares, in float64.
        total = np.zeros(self.observations.shape[1:])
        squares = np.zeros_like(total)
        for _, block in _blocks(self.observations):
            difference = block - mean
            total += difference.sum(0)
            squares += np.square(difference).sum(0)
        # 3. The mean is moved by the mean difference.
        shift = total / self.steps
        std = np.sqrt(np.maximum(squares / self.steps - shift**2, 0.0))
        return np.asarray(mean + shift, np.float32), np.asarray(np.where(std > 1e-6, std, 1.0), np.float32)

    def _check_lengths(self) -> None:
        if self.rewards.ndim != 1:
            raise DataError(
                f"observations {self.observations.shape}, actions {self.actions.shape} and rewards "
                f"{self.rewards.shape}; expected (steps, *observation shape), (steps, *action shape) and (steps,)"
            )
        if not len(self.observations) == len(self.actions) == len(self.rewards):
            raise DataError(
                f"{len(self.observations)} observations, {len(self.actions)} actions and {len(self.rewards)} rewards; "
                "expected one of each per step (pass the observation after an episode's last action in "
                "final_observations)"
            )

    def _check_episodes(self) -> None:
        if self.episodes < 1 or self.steps < 1:
            raise DataError("the dataset holds no whole episode")
        if self.offsets[0] != 0 or self.offsets[-1] != self.steps or (self.lengths < 1).any():
            raise DataError(
                f"episode offsets must rise from 0 to the number of steps, {self.steps}; "
                f"they go from {self.offsets[0]} to {self.offsets[-1]}, shortest episode {self.lengths.min()}"
            )
        if not len(self.terminated) == len(self.truncated) == self.episodes:
            raise DataError(
                f"{len(self.terminated)} terminated and {len(self.truncated)} truncated flags "
                f"for {self.episodes} episodes; expected one each"
            )
        expected = (self.episodes, *self.observations.shape[1:])
        if self.final_observations is not None and self.final_observations.shape != expected:
            raise DataError(
                f"final_observations has shape {self.final_observations.shape}; expected {expected}, one observation "
                "for each episode"
            )

    def _check_values(self) -> None:
        for name in ("observations", "actions", "rewards"):
            step = _first_not_finite(getattr(self, name))
            if step is not None:
                episode = int(np.searchsorted(self.offsets, step, side="right")) - 1
                raise DataError(f"{name} holds a NaN or an infinite value at step {step}, in episode {episode}")
        if self.final_observations is not None:
            number = _first_not_finite(self.final_observations)
            if number is not None:
                raise DataError(f"final_observations holds a NaN or an infinite value in episode {number}")


def returns_to_go(rewards: Floats, offsets: npt.NDArray[np.int64]) -> Floats:
    """Sum of the rewards from each step to the end of its episode.

    Args:
        rewards: (steps,).
        offsets: (episodes + 1,), as in `Trajectories`.

    Returns:
        (steps,) float32, summed in float64.
    """
    before = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    until_end = np.repeat(before[offsets[1:]], np.diff(offsets))
    until_end -= before[:-1]
    return until_end.astype(np.float32)


def _blocks(array: Floats) -> Iterator[tuple[int, Floats]]:
    """Consecutive rows of an array, each block with the index of its first row."""
    rows = min(_BLOCK_STEPS, max(1, _BLOCK_NUMBERS // max(1, math.prod(array.shape[1:]))))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def _first_not_finite(array: Floats) -> int | None:
    """Index of the first row with a NaN or an infinite value; None if there is none."""
    for start, block in _blocks(array):
        bad = ~np.isfinite(block)
        if bad.any():
            return start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
    return None


def _checked(number: int, episode: Episode) -> Episode:
    """The episode with arrays of numbers for its fields, of lengths that fit.

    Raises:
        DataError: they are something else.
    """
    names = ("observations", "actions", "rewards")
    observations, actions, rewards = (_numbers(number, name, getattr(episode, name)) for name in names)
    if min(observations.ndim, actions.ndim) < 1 or rewards.ndim != 1:
        raise DataError(
            f"episode {number} has observations {observations.shape}, actions {actions.shape} and rewards "
            f"{rewards.shape}; expected (T or T + 1, *observation shape), (T, *action shape) and (T,)"
        )
    steps = len(rewards)
    if steps < 1 or len(actions) != steps or len(observations) not in (steps, steps + 1):
        raise DataError(
            f"episode {number} has {len(observations)} observations, {len(actions)} actions and {steps} rewards; "
            "expected T or T + 1, T and T, with T at least 1"
        )
    for name in ("terminated", "truncated"):
        if np.shape(getattr(episode, name)):
            raise DataError(
                f"{name} of episode {number} has shape {np.shape(getattr(episode, name))}; expected one bool, which "
                "says how the episode ended"
            )
    if actions.ndim == 1 and actions.dtype.kind in "iub":
        raise DataError(
            f"actions of episode {number} are {actions.dtype} numbers, one a step, so they seem discrete; this version "
            "learns continuous actions (pass floats if they are)"
        )
    return Episode(observations, actions, rewards, bool(episode.terminated), bool(episode.truncated))


def _numbers(number: int, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} of episode {number} are not an array: {error}; expected numbers") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} of episode {number} have the dtype {array.dtype}; expected numbers")
    return array


def _check_alike(number: int, episode: Episode, first: Episode) -> None:
    """Makes sure that an episode can be packed with the first one.

    Raises:
        DataError: shapes differ, or one of the two alone has a final observation.
    """
    for name in ("observations", "actions"):
        given, expected = getattr(episode, name).shape[1:], getattr(first, name).shape[1:]
        if given != expected:
            raise DataError(
                f"{name} of episode {number} have shape {given} per step; expected {expected}, as episode 0"
            )
    if _has_final(episode) != _has_final(first):
        raise DataError(
            f"episode {number} has {len(episode.observations)} observations for {len(episode.rewards)} steps, episode "
            f"0 has {len(first.observations)} for {len(first.rewards)}; expected the observation after the last action "
            "in all episodes (T + 1 observations) or in none (T)"
        )


def _has_final(episode: Episode) -> bool:
    return len(episode.observations) > len(episode.rewards)


def _packed(parts: list[npt.NDArray[Any]]) -> Floats:
    """The rows of all parts, one part after another, in float32 without a wider copy."""
    with np.errstate(over="ignore"):  # What overflows float32 is found as infinite, with its place.
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")
