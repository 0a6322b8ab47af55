"""An attack from its request to its rows, in a folder that goes when it ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments.stress import processes, stream
from aaren_rl.experiments.stress.faults import Faults
from aaren_rl.experiments.stress.fuzz import Fuzzer
from aaren_rl.experiments.stress.operation import Operation
from aaren_rl.experiments.stress.operations import OPERATIONS
from aaren_rl.experiments.stress.rows import Row

_DATA_FOLDERS = ("MINARI_DATASETS_PATH", "D4RL_DATASET_DIR")


@dataclass(frozen=True)
class Request:
    """Attack this package on this machine, and count what breaks."""

    part: Literal["faults", "fuzz", "stream"]
    """"faults" kills, fills disks and does things twice at once; "fuzz" reads damaged files; "stream" acts on extreme
    observations."""
    seed: int = 0
    """Seed of all moments, mutations and observations."""
    jobs: int = os.cpu_count() or 1
    """Number of processes at a time."""
    json: Path | None = None
    """Write the table's rows and all faults into this file."""
    kills: int = 200
    """Number of kills; full disks, read-only folders and pairs of processes come on top, a twentieth for each row."""
    operations: tuple[str, ...] = ()
    """Operations to attack, as training; all by default."""
    inputs: int = 20_000
    """Number of mutated inputs, of all formats together."""
    only: str | None = None
    """Explain one input, as "agent.json:12"."""
    steps: int = 1_000_000
    """Steps of each agent, its 16 environments together."""
    mixers: tuple[str, ...] = ()
    """Mixers of the agents; by default all that carry a state of constant size."""

    def __post_init__(self) -> None:
        for name in ("jobs", "kills", "inputs", "steps"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"--{name} {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise InvalidInput(f"--seed {self.seed}; expected at least 0")
        _operations(self.operations)
        if self.only is not None and self.part != "fuzz":
            raise InvalidInput(f"--only {self.only} is an input of fuzz; leave it out with {self.part}")


def attack(request: Request, entries: Mapping[str, Callable[[], None]]) -> tuple[list[Row], bool]:
    """Attacks.

    Args:
        request: what, and how often.
        entries: entry points of the command lines that "faults" interrupts, by name.

    Returns:
        The rows, and False if Ctrl-C ended the attack before its end; the rows count what was done until then.

    Raises:
        InvalidInput: the system is not Linux, or a mixer is unknown or has no state of constant size.
    """
    rows: dict[str, Row] = {}
    with _folder() as folder:
        try:
            if request.part == "faults":
                faults = Faults(folder, entries, request.seed, request.jobs, _operations(request.operations))
                faults.make_world()
                faults.measure()
                faults.run(request.kills, rows)
            elif request.part == "fuzz":
                fuzzer = Fuzzer(folder, request.seed, request.jobs)
                fuzzer.write_samples()
                fuzzer.run(request.inputs, rows)
            else:
                chosen = stream.streams(list(request.mixers) or None)
                stream.run(chosen, request.steps, request.seed, request.jobs, folder, rows)
        except KeyboardInterrupt:
            return list(rows.values()), False
    return list(rows.values()), True


def _operations(names: tuple[str, ...]) -> tuple[type[Operation], ...]:
    known = {kind.name: kind for kind in OPERATIONS}
    for name in names:
        if name not in known:
            raise unknown_name("operation", name, known)
    return tuple(known[name] for name in names or known)


def explain(request: Request, name: str) -> str:
    """What one input of "fuzz" is, and what it shows, in words.

    Raises:
        InvalidInput: there is no such input.
    """
    with _folder() as folder:
        fuzzer = Fuzzer(folder, request.seed)
        one = fuzzer.find(name)
        fuzzer.formats = [one.format]
        fuzzer.write_samples()
        return fuzzer.explain(one)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory, where the system has such; datasets of the user are neither read nor written meanwhile."""
    processes.prepare()
    memory = Path("/dev/shm")
    before = {name: os.environ.get(name) for name in _DATA_FOLDERS}
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f"aaren-stress-{os.getpid()}-", dir=place) as made:
        try:
            os.environ.update({name: str(Path(made, "datasets", name)) for name in _DATA_FOLDERS})
            yield Path(made)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
