"""Offline data: whole episodes packed one after another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import DataError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trajectories:
    """Episodes of one environment in packed arrays of steps.

    The arrays are taken as they are, without a copy when they are float32; the observation after the last action of
    an episode (Minari's T+1st) is left out, since no action follows it.

    Attributes:
        observations: (steps, observation size), float32.
        actions: (steps, action size), float32.
        rewards: (steps,), float32.
        offsets: (episodes + 1,), int64: episode i is the steps from offsets[i] up to offsets[i + 1].
        terminated: (episodes,) bool, the episode ended in a state the task calls final.
        truncated: (episodes,) bool, the episode was cut off, by a time limit for instance.
        returns_to_go: (steps,), float32: undiscounted sum of the rewards from a step to its episode's end.

    Raises:
        DataError: empty, of lengths that do not match, not finite, or with offsets that do not cover the steps.
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    offsets: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    returns_to_go: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "rewards"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        object.__setattr__(self, "offsets", np.asarray(self.offsets, dtype=np.int64))
        for name in ("terminated", "truncated"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.bool_))
        self._check()
        object.__setattr__(self, "returns_to_go", returns_to_go(self.rewards, self.offsets))

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
        """Mean and standard deviation of the observations, each (observation size,).

        A component that does not vary gets a deviation of 1: dividing by next to nothing would magnify whatever it
        does when acting.
        """
        # Sums over blocks in float64, so that no float64 copy of the data is made.
        total = np.zeros(self.observations.shape[1])
        squares = np.zeros_like(total)
        mean = self.observations[:: max(1, self.steps // 10_000)].mean(0, dtype=np.float64)
        for start in range(0, self.steps, 65_536):
            block = self.observations[start : start + 65_536] - mean
            total += block.sum(0)
            squares += np.square(block).sum(0)
        shift = total / self.steps
        std = np.sqrt(np.maximum(squares / self.steps - shift**2, 0.0))
        return (mean + shift).astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)

    def _check(self) -> None:
        if self.observations.ndim != 2 or self.actions.ndim != 2 or self.rewards.ndim != 1:
            raise DataError(
                f"observations {self.observations.shape}, actions {self.actions.shape} and rewards "
                f"{self.rewards.shape}; expected (steps, size), (steps, size) and (steps,)"
            )
        if not len(self.observations) == len(self.actions) == len(self.rewards):
            raise DataError(
                f"{len(self.observations)} observations, {len(self.actions)} actions and {len(self.rewards)} rewards; "
                "expected one of each per step (leave out the observation after an episode's last action)"
            )
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
        for name in ("observations", "actions", "rewards"):
            array = getattr(self, name)
            for start in range(0, len(array), 65_536):
                bad = ~np.isfinite(array[start : start + 65_536])
                if bad.any():
                    step = start + int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
                    episode = int(np.searchsorted(self.offsets, step, side="right")) - 1
                    raise DataError(f"{name} holds a NaN or an infinite value at step {step}, in episode {episode}")


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
