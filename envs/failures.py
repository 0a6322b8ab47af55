"""Failures of environments in a roll-out, reported with the episode, the step and the seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from aaren_rl.envs.episodes import Counter
from aaren_rl.envs.vector import RestingVectorEnv
from aaren_rl.envs.workers import RowFailed, describe_error
from aaren_rl.errors import EpisodeFailed

Flags = npt.NDArray[np.bool_]


class Watch:
    """Calls a vector environment, and turns what fails into `EpisodeFailed`.

    Args:
        envs: the environments.
        counter: of their episodes.
        seed: of the first reset of row 0; row i has seed + i.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], counter: Counter, seed: int) -> None:
        self.envs, self.counter, self.seed = envs, counter, seed
        self.name = name_of(envs)
        self._rows_rest = isinstance(envs, RestingVectorEnv)
        # Number of each row's step, for messages.
        self._now = counter.steps

    def first(self, rows: Flags) -> Any:
        """Resets all rows with their seeds, checks the observations of some, and returns all.

        Args:
            rows: that have episodes to play; a `RestingVectorEnv` resets these alone.

        Raises:
            EpisodeFailed: an environment failed.
        """
        # A list, since vector environments differ in how they spread a single seed.
        seeds = [self.seed + row for row in range(self.envs.num_envs)]
        options = {} if not self._rows_rest or rows.all() else {"options": {"reset_mask": rows}}
        return self._reset(rows, seed=seeds, **options)

    def next(self, observation: Any, rows: Flags, done: Flags, mode: AutoresetMode) -> Any:
        """Begins the next episodes, checks their first observations, and returns the observations of all rows.

        Args:
            observation: after the last step.
            rows: whose next episodes are wanted.
            done: rows whose episodes ended.
            mode: of the vector environment, SAME_STEP or DISABLED.

        Raises:
            EpisodeFailed: an environment failed.
        """
        # Vector environments of others refuse to step rows that were not reset.
        due = rows if self._rows_rest else done
        if mode == AutoresetMode.DISABLED and due.any():
            return self._reset(rows, options={"reset_mask": due.copy()})
        self._now = np.zeros_like(self.counter.steps)
        self.check(observation, rows)
        return observation

    def step(self, action: Any, rows: Flags, resets: Flags) -> Any:
        """Steps, and checks the rewards of some rows.

        Args:
            action: of all rows.
            rows: that are counted.
            resets: rows whose step only resets.

        Returns:
            What the environments' `step` returned.

        Raises:
            EpisodeFailed: an environment failed.
        """
        self._now = np.where(resets, 0, self.counter.steps + 1)
        try:
            returned = self.envs.step(action)
        except Exception as error:
            raise self._failed(error) from (error.__cause__ if isinstance(error, RowFailed) else error)
        for name, array in zip(("rewards", "terminated", "truncated"), returned[1:4], strict=True):
            if np.shape(array) != rows.shape:
                raise self._failed(RowFailed(f"{name} have shape {np.shape(array)}; expected {rows.shape}"))
        finite = np.isfinite(np.asarray(returned[1], dtype=np.float64))
        for row in np.flatnonzero(rows & ~resets & ~finite):
            raise self._failed(RowFailed(f"the reward is {returned[1][row]}", [int(row)]))
        return returned

    def check(self, observation: Any, rows: Flags) -> None:
        """Checks that the observations of some rows are finite in float32, in which agents compute.

        Raises:
            EpisodeFailed: one is not.
        """
        for part in _arrays(observation):
            with np.errstate(over="ignore"):
                finite = np.isfinite(part.astype(np.float32, copy=False)).reshape(len(part), -1).all(1)
            for row in np.flatnonzero(rows & ~finite):
                with np.errstate(over="ignore"):
                    where = np.argwhere(~np.isfinite(part[row].astype(np.float32)))[0]
                value, place = part[row][tuple(where)], ", ".join(map(str, where))
                raise self._failed(RowFailed(f"the observation is {value} at [{place}]", [int(row)]))

    def _reset(self, rows: Flags, **arguments: Any) -> Any:
        self._now = np.zeros_like(self.counter.steps)
        try:
            observation, _ = self.envs.reset(**arguments)
        except Exception as error:
            raise self._failed(error) from (error.__cause__ if isinstance(error, RowFailed) else error)
        self.check(observation, rows)
        return observation

    def _failed(self, error: Exception) -> EpisodeFailed:
        rows, cause = (error.rows, str(error)) if isinstance(error, RowFailed) else ((), describe_error(error))
        rows = rows or tuple(range(self.envs.num_envs))
        if len(rows) > 1:
            return EpisodeFailed(
                f"environment {self.name} failed in one of the rows {rows[0]} to {rows[-1]}, whose first resets have "
                f"the seeds {self.seed + rows[0]} to {self.seed + rows[-1]}: {cause}",
                environment=self.name,
            )
        (row,), counter = rows, self.counter
        step, seed, episode = int(self._now[row]), self.seed + row, int(counter.ended[row]) + 1
        at = f"at step {step}" if step else "at the reset"
        return EpisodeFailed(
            f"environment {self.name} failed {at} of episode {episode} of {counter.share[row]} in row {row} (seed "
            f"{seed}): {cause}; to play it again: --seed {seed} --instances 1 --episodes {episode}",
            environment=self.name,
            row=row,
            episode=episode,
            episodes=int(counter.share[row]),
            seed=seed,
            step=step,
        )


def name_of(envs: VectorEnv[Any, Any, Any]) -> str:
    """The environment's id where the vector environment knows it, else its class."""
    innermost = envs.unwrapped
    if named := getattr(innermost, "name", None):
        return str(named)
    # Vector environments that were made from functions have no spec.
    first = next(iter(getattr(innermost, "envs", ())), innermost)
    spec = innermost.spec or first.spec
    return type(first.unwrapped).__name__ if spec is None else str(spec.id)


def _arrays(observation: Any) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """The arrays of real numbers in a batch of observations, (rows, ...) each; batches may be nested."""
    if isinstance(observation, dict):
        observation = tuple(observation.values())
    if isinstance(observation, tuple):
        for part in observation:
            # Texts are tuples of str.
            yield from _arrays(part)
    elif isinstance(observation, np.ndarray) and np.issubdtype(observation.dtype, np.floating):
        yield observation
