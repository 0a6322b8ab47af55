"""The environments of some rows of a vector environment, in this process or in a worker process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np

from aaren_rl.data.spaces import Space, space_of
from aaren_rl.errors import AarenError, InvalidInput

Call: TypeAlias = Literal["reset", "step"]
Answers: TypeAlias = dict[int, tuple[Any, ...]]
"""What `reset` or `step` of each row's environment returned."""

CLOSING = 10.0
"""Seconds that a worker process has to close its environments; after them it is killed."""

_WATCH = 5.0
"""Seconds after which a worker process looks again whether its parent still lives."""


class RowFailed(Exception):
    """An environment raised an error, or returned what does not fit its spaces.

    Args:
        message: the cause in one line.
        rows: the row, or the rows of which it is one.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class WorkerTraceback(Exception):
    """The traceback of an error in a worker process, as text."""


def describe_error(error: BaseException) -> str:
    """Type and message of an error, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class LocalRows:
    """Environments that this process steps.

    Args:
        make: makes one.
        rows: the rows that they stand in.

    Raises:
        RowFailed: one cannot be made; those made before it are closed.
        AarenError: likewise, as `make` raises it.
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]], rows: Sequence[int]) -> None:
        self.envs: dict[int, gym.Env[Any, Any]] = {}
        for row in rows:
            try:
                self.envs[row] = make()
            except Exception as error:
                self.close()
                # Of a later row the cause may be that there are others, which the caller says.
                if isinstance(error, AarenError) and row == 0:
                    raise
                cause = error.__cause__ if isinstance(error, AarenError) and error.__cause__ else error
                raise RowFailed(describe_error(cause), [row]) from cause
        first = next(iter(self.envs.values()))
        self.spaces = first.observation_space, first.action_space

    def send(self, call: Call, arguments: Mapping[int, Any]) -> None:
        """Takes a call for some rows, whose answers `receive` returns.

        Args:
            call: method to call.
            arguments: keyword arguments of `reset`, or the action of `step`, of each row.
        """
        self._pending = call, arguments

    def receive(self) -> Answers:
        """The answers to what was sent.

        Raises:
            RowFailed: an environment failed.
        """
        call, arguments = self._pending
        answers: Answers = {}
        for row, argument in arguments.items():
            try:
                answers[row] = self._reset(row, argument) if call == "reset" else self._step(row, argument)
            except RowFailed as error:
                error.rows = (row,)
                raise
            except Exception as error:
                raise RowFailed(describe_error(error), [row]) from error
        return answers

    def close(self) -> list[str]:
        """Closes all environments, and returns what went wrong with which."""
        wrong = []
        while self.envs:
            row, env = self.envs.popitem()
            try:
                env.close()
            except Exception as error:
                wrong.append(f"row {row}: {describe_error(error)}")
        return wrong

    def _reset(self, row: int, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        observation, info = self.envs[row].reset(**arguments)
        return self._checked(observation), _numbers(info)

    def _step(self, row: int, action: Any) -> tuple[Any, ...]:
        observation, reward, terminated, truncated, info = self.envs[row].step(action)
        earned = np.asarray(reward, dtype=np.float64)
        if earned.size != 1:
            raise RowFailed(f"the reward has shape {earned.shape}; expected a number")
        return self._checked(observation), earned.item(), bool(terminated), bool(truncated), _numbers(info)

    @cached_property
    def _described(self) -> Space:
        return space_of(self.spaces[0])

    def _checked(self, observation: Any) -> Any:
        space = self.spaces[0]
        if not isinstance(space, gym.spaces.Box):
            # Gymnasium's test of these spaces is quicker than packing, which says what is wrong.
            quick = isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)
            if not (quick and space.contains(observation)):
                try:
                    self._described.pack(observation)
                except InvalidInput as error:
                    raise RowFailed(f"the observation does not fit its space: {error}") from error
            # A copy, since environments may write into their arrays again.
            return copy.deepcopy(observation)
        if np.shape(observation) != space.shape:
            raise RowFailed(f"the observation has shape {np.shape(observation)}; expected {space.shape}")
        # A value beyond the space's type becomes infinite, which the roll-out reports.
        with np.errstate(over="ignore"):
            return np.array(observation, dtype=space.dtype)


class WorkerRows:
    """Environments in a worker process; methods are those of `LocalRows`.

    The process is a fork where the system has forks that are safe, on Linux: it knows what this process knows, as
    environments that were registered here. Elsewhere it starts anew, and an environment has to be known there too.

    Args:
        make: makes an environment.
        rows: the rows that they stand in.
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]], rows: Sequence[int]) -> None:
        self.rows = tuple(rows)
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, self.rows, os.getpid()), daemon=True)
        self._process.start()
        # Only with this end closed does the other end's disappearance show.
        theirs.close()

    def await_spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Observation and action space, once the environments are made.

        Raises:
            RowFailed: one cannot be made.
            AarenError: likewise, as `make` raises it.
        """
        spaces: tuple[gym.Space[Any], gym.Space[Any]] = self._answer()
        return spaces

    def send(self, call: Call, arguments: Mapping[int, Any]) -> None:
        """See `LocalRows.send`."""
        # A process that has died is found out by `receive`.
        with suppress(OSError):
            self._connection.send((call, dict(arguments)))

    def receive(self) -> Answers:
        """See `LocalRows.receive`."""
        answers: Answers = self._answer()
        return answers

    def close(self) -> list[str]:
        """See `LocalRows.close`; a process that does not end is killed."""
        wrong: list[str] | None = None
        with suppress(OSError, EOFError):
            self._connection.send(("close", {}))
            # Answers may lie there that an interruption left unread.
            while wrong is None and self._connection.poll(CLOSING):
                answer, content = self._connection.recv()
                wrong = content if answer == "closed" else None
        self._process.join(CLOSING if wrong is not None else 0.1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        if wrong is None and self._process.exitcode:
            return [f"rows {self.rows[0]} to {self.rows[-1]}: exit code {self._process.exitcode} of the worker process"]
        return wrong or []

    def _answer(self) -> Any:
        try:
            answer, content = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(CLOSING)
            raise RowFailed(f"its worker process ended with exit code {self._process.exitcode}", self.rows) from error
        if answer == "failed":
            message, rows, trace = content
            raise RowFailed(message, rows) from WorkerTraceback(f"\n{trace}")
        if answer == "refused":
            raise content
        return content


def _serve(connection: Connection, make: Callable[[], gym.Env[Any, Any]], rows: Sequence[int], parent: int) -> None:
    """What a worker process does."""
    # Ctrl-C reaches all processes of a terminal, and a training handles SIGTERM; the parent says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if torch := sys.modules.get("torch"):
        # The threads of torch's products do not survive a fork: an environment that uses torch would wait for ever.
        torch.set_num_threads(1)
    try:
        local = LocalRows(make, rows)
    except AarenError as error:
        connection.send(("refused", error))
        return
    except RowFailed as error:
        connection.send(_failed(error))
        return
    try:
        connection.send(("made", local.spaces))
        while True:
            while not connection.poll(_WATCH):
                if os.getppid() != parent:
                    return
            call, arguments = connection.recv()
            if call == "close":
                connection.send(("closed", local.close()))
                return
            try:
                local.send(call, arguments)
                answer: tuple[str, Any] = ("done", local.receive())
            except RowFailed as error:
                answer = _failed(error)
            connection.send(answer)
    except (EOFError, OSError):
        # The parent is gone.
        return
    finally:
        local.close()


def _failed(error: RowFailed) -> tuple[str, Any]:
    return "failed", (str(error), error.rows, "".join(traceback.format_exception(error)))


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The numbers and flags of an info; the rest need neither travel between processes nor fit together."""
    found = {}
    for key, value in info.items():
        number = np.asarray(value) if isinstance(value, bool | int | float | np.generic | np.ndarray) else None
        if number is not None and number.size == 1 and number.dtype.kind in "fiub":
            found[key] = float(number.item())
    return found
