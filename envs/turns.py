"""Lets one process at a time make a file or folder, while the others wait for it."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aaren_rl.errors import DataError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_WAIT = 0.2
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def one_at_a_time(target: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Holds the lock of a file or folder for a block; the lock is a hidden file beside it.

    The operating system frees the lock when its holder ends, however it ends, so no lock is ever stale.

    Args:
        target: what is made within the block; its folder is made if it is missing.
        say: called with a line if another process holds the lock.

    Raises:
        DataError: the lock's file cannot be made.
    """
    path = target.with_name(f".{target.name}.lock")
    descriptor = _acquire(path, target, say)
    try:
        yield
    finally:
        # While the lock is held, the name is this process's.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, target: Path, say: Callable[[str], object]) -> int:
    waiting = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _opened(path)
        except OSError as error:
            raise DataError(f"{target} cannot be made: {error}") from error
        if descriptor is None:
            continue
        try:
            if _try_lock(descriptor, say) and _is_at(descriptor, path):
                with suppress(OSError):
                    # Only for the message of those that wait, so a full disk does not matter.
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
            holder = os.read(descriptor, 20).decode("ascii", "replace")
            # Without a number the holder has only just taken the lock.
            if holder and not waiting and _is_at(descriptor, path):
                say(f"data: waiting for process {holder}, which is making {target}")
                waiting = True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_WAIT)


def _opened(path: Path) -> int | None:
    """Opens or makes a lock's file; None where another process has removed its folder, empty as it was."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None


def _try_lock(descriptor: int, say: Callable[[str], object]) -> bool:
    """Locks an open file; False where another holds the lock."""
    try:
        if sys.platform == "win32":
            # Beyond the number that the file holds, since others may not read locked bytes.
            os.lseek(descriptor, 1_000, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            os.lseek(descriptor, 0, os.SEEK_SET)
            return False
        say(f"data: this file system has no locks ({error}); start no second process that makes the same data")
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """True if an open file still has its name: the last holder takes the name away."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
