"""Several copies of an environment in a batch, which rest once they are done."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from aaren_rl.envs.batches import row_of
from aaren_rl.envs.workers import Answers, Call, LocalRows, RowFailed, WorkerRows
from aaren_rl.errors import EpisodeFailed, InvalidInput

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Info = dict[str, Any]


class _Kept:
    """The last observation of every row.

    Args:
        space: of an observation.
        rows: of the batch.
    """

    def __init__(self, space: gym.Space[Any], rows: int) -> None:
        self.space, self.is_array = space, isinstance(space, gym.spaces.Box)
        self.kept: Any = np.zeros((rows, *(space.shape or ())), space.dtype) if self.is_array else [None] * rows
        # Before its first reset a row shows something of its space.
        self.blank = None if self.is_array else create_empty_array(space, 1)

    def __setitem__(self, row: int, observation: Any) -> None:
        self.kept[row] = observation

    def batch(self) -> Any:
        """A copy, batched as Gymnasium batches."""
        if self.is_array:
            return self.kept.copy()
        rows = [row_of(self.blank, 0) if value is None else value for value in self.kept]
        out: Any = create_empty_array(self.space, len(rows))
        return concatenate(self.space, rows, out)


class RestingVectorEnv(VectorEnv[Any, Any, Array]):
    """Copies of an environment; a row whose episode has ended rests until it is reset.

    A row at rest is not simulated: `step` ignores its action and returns its last observation again, a reward of 0, and
    the same `terminated` and `truncated`. With `reset(options={"reset_mask": rows})` some rows start anew. Infos hold
    numbers and flags alone.

    Args:
        make: makes the environment; each row has its own.
        num_envs: rows.
        processes: processes that the rows are spread over; 1 for this process alone, more for as many worker processes.
            Episodes are the same either way.
        name: of the environment, for messages.

    Raises:
        InvalidInput: fewer than 1 row or 1 process, or as `make`.
        EpisodeFailed: an environment cannot be made; those made before it are closed.
    """

    def __init__(
        self, make: Callable[[], gym.Env[Any, Any]], num_envs: int, processes: int = 1, name: str = "environment"
    ) -> None:
        if num_envs < 1 or processes < 1:
            raise InvalidInput(f"{num_envs} rows in {processes} processes; expected at least 1 of each")
        self.name, self.num_envs = name, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self._groups: list[LocalRows | WorkerRows] = []
        try:
            self.single_observation_space, self.single_action_space = self._make(make, processes)
        except BaseException as error:
            self.close()
            if isinstance(error, RowFailed):
                raise self._not_made(error) from error.__cause__
            raise
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations = _Kept(self.single_observation_space, num_envs)
        # Terminated and truncated, (2, rows); before its first reset a row rests.
        self._ends = np.ones((2, num_envs), dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Info]:
        """Starts an episode in all rows, or in those of `options["reset_mask"]`.

        Args:
            seed: of each row; a single one stands for itself and those that follow it.
            options: handed on to the environments, without "reset_mask".

        Raises:
            RowFailed: an environment failed.
        """
        given = dict(options or {})
        mask = np.asarray(given.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        seeds = (
            [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        )
        rows = np.flatnonzero(mask).tolist()
        answers = self._ask("reset", {row: {"seed": seeds[row], "options": given or None} for row in rows})
        self._ends[:, mask] = False
        infos: Info = {}
        for row, (observation, info) in answers.items():
            self._observations[row] = observation
            self._add_numbers(infos, row, info)
        return self._observations.batch(), infos

    def step(self, actions: Any) -> tuple[Any, Array, Flags, Flags, Info]:
        """Steps the rows that do not rest.

        Raises:
            RowFailed: an environment failed.
        """
        awake = np.flatnonzero(~self._ends.any(0)).tolist()
        answers = self._ask("step", {row: row_of(actions, row) for row in awake})
        rewards, infos = np.zeros(self.num_envs), dict[str, Any]()
        for row, (observation, reward, terminated, truncated, info) in answers.items():
            self._observations[row], rewards[row] = observation, reward
            self._ends[:, row] = terminated, truncated
            self._add_numbers(infos, row, info)
        return self._observations.batch(), rewards, self._ends[0].copy(), self._ends[1].copy(), infos

    def close_extras(self, **kwargs: Any) -> None:
        """Closes every environment, whichever of them fails to close: that is a warning."""
        while self._groups:
            for wrong in self._groups.pop().close():
                warnings.warn(f"environment {self.name} was not closed in {wrong}", RuntimeWarning, stacklevel=2)

    def _make(self, make: Callable[[], gym.Env[Any, Any]], processes: int) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Makes all environments, and returns their observation and action space."""
        if processes == 1:
            local = LocalRows(make, range(self.num_envs))
            self._groups.append(local)
            return local.spaces
        workers = []
        for rows in np.array_split(np.arange(self.num_envs), min(processes, self.num_envs)):
            workers.append(WorkerRows(make, rows.tolist()))
            self._groups.append(workers[-1])
        # Each is waited for, since any may fail.
        spaces = [worker.await_spaces() for worker in workers]
        return spaces[0]

    def _not_made(self, error: RowFailed) -> EpisodeFailed:
        row, others = error.rows[0], self.num_envs > 1 and error.rows[0] > 0
        advice = (
            "; if so many cannot be open at once, ask for fewer, as --instances 1 (in Python instances=1)"
            if others
            else ""
        )
        return EpisodeFailed(
            f"environment {self.name} cannot be made, instance {row + 1} of {self.num_envs}: {error}{advice}",
            environment=self.name,
            row=row,
        )

    def _ask(self, call: Call, arguments: dict[int, Any]) -> Answers:
        """The answers of some rows, those of worker processes at the same time."""
        asked, answers, failed = [], Answers(), []
        for group in self._groups:
            rows: Iterable[int] = group.envs if isinstance(group, LocalRows) else group.rows
            if parts := {row: arguments[row] for row in rows if row in arguments}:
                group.send(call, parts)
                asked.append(group)
        for group in asked:
            try:
                answers |= group.receive()
            except RowFailed as error:
                failed.append(error)
        if failed:
            # All answers were read first, so that none is taken for that of a later call.
            raise failed[0]
        return answers

    def _add_numbers(self, infos: Info, row: int, info: dict[str, float]) -> None:
        """Adds the info of a row as Gymnasium batches infos: an array for a key, and the rows that have it."""
        for key, value in info.items():
            infos.setdefault(key, np.zeros(self.num_envs))[row] = value
            infos.setdefault(f"_{key}", np.zeros(self.num_envs, dtype=np.bool_))[row] = True
