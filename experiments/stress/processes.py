"""Forked processes that try something: what they find comes back, and so does their end by a signal or a limit."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import tqdm

from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.stress.rows import Finding

T = TypeVar("T")

_MODULES = (
    "h5py",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mujoco",
    "onnx",
    "onnxscript",
    "scipy.stats",
    "tensorboard",
    "torch._dynamo",
    "torch.onnx",
)
"""Modules that commands import late. Imported once, they cost a forked process nothing. onnxruntime is left out, since
its import starts a thread."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl.


def prepare() -> None:
    """Makes this process fit to be forked: all modules imported, no threads.

    Raises:
        InvalidInput: the system is not Linux.
    """
    if sys.platform != "linux":
        raise InvalidInput(f"stress needs Linux, for its processes and limits; this is {sys.platform}")
    torch.set_num_threads(1)
    # tqdm would start a thread, and a process with threads cannot be forked safely. Its lock is shared by processes,
    # so one that is killed while it holds it would stop all others.
    tqdm.tqdm.monitor_interval = 0
    tqdm.tqdm.set_lock(threading.RLock())
    for module in _MODULES:
        # The extra `export` may be missing; what needs it says so.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def detach(log: Path) -> None:
    """Gives the calling process a session of its own, an end with its parent, and a file for what it prints."""
    os.setsid()
    # It would write to where the parent writes.
    faulthandler.disable()
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with log.open("ab") as file, open(os.devnull, "rb") as nothing:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # They may have been replaced by something that does not write to these files.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, errors="replace") for number in (1, 2))


def fork(target: Callable[..., object], *arguments: Any) -> ForkProcess:
    """Starts a forked process."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def end(process: ForkProcess) -> None:
    """Kills a process and all that it started in its session, and waits for its end."""
    if process.pid is not None:
        for pid in _session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.join()


def _session(leader: int) -> list[int]:
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # Fields after the name in parentheses: state, parent, group, session.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                    found.append(int(entry.name))
    return found


@dataclass(eq=False)
class _Worker(Generic[T]):
    """A process that goes through some items."""

    process: ForkProcess
    results: connection.Connection
    left: deque[T]
    log: Path
    began: float = field(default_factory=time.monotonic)


class Workers(Generic[T]):
    """Tries items in forked processes, several at a time.

    A process takes a batch of items one after another. After a finding the rest of its batch goes to a fresh process.

    Args:
        attempt: the try; it returns what it found.
        folder: of the processes' output.
        jobs: number of processes at a time.
        seconds: limit of one try.
        memory: bytes that a process may allocate beyond those at its start; None for any number.
    """

    def __init__(
        self,
        attempt: Callable[[T], Sequence[Finding]],
        folder: Path,
        jobs: int,
        seconds: float,
        memory: int | None = None,
    ) -> None:
        self.attempt, self.folder, self.jobs = attempt, folder, jobs
        self.seconds, self.memory = seconds, memory
        self._running: list[_Worker[T]] = []
        self._started = 0

    def run(self, batches: Iterable[Sequence[T]]) -> Iterator[tuple[T, Sequence[Finding]]]:
        """Tries all items of all batches; items with what they showed, in the order in which they end."""
        waiting = deque(deque(batch) for batch in batches if batch)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.jobs:
                    self._running.append(self._start(waiting.popleft()))
                ready = connection.wait([worker.results for worker in self._running], timeout=0.1)
                for worker in list(self._running):
                    if worker.results in ready:
                        yield from self._read(worker)
                    elif time.monotonic() - worker.began > self.seconds:
                        yield self._close(worker, Finding("hangs", f"no end within {self.seconds:.0f} s"))
                    if worker not in self._running and worker.left:
                        waiting.appendleft(worker.left)
        finally:
            for worker in self._running:
                end(worker.process)
            self._running.clear()

    def _start(self, items: deque[T]) -> _Worker[T]:
        self._started += 1
        log = self.folder / f"worker-{self._started}.log"
        receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
        process = fork(self._work, items, send, log)
        send.close()
        return _Worker(process, receive, items, log)

    def _work(self, items: deque[T], results: connection.Connection, log: Path) -> None:
        """Goes through items; the target of a process."""
        detach(log)
        if self.memory is not None:
            limit = data_bytes() + self.memory
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for item in items:
            found = list(self.attempt(item))
            results.send(found)
            if found:
                break

    def _read(self, worker: _Worker[T]) -> Iterator[tuple[T, Sequence[Finding]]]:
        try:
            found = worker.results.recv()
        except (EOFError, OSError):
            # Without items left it ended as it should.
            if worker.left:
                worker.process.join()
                yield self._close(worker, _death(worker.process.exitcode, worker.log))
            else:
                self._forget(worker)
            return
        worker.began = time.monotonic()
        item = worker.left.popleft()
        if found:
            self._forget(worker)
        yield item, found

    def _close(self, worker: _Worker[T], finding: Finding) -> tuple[T, Sequence[Finding]]:
        item = worker.left.popleft()
        self._forget(worker)
        return item, [finding]

    def _forget(self, worker: _Worker[T]) -> None:
        end(worker.process)
        worker.results.close()
        worker.log.unlink(missing_ok=True)
        self._running.remove(worker)


def data_bytes() -> int:
    """Bytes of this process's private writable memory, which RLIMIT_DATA limits; those of torch's libraries too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise InvalidInput("/proc/self/status has no VmData; stress needs Linux 4.7 or newer")


def _death(status: int | None, log: Path) -> Finding:
    """What the end of a process in the midst of a try shows."""
    if status is not None and status < 0:
        return Finding("crashes", f"ended by {signal.Signals(-status).name}")
    output = log.read_text("utf-8", errors="replace")
    said = output.strip().splitlines()[-1:]
    kind = "tracebacks" if "Traceback (most recent call last)" in output else "crashes"
    return Finding(kind, f"ended with exit status {status}: {said[0] if said else 'it said nothing'}")
