"""Kills, full disks, read-only folders, two processes at once: what was there before stays, and all work goes on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aaren_rl.experiments.console import progress
from aaren_rl.experiments.stress import commands
from aaren_rl.experiments.stress.commands import Command
from aaren_rl.experiments.stress.disturbances import DISK, SECONDS, Disturbance, Undisturbed
from aaren_rl.experiments.stress.operation import Main, Operation, World
from aaren_rl.experiments.stress.operations import (
    DATA,
    OPERATIONS,
    STEPS,
    Collecting,
    Evaluating,
    Exporting,
    Saving,
    Training,
)
from aaren_rl.experiments.stress.processes import Workers, fork
from aaren_rl.experiments.stress.rows import Finding, Row

ATTACKS = {
    "kill": Disturbance.kill,
    "full disk": Disturbance.fill,
    "read-only folder": Disturbance.forbid,
    "two at once": Disturbance.pair,
}
"""Attacks by name. All operations are killed."""

DISTURBED = (Collecting, Training, Saving, Evaluating, Exporting)
"""Operations that meet the other attacks; those left out are made of these."""

TRIES = 0.05
"""Tries of each other attack on an operation, as a share of the kills."""


@dataclass(frozen=True)
class Try:
    """One attack on one operation.

    Attributes:
        attack: one of `ATTACKS`.
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
        probe = fork(lambda: os._exit(not commands.mount_disk(world.folder, DISK)))
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
            kind = one.operation
            disturbance = Disturbance(kind(self.world), self.undisturbed[kind], folder, self.disk)
            return list(ATTACKS[one.attack](disturbance, rng))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tries(self, kills: int) -> Iterator[Try]:
        total = sum(kind.share for kind in self.operations)
        for kind in self.operations:
            for number in range(max(1, round(kills * kind.share / total))):
                yield Try("kill", kind, number)
        for attack in [name for name in ATTACKS if name != "kill"]:
            for kind in [kind for kind in self.operations if kind in DISTURBED]:
                for number in range(max(1, round(kills * TRIES))):
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


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
