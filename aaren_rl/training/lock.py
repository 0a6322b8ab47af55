"""The lock of a run's folder: one training at a time."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aaren_rl.errors import CheckpointError
from aaren_rl.folders import is_alive, lock, process_start

LOCK = ".lock"
"""File in a run's folder while it trains; it says who holds the folder."""

_held: dict[Path, int] = {}
"""Folders that threads of this process hold, by their real paths."""


class Locked(CheckpointError):
    """Another process, or another thread, trains in the folder."""


@contextmanager
def locked(folder: Path, say: Callable[[str], object] = print, new: bool = False) -> Iterator[None]:
    """Holds a run's folder, which is made if it is missing and removed if it is left empty.

    The kernel frees the lock when its holder dies. Its file then says who that was, and is taken over. A thread that
    holds the folder already may hold it again.

    Args:
        folder: of the run.
        say: takes a line where a lock is taken over, or where the file system has no locks.
        new: the folder has to be made here, which only one of several processes can do.

    Raises:
        Locked: the folder is held, the message names the holder; or it is to be new, and exists.
        CheckpointError: the folder cannot be written.
    """
    real = folder.resolve()
    if _held.get(real) == threading.get_ident():
        yield
        return
    if real in _held:
        raise Locked(
            f"{folder} is in training already, in another thread of this process; give this run another folder"
        )
    made = [path for path in (real, *real.parents) if not path.exists()]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        real.mkdir(exist_ok=not new)
        file = _open_locked(real, say)
    except OSError as error:
        if new and real.is_dir():
            raise Locked(f"{folder} exists; give this run another folder") from error
        raise CheckpointError(f"{folder} cannot be locked for training: {error}") from error
    _held[real] = threading.get_ident()
    try:
        yield
    finally:
        del _held[real]
        with suppress(OSError):
            # Before it is freed, so that nobody can have locked a file that is about to go.
            (real / LOCK).unlink(missing_ok=True)
        os.close(file)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _open_locked(folder: Path, say: Callable[[str], object]) -> int:
    """The lock's file, open and locked, with this process as its holder.

    Raises:
        Locked: the folder is held.
        OSError: the file cannot be written.
    """
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                lock(file, wait=False)
            except BlockingIOError:
                raise Locked(
                    f"{folder} is in training already, by {_described(_read(file))}; wait until that has ended, or "
                    "give this run another folder"
                ) from None
            except OSError as error:
                say(f"warning: {folder} has no locks ({error}); see to it that nothing else trains in it")
            # The holder before may have removed the file between the two calls above.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                _take(file, folder, say)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _take(file: int, folder: Path, say: Callable[[str], object]) -> None:
    """Writes this process down as the holder; says so where an earlier one never gave the lock back."""
    before = _read(file)
    if before:
        say(f"{folder} was left locked by {_described(before)}, {_fate(before)}; the lock is taken over")
    now = time.time()
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)),
    }
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, (json.dumps(holder) + "\n").encode())


def _read(file: int) -> dict[str, Any]:
    """The holder that a lock's file names; empty if it names none."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        holder = json.loads(os.read(file, 4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that did not name itself"
    # Only what is plain text goes to a terminal.
    pid, host, since = (ascii(str(holder.get(name))[:80]).strip("'") for name in ("pid", "host", "since"))
    here = ", this machine" if holder.get("host") == socket.gethostname() else ""
    return f"process {pid} on {host}{here}, since {since}"


def _fate(holder: dict[str, Any]) -> str:
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname():
        return "of which that machine no longer holds it"
    if not isinstance(pid, int) or not is_alive(pid):
        return "which is gone"
    started, then = process_start(pid), holder.get("started")
    # The clock from which both are counted may be set anew in between, by little.
    if pid == os.getpid() or (started and isinstance(then, float) and abs(started - then) > 2):
        return "which is gone, its number has another process now"
    return "which no longer holds it"
