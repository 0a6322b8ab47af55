"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from aaren_rl.errors import AarenError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<what>partial|old)-(?P<pid>\d+)(-\d+)?(@(?P<host>.+))?")
"""Hidden name of what is being written, or was set aside: whose it is, by process and machine."""

_ELSEWHERE = 24 * 3600.0
"""Seconds after which what another machine left counts as left behind; its processes cannot be looked up here."""

_EXCHANGE, _AT_FDCWD = 2, -100
"""Constants of Linux: RENAME_EXCHANGE, and paths from the working directory."""

_numbers = itertools.count(1)


@contextmanager
def whole_folder(folder: Path, error: type[AarenError], replace: bool = True) -> Iterator[Path]:
    """Yields an empty folder to write into, which takes the given name once the block ends.

    What killed processes left beside it is cleaned up first. A replaced folder's name is never gone where the file
    system can exchange two names (Linux); elsewhere it is gone between two renames, which `clean_up` undoes.

    Args:
        folder: the name.
        error: raised where the folder cannot be written.
        replace: replace a folder of that name; False for an error.

    Raises:
        AarenError: the given `error`, on a full disk for instance; an earlier folder is still in place.
    """
    folder = folder.resolve()
    partial, old = _hidden(folder, "partial"), _hidden(folder, "old")
    try:
        clean_up(folder.parent)
        partial.mkdir(parents=True)
        yield partial
        _flush_tree(partial)
        _put_in_place(partial, folder, old, replace)
        shutil.rmtree(old, ignore_errors=True)
        _flush(folder.parent)
    except OSError as reason:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise error(f"{folder} could not be written: {reason}; nothing was changed there") from reason
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path, old: Path, replace: bool) -> None:
    """Gives a folder its name, whatever others that write the same name do meanwhile."""
    while True:
        if not (replace and folder.exists()):
            try:
                os.replace(partial, folder)
                return
            except OSError as reason:
                # Another has put one there since.
                if not replace or reason.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        elif _exchange(partial, folder):
            return
        else:
            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):  # Another has set it aside since.
                os.replace(folder, old)


def clean_up(parent: Path) -> None:
    """Undoes what killed writes left: partial files and folders go, a folder that was set aside comes back.

    What a living process writes stays, and so does what another machine wrote within a day.
    """
    with suppress(OSError):
        for path in sorted(parent.iterdir()):
            found = _LEFTOVER.fullmatch(path.name)
            if found is None or _in_use(path, int(found["pid"]), found["host"]):
                continue
            folder = parent / found["name"]
            if found["what"] == "old" and not folder.exists():
                os.replace(path, folder)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lets one process, or one thread, at a time into the block for a folder; the others wait.

    A file system without locks lets all in at once.
    """
    if os.name != "posix":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool) -> None:
    """Locks an open file or folder against other processes and threads, until it is closed or its process dies.

    Raises:
        BlockingIOError: another has it, and this one does not wait.
        OSError: the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no file locks")
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file, of text or bytes, whole or not at all."""
    partial = _hidden(path, "partial")
    try:
        clean_up(path.parent)
        write_file(partial, content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def process_start(pid: int) -> float | None:
    """When a process of this machine started, in seconds since 1970; None if there is none, or it cannot be known."""
    try:
        # The name of the program, in brackets, may hold spaces.
        ticks = int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text("utf-8").splitlines()
        booted = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    """True if this machine has a process of this number, or cannot say."""
    if os.name != "posix":
        # There the call below would end it.
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # It belongs to another user.
        return True
    return True


def _hidden(path: Path, what: str) -> Path:
    """A name that no other process, thread or machine takes; it says whose it is."""
    return path.with_name(f".{path.name}.{what}-{os.getpid()}-{next(_numbers)}@{socket.gethostname()}")


def _in_use(path: Path, pid: int, host: str | None) -> bool:
    changed = path.lstat().st_mtime
    if host is not None and host != socket.gethostname():
        return time.time() - changed < _ELSEWHERE
    started = process_start(pid)
    # The number may have gone to a process that began after this was written; clocks are compared to the second.
    return is_alive(pid) and not (started is not None and started > changed + 2)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0)


def _flush_tree(folder: Path) -> None:
    """Waits until all files of a folder are on the disk, so that the name never comes before the content."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _flush(path)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; not every file system can do the latter."""
    if os.name != "posix":
        return
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
