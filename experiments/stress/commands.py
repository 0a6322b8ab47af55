"""Commands in forked processes that are killed, starved of disk, or kept from writing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from aaren_rl.experiments.stress import processes
from aaren_rl.experiments.stress.rows import Finding

_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_NEW_MOUNTS, _RECURSIVE, _PRIVATE = 0x00020000, 1 << 14, 1 << 18  # CLONE_NEWNS, MS_REC, MS_PRIVATE
_NEW_USER = 0x10000000  # CLONE_NEWUSER

_EXCEPTION = re.compile(r"^\w[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*", re.MULTILINE)
"""The line of a traceback that names the exception."""

_CAPABILITY_VERSION = 0x20080522


class Command:
    """A call in a process of its own.

    Args:
        call: the function.
        folder: working directory.
        log: file for all that it prints; what lies there is replaced.
        at_event: kills itself just before it opens, renames or removes its nth file; None for never.
        before: called in the process before the call.
    """

    def __init__(
        self,
        call: Callable[[], object],
        folder: Path,
        log: Path,
        at_event: int | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.log = log
        log.unlink(missing_ok=True)
        self.began = time.perf_counter()
        self.process: ForkProcess = processes.fork(_work, call, folder, log, at_event, before)

    def wait(self, seconds: float) -> bool:
        """Waits for the end; whether it came in time."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        if self.process.exitcode is None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self) -> None:
        """Kills what is left of it and of all that it started."""
        processes.end(self.process)

    @property
    def status(self) -> int:
        """Exit status; below 0 the number of the signal that ended it."""
        return -signal.SIGKILL if self.process.exitcode is None else self.process.exitcode

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    @property
    def events(self) -> int:
        """Files that it opened for writing, renamed or removed; it must have come to its end."""
        return int(_events_file(self.log).read_text())

    def faults(self, *killed_by: signal.Signals) -> list[Finding]:
        """What its end shows: tracebacks, an end by another signal, or a failure without a word.

        Args:
            killed_by: signals that were sent to it.
        """
        status, output = self.status, self.output
        last = output.strip().splitlines()[-1:] or ["it said nothing"]
        if "Traceback (most recent call last)" in output:
            said = _EXCEPTION.findall(output)[-1:] or last
            return [Finding("tracebacks", f"a traceback of {said[0].partition(':')[0]}", ascii(said[0][:150]))]
        if status < 0 and -status not in killed_by:
            return [Finding("crashes", f"ended by {signal.Signals(-status).name}")]
        expected = status == 0 or (status == 2 and "error: " in output)
        if not expected and not (killed_by and status in (130, *(-number for number in killed_by))):
            return [Finding("wrong", f"exit status {status} without an error", ascii(last[0][:150]))]
        return []


def _work(
    call: Callable[[], object], folder: Path, log: Path, at_event: int | None, before: Callable[[], object]
) -> None:
    processes.detach(log)
    os.chdir(folder)
    events = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal events
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & _WRITING) or str(path).startswith(("/dev/", "/proc/")):
                return
        elif event not in _EVENTS:
            return
        events += 1
        if events == at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    before()
    sys.addaudithook(count)
    try:
        call()
    finally:
        if at_event is None:
            with contextlib.suppress(OSError):
                _events_file(log).write_text(str(events))


def _events_file(log: Path) -> Path:
    return log.with_suffix(".events")


def mount_disk(folder: Path, size: int) -> bool:
    """Mounts a small disk in memory on a folder, seen by this process and its children alone.

    Returns:
        Whether this process may do so.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS) != 0:
        if libc.unshare(_NEW_MOUNTS | _NEW_USER) != 0:
            return False
        # Root of a namespace of its own, which is the user outside of it.
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user[0]} 1"), ("gid_map", f"0 {user[1]} 1")):
            Path("/proc/self", name).write_text(line)
    libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    options = f"size={size}".encode()
    return bool(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0)


def limit_files(size: int) -> None:
    """Lets this process write no file beyond a size, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def drop_capabilities() -> None:
    """Takes from root the right to write where permissions forbid it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
