"""Attacks on one operation: a kill, a full disk, a read-only folder, a second process that does the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.experiments.stress import commands
from aaren_rl.experiments.stress.commands import Command
from aaren_rl.experiments.stress.operation import Operation, leftovers
from aaren_rl.experiments.stress.rows import Finding

Rng = np.random.Generator

SECONDS = 120.0
"""Limit of one operation; none takes a tenth of it undisturbed on an idle machine."""

AT_A_FILE, AT_A_MOMENT = 0.5, 0.35
"""Shares of kills just before a file is opened, renamed or removed, and at a moment of time. Both are SIGKILL; the
others are SIGTERM and SIGINT at a moment of time."""

DISK = 64 * 2**20
"""Bytes of the disk that is filled."""


@dataclass(frozen=True)
class Undisturbed:
    """An operation that nothing disturbed.

    Attributes:
        seconds: that it took.
        events: files that it opened for writing, renamed or removed.
        size: bytes of its folder at the end.
        result: what it left.
    """

    seconds: float
    events: int
    size: int
    result: str


class Disturbance:
    """One try, in a process and a folder of its own.

    Args:
        operation: that is attacked.
        undisturbed: the same, left alone.
        folder: of the try.
        disk: what fills the disk, "tmpfs" or "RLIMIT_FSIZE".
    """

    def __init__(self, operation: Operation, undisturbed: Undisturbed, folder: Path, disk: str) -> None:
        self.operation, self.undisturbed, self.folder, self.disk = operation, undisturbed, folder, disk

    def kill(self, rng: Rng) -> Iterator[Finding]:
        """Kills it at a moment or at a file, and does it again."""
        operation, folder, undisturbed = self.operation, self.folder, self.undisturbed
        how = rng.random()
        event = int(rng.integers(1, undisturbed.events + 1)) if how < AT_A_FILE else None
        moment = float(rng.uniform(0, undisturbed.seconds))
        number = (
            signal.SIGKILL
            if how < AT_A_FILE + AT_A_MOMENT
            else signal.Signals(int(rng.choice([signal.SIGTERM, signal.SIGINT])))
        )
        operation.prepare(folder)
        command = Command(operation.begin(folder), folder, _log(folder), event)
        if not command.wait(SECONDS if event is not None else moment):
            command.kill(number)
        yield from self._ended(command, number)
        damage = operation.damage(folder)
        if damage is not None:
            yield Finding(
                "lost", damage, f"{number.name} {f'at file event {event}' if event else f'after {moment:.2f} s'}"
            )
        yield from self._go_on()
        command.end()

    def fill(self, rng: Rng) -> Iterator[Finding]:
        """Does it on a disk that gets full, and again on an empty one."""
        operation, folder = self.operation, self.folder
        size = self.undisturbed.size
        room = int(rng.uniform(0, 1.1) * size)
        filler, limit = folder / "filler", None
        if self.disk == "tmpfs":
            # This process tries nothing else, so it may keep the mount.
            commands.mount_disk(folder, DISK)
        operation.prepare(folder)
        if self.disk == "tmpfs":
            left = os.statvfs(folder)
            filler.write_bytes(bytes(max(0, left.f_bavail * left.f_frsize - room)))
        else:
            limit = lambda: commands.limit_files(room // 4)  # noqa: E731
        command = Command(operation.begin(folder), folder, _log(folder), before=limit or (lambda: None))
        command.wait(SECONDS)
        yield from self._ended(command)
        damage = operation.damage(folder)
        if damage is not None:
            yield Finding("lost", damage, f"with room for {room} of {size} bytes")
        filler.unlink(missing_ok=True)
        yield from self._go_on()

    def forbid(self, rng: Rng) -> Iterator[Finding]:
        """Does it where nobody may write, and again where one may."""
        operation, folder = self.operation, self.folder
        operation.prepare(folder)
        before = _contents(folder)
        _permit(folder, 0o555)
        command = Command(operation.begin(folder), folder, _log(folder), before=commands.drop_capabilities)
        command.wait(SECONDS)
        yield from self._ended(command)
        if command.status == 0:
            yield Finding("wrong", "success, though nothing could be written")
        _permit(folder, 0o755)
        if _contents(folder) != before:
            yield Finding("lost", "a read-only folder changed")
        yield from self._go_on()

    def pair(self, rng: Rng) -> Iterator[Finding]:
        """Does it in two processes at once."""
        operation, folder, undisturbed = self.operation, self.folder, self.undisturbed
        operation.prepare(folder)
        call, resumes = operation.begin(folder), False
        if rng.random() < 0.3:
            # Two that go on with what was interrupted.
            first = Command(call, folder, _log(folder))
            if not first.wait(undisturbed.seconds / 2):
                first.kill(signal.SIGTERM)
            yield from self._ended(first, signal.SIGTERM)
            call, resumes = operation.again(folder), True
        one = Command(call, folder, folder.with_suffix(".one"))
        time.sleep(rng.uniform(0, undisturbed.seconds / 2) * (rng.random() < 0.5))
        other = Command(call, folder, folder.with_suffix(".other"))
        for command in (one, other):
            command.wait(SECONDS)
            yield from self._ended(command)
        wrong = operation.damage(folder)
        if wrong is None and not resumes:
            # A second one may go on with what the first one finished.
            wrong = operation.together(folder, [one.status, other.status])
        if wrong is not None:
            yield Finding("lost", wrong, f"{_last(one, folder)}; {_last(other, folder)}")
        elif operation.result(folder) != undisturbed.result:
            yield Finding("lost", "another result than that of one process")
        yield from _left(folder)

    def _ended(self, command: Command, *sent: signal.Signals) -> Iterator[Finding]:
        """What the end of a command shows; it is ended if it has not."""
        if not command.wait(SECONDS):
            command.end()
            yield Finding("hangs", f"no end within {SECONDS:.0f} s{' of ' + sent[0].name if sent else ''}")
            return
        yield from command.faults(*sent)

    def _go_on(self) -> Iterator[Finding]:
        """What doing it again shows, after an interruption."""
        operation, folder = self.operation, self.folder
        command = Command(operation.again(folder), folder, _log(folder))
        command.wait(SECONDS)
        faults = list(self._ended(command))
        yield from faults
        if command.status:
            yield Finding("lost", "it cannot go on", _last(command, folder))
        elif operation.result(folder) != self.undisturbed.result:
            yield Finding("lost", "another result than without the interruption")
        yield from _left(folder)


def _left(folder: Path) -> Iterator[Finding]:
    for name in leftovers(folder):
        yield Finding("leftovers", name)


def _last(command: Command, folder: Path) -> str:
    """The last line that a command printed."""
    lines = command.output.replace(str(folder), "FOLDER").strip().splitlines()
    return ascii(lines[-1][:200]) if lines else "it said nothing"


def _log(folder: Path) -> Path:
    """Beside the folder, which may be full or read-only."""
    return folder.with_suffix(".log")


def _contents(folder: Path) -> dict[str, str]:
    return {str(path): checkpoint.digest(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def _permit(folder: Path, mode: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(mode if path.is_dir() else mode & 0o666)
