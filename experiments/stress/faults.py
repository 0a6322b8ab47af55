"""Kills, full disks, read-only folders, two processes at once: what was there before stays, and all work goes on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.experiments.console import progress
from aaren_rl.experiments.stress import commands
from aaren_rl.experiments.stress.commands import Command
from aaren_rl.experiments.stress.operations import (
    DATA,
    OPERATIONS,
    STEPS,
    Collecting,
    Evaluating,
    Exporting,
    Main,
    Operation,
    Saving,
    Training,
    World,
    leftovers,
)
from aaren_rl.experiments.stress.processes import Workers, fork
from aaren_rl.experiments.stress.rows import Finding, Row

Rng = np.random.Generator

SECONDS = 120.0
"""Limit of one operation; none takes a tenth of it undisturbed on an idle machine."""

AT_A_FILE, AT_A_MOMENT = 0.5, 0.35
"""Shares of kills just before a file is opened, renamed or removed, and at a moment of time. Both are SIGKILL; the
others are SIGTERM and SIGINT at a moment of time."""

DISTURBED = {
    "full disk": (Collecting, Training, Saving, Evaluating, Exporting),
    "read-only folder": (Collecting, Training, Saving, Evaluating, Exporting),
    "two at once": (Collecting, Training, Saving, Evaluating, Exporting),
}
"""Attacks other than kills, and the operations that they meet."""

TRIES = 0.05
"""Tries of each of these on one operation, as a share of the kills."""

_DISK = 64 * 2**20


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


@dataclass(frozen=True)
class Try:
    """One attack on one operation.

    Attributes:
        attack: "kill" or one of `DISTURBED`.
        operation: that is attacked.
        number: with the seed it determines the attack.
    """

    attack: str
    operation: type[Operation]
    number: int

    @property
    def row(self) -> str:
        """Name of the row."""
        return f"{self.attack}: {self.operation.name}"

    def __str__(self) -> str:
        return f"{self.row}:{self.number}"


class Faults:
    """Attacks operations in their processes.

    Args:
        folder: to write into.
        entries: entry points of the command lines by name: collect, compare, evaluate, export, train.
        seed: of the moments.
        jobs: number of tries at a time.
        operations: to attack.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, Main],
        seed: int,
        jobs: int = 1,
        operations: Sequence[type[Operation]] = OPERATIONS,
    ) -> None:
        self.folder, self.seed, self.jobs, self.operations = folder, seed, jobs, operations
        self.world = World(folder / "world", entries)
        self.undisturbed: dict[type[Operation], Undisturbed] = {}
        self.disk = ""
        """What fills the disk, "tmpfs" or "RLIMIT_FSIZE"."""
        self._attacks: dict[str, Callable[[Operation, Path, Rng], Iterator[Finding]]] = {
            "kill": self._kill,
            "full disk": self._fill,
            "read-only folder": self._forbid,
            "two at once": self._pair,
        }

    def make_world(self) -> None:
        """Makes the world, by the commands that will be attacked.

        Raises:
            RuntimeError: a command fails.
        """
        world = self.world
        world.folder.mkdir(parents=True)
        collecting = world.command("collect", DATA, "--steps", STEPS)
        self._require("collect", lambda: (os.environ.update(MINARI_DATASETS_PATH=str(world.datasets)), collecting()))
        self._require("train", Training(world).begin(world.folder))
        self._require("export", world.command("export", "run/last"))

    def measure(self) -> None:
        """Does every operation once without disturbing it, and finds what can fill a disk here.

        Raises:
            RuntimeError: an operation fails.
        """
        world = self.world
        world.folder.mkdir(parents=True, exist_ok=True)
        probe = fork(lambda: os._exit(not commands.mount_disk(world.folder, _DISK)))
        probe.join()
        self.disk = "tmpfs" if probe.exitcode == 0 else "RLIMIT_FSIZE"
        with progress(len(self.operations), "operation", "undisturbed") as advance:
            for kind in self.operations:
                self.undisturbed[kind] = self._do_undisturbed(kind(world))
                advance(1)

    def run(self, kills: int, rows: dict[str, Row]) -> None:
        """Tries all attacks, and counts what they show.

        Args:
            kills: number of kills of all operations together, by their shares.
            rows: receives a row for each attack on each operation.
        """
        tries = list(self._tries(kills))
        for one in tries:
            rows.setdefault(one.row, Row(one.row, figures={"by": self.disk} if one.attack == "full disk" else {}))
        order = np.random.default_rng(self.seed).permutation(len(tries))
        workers = Workers(self.attempt, self.folder, self.jobs, 5 * SECONDS)
        with progress(len(tries), "try") as advance:
            for one, findings in workers.run([[tries[place]] for place in order]):
                rows[one.row].add(str(one), findings)
                advance(1)

    def attempt(self, one: Try) -> list[Finding]:
        """What one attack shows, in this process."""
        rng = np.random.default_rng([self.seed, *one.row.encode(), one.number])
        folder = self.folder / f"try-{os.getpid()}"
        folder.mkdir()
        try:
            return list(self._attacks[one.attack](one.operation(self.world), folder, rng))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tries(self, kills: int) -> Iterator[Try]:
        total = sum(kind.share for kind in self.operations)
        for kind in self.operations:
            for number in range(max(1, round(kills * kind.share / total))):
                yield Try("kill", kind, number)
        for attack, kinds in DISTURBED.items():
            for kind in kinds:
                for number in range(max(1, round(kills * TRIES)) if kind in self.operations else 0):
                    yield Try(attack, kind, number)

    def _require(self, name: str, call: Callable[[], object], folder: Path | None = None) -> Command:
        """Does something that must succeed."""
        command = Command(call, folder or self.world.folder, self.folder / f"{name}.log")
        if not command.wait(SECONDS) or command.status:
            command.end()
            raise RuntimeError(f"what should be attacked fails undisturbed: {name}: {command.output}")
        return command

    def _do_undisturbed(self, operation: Operation) -> Undisturbed:
        folder = self.folder / "undisturbed"
        folder.mkdir()
        try:
            operation.prepare(folder)
            command = self._require(operation.name, operation.begin(folder), folder)
            seconds = time.perf_counter() - command.began
            return Undisturbed(seconds, command.events, _size(folder), operation.result(folder))
        finally:
            shutil.rmtree(folder)

    def _kill(self, operation: Operation, folder: Path, rng: Rng) -> Iterator[Finding]:
        undisturbed = self.undisturbed[type(operation)]
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
        yield from self._go_on(operation, folder)
        command.end()

    def _fill(self, operation: Operation, folder: Path, rng: Rng) -> Iterator[Finding]:
        size = self.undisturbed[type(operation)].size
        room = int(rng.uniform(0, 1.1) * size)
        filler, limit = folder / "filler", None
        if self.disk == "tmpfs":
            # This process tries nothing else, so it may keep the mount.
            commands.mount_disk(folder, _DISK)
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
        yield from self._go_on(operation, folder)

    def _forbid(self, operation: Operation, folder: Path, rng: Rng) -> Iterator[Finding]:
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
        yield from self._go_on(operation, folder)

    def _pair(self, operation: Operation, folder: Path, rng: Rng) -> Iterator[Finding]:
        undisturbed = self.undisturbed[type(operation)]
        operation.prepare(folder)
        call = operation.begin(folder)
        if rng.random() < 0.3:
            # Two that go on with what was interrupted.
            first = Command(call, folder, _log(folder))
            if not first.wait(undisturbed.seconds / 2):
                first.kill(signal.SIGTERM)
            yield from self._ended(first, signal.SIGTERM)
            call = operation.again(folder)
        one = Command(call, folder, folder.with_suffix(".one"))
        time.sleep(rng.uniform(0, undisturbed.seconds / 2) * (rng.random() < 0.5))
        other = Command(call, folder, folder.with_suffix(".other"))
        for command in (one, other):
            command.wait(SECONDS)
            yield from self._ended(command)
        wrong = operation.damage(folder) or operation.together(folder, [one.status, other.status])
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

    def _go_on(self, operation: Operation, folder: Path) -> Iterator[Finding]:
        """What doing it again shows, after an interruption."""
        command = Command(operation.again(folder), folder, _log(folder))
        command.wait(SECONDS)
        faults = list(self._ended(command))
        yield from faults
        if command.status:
            yield Finding("lost", "it cannot go on", _last(command, folder))
        elif operation.result(folder) != self.undisturbed[type(operation)].result:
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


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _contents(folder: Path) -> dict[str, str]:
    return {str(path): checkpoint.digest(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def _permit(folder: Path, mode: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(mode if path.is_dir() else mode & 0o666)
