"""Where the runs of a comparison train: the contract of a pool, and the pool of processes on this machine."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch

from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import console
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import say
from aaren_rl.experiments.peers import d3rlpy
from aaren_rl.experiments.train import train
from aaren_rl.training.checkpoints import checkpoints

LOG = "log.txt"

SUCCESS = "exit status 0"
"""How a run ends that did not fail."""


class Pool(Protocol):
    """Trains runs, several at a time. Leaving it as a context ends those that still train, without saving."""

    def __enter__(self) -> Pool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def capacity(self) -> int:
        """Number of runs that can train at a time now."""
        ...

    @property
    def per_machine(self) -> int:
        """Largest number of runs that can train at a time on one machine."""
        ...

    @property
    def training(self) -> int:
        """Number of runs that were started and have not ended."""
        ...

    @property
    def queues(self) -> bool:
        """True if `start` takes more runs than can train at a time, and queues them."""
        ...

    def start(self, run: Run) -> None:
        """Starts a run, which goes on from its newest checkpoint. Its output goes into log.txt in its folder."""
        ...

    def ended(self, timeout: float) -> list[tuple[Run, str]]:
        """Runs that have ended since the last call, with how they ended in words; waits for one up to `timeout`."""
        ...

    def stop(self, runs: Collection[Run] | None = None) -> None:
        """Asks runs, by default all, to save a checkpoint and end; `ended` returns them then."""
        ...


class Processes:
    """A pool of processes on this machine, each with one thread of computation: results depend on that number.

    Args:
        jobs: number of runs at a time.
        python: interpreter with d3rlpy, for peers.

    Raises:
        InvalidInput: fewer than one job.
    """

    queues = False

    def __init__(self, jobs: int, python: Path | None = None) -> None:
        if jobs < 1:
            raise InvalidInput(f"--jobs {jobs}; expected at least 1")
        self.capacity, self._python = jobs, python
        self._running: dict[int, tuple[SpawnProcess, Run]] = {}

    @property
    def per_machine(self) -> int:
        """See `Pool`."""
        return self.capacity

    @property
    def training(self) -> int:
        """See `Pool`."""
        return len(self._running)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, _ in self._running.values():
            process.kill()
        self._running.clear()

    def start(self, run: Run) -> None:
        """See `Pool`."""
        run.folder.mkdir(parents=True, exist_ok=True)
        work = run.config, run.peer, self._python, run.folder / LOG
        process = multiprocessing.get_context("spawn").Process(target=_work, args=work)
        # The process inherits this: Ctrl-C must not reach it while it starts.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        self._running[process.sentinel] = process, run

    def ended(self, timeout: float) -> list[tuple[Run, str]]:
        """See `Pool`."""
        found = []
        for sentinel in connection.wait(list(self._running), timeout):
            assert isinstance(sentinel, int)
            process, run = self._running.pop(sentinel)
            process.join()
            found.append((run, f"exit status {process.exitcode}"))
        return found

    def stop(self, runs: Collection[Run] | None = None) -> None:
        """See `Pool`."""
        for process, run in self._running.values():
            if runs is None or run in runs:
                process.terminate()


def train_run(config: RunConfig, peer: d3rlpy.Peer | None, python: Path | None) -> None:
    """Trains one run with one thread, from its newest checkpoint; leaves by `SystemExit` where it fails."""
    assert config.run is not None
    torch.set_num_threads(1)
    if peer is None:
        console.run(lambda: train(_to_go_on(config)))
    else:
        assert python is not None
        interpreter = python
        console.run(lambda: d3rlpy.train(config, peer, interpreter, say))


def _to_go_on(config: RunConfig) -> RunConfig:
    """The configuration, which resumes its run where that has a checkpoint, on data that lie where they did."""
    assert config.run is not None
    if not checkpoints(config.run):
        return config
    saved = run_config.load(config.run / CONFIG)
    # An earlier version saved no choice.
    data = config.data if saved.data == "auto" else saved.data
    return dataclasses.replace(
        config, resume=config.run, data=data, data_folder=saved.data_folder or config.data_folder
    )


def _work(config: RunConfig, peer: d3rlpy.Peer | None, python: Path | None, log: Path) -> None:
    """Trains one run; the target of a process."""
    if sys.platform != "win32":
        # A second signal would break the saving, so Ctrl-C reaches only the command, which sends SIGTERM.
        os.setpgrp()
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    train_run(config, peer, python)


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os.kill(os.getpid(), signal.SIGTERM)
