"""Mutated inputs of every file format: each must be read, or refused by one clear error, in time and in memory."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aaren_rl.errors import AarenError, InvalidInput, unknown_name
from aaren_rl.experiments import console
from aaren_rl.experiments.console import progress
from aaren_rl.experiments.stress.formats import FORMATS, Format
from aaren_rl.experiments.stress.mutations import Mutation
from aaren_rl.experiments.stress.processes import Workers
from aaren_rl.experiments.stress.readers import WrongSuccess
from aaren_rl.experiments.stress.rows import Finding, Row

SECONDS, MEMORY = 20.0, 2 * 2**30
"""Limits of one input. Memory is private memory as RLIMIT_DATA counts it, beyond what the process had at its start:
asking for more fails at once, so that no input can exhaust the machine."""

LONGEST = 4_000
"""Characters of a clear error."""

_BATCH = 50
"""Inputs that one process reads."""


_ENDS = {"read": 1, "refused": 2}
"""Ends of an input without a fault."""


@dataclass(frozen=True)
class Input:
    """One mutated input.

    Attributes:
        format: its format.
        number: in its format; with the seed it determines the mutation.
    """

    format: Format
    number: int

    def __str__(self) -> str:
        return f"{self.format.name}:{self.number}"


class Fuzzer:
    """Writes samples of formats, mutates and reads them.

    Args:
        folder: to write into.
        seed: of all mutations.
        jobs: number of processes at a time.
        formats: formats to attack.
    """

    def __init__(self, folder: Path, seed: int, jobs: int = 1, formats: Sequence[Format] = FORMATS) -> None:
        self.folder, self.seed, self.jobs, self.formats = folder, seed, jobs, formats
        self._ends: dict[str, Any] = {}

    def write_samples(self) -> None:
        """Writes two samples of every format, and makes sure that each can be read.

        Raises:
            RuntimeError: a sample cannot be written or read; so nothing could be said of mutated ones.
        """
        workers = Workers(self._write, self.folder, self.jobs, 300)
        for made, findings in workers.run([[one] for one in self.formats]):
            if findings:
                raise RuntimeError(f"the samples of {made.name} are no use: {findings[0].about}")

    def run(self, inputs: int, rows: dict[str, Row]) -> None:
        """Tries a number of inputs, and counts what they show.

        Args:
            inputs: number of all formats together, by their shares.
            rows: receives a row for each format.
        """
        rows |= {one.name: Row(one.name) for one in self.formats}
        # Written by the processes; without a lock, since they may be killed while they hold it.
        self._ends = {one.name: multiprocessing.RawArray("B", self._count(one, inputs)) for one in self.formats}
        workers = Workers(self.attempt, self.folder, self.jobs, SECONDS, MEMORY)
        batches = list(self._batches(inputs))
        # Slow formats last would leave one process alone with them.
        np.random.default_rng(self.seed).shuffle(batches)
        with progress(sum(map(len, batches)), "input") as advance:
            for one, findings in workers.run(batches):
                rows[one.format.name].add(str(one), findings)
                advance(1)
        for name, ends in self._ends.items():
            rows[name].figures |= {end: sum(value == code for value in ends) for end, code in _ENDS.items()}

    def attempt(self, one: Input) -> list[Finding]:
        """What one input shows, in this process."""
        folder = self.folder / f"input-{os.getpid()}"
        try:
            mutation = self.mutate(one, folder)
            found = judge(one.format, folder, mutation)
            if isinstance(found, Finding):
                return [found]
            self._ends[one.format.name][one.number] = _ENDS[found]
            return []
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def mutate(self, one: Input, folder: Path) -> Mutation:
        """Writes one input into a folder."""
        rng = np.random.default_rng([self.seed, zlib.crc32(one.format.name.encode()), one.number])
        first = int(rng.integers(2))
        shutil.copytree(self._sample(one.format, first), folder)
        return one.format.mutate(rng, folder, self._sample(one.format, 1 - first))

    def find(self, name: str) -> Input:
        """The input of a name, as "agent.json:123".

        Raises:
            InvalidInput: there is none.
        """
        title, _, number = name.rpartition(":")
        found = next((one for one in self.formats if one.name == title), None)
        if found is None:
            raise unknown_name("format", title, [one.name for one in self.formats])
        if not number.isdigit():
            raise InvalidInput(f"--only {name}; expected a format and a number, as {self.formats[0].name}:12")
        return Input(found, int(number))

    def explain(self, one: Input) -> str:
        """What one input is, and what it shows, in words; it stays in the folder."""
        folder = self.folder / "input"
        mutation = self.mutate(one, folder)
        (self.folder / "explained.txt").write_text("")

        def attempt(given: Input) -> list[Finding]:
            try:
                given.format.read(folder)
                said = "read without an error"
            except BaseException:
                said = traceback.format_exc()
            (self.folder / "explained.txt").write_text(said)
            found = judge(given.format, folder, mutation)
            return [found] if isinstance(found, Finding) else []

        ((_, findings),) = Workers(attempt, self.folder, 1, SECONDS, MEMORY).run([[one]])
        said = (self.folder / "explained.txt").read_text()
        shown = "\n".join(f"fault: {finding.kind}: {finding}" for finding in findings) or "no fault"
        return f"{one}: {mutation}{', must be refused' if mutation.refuse else ''}\n{said}\n{shown}"

    def _sample(self, one: Format, number: int) -> Path:
        return self.folder / "samples" / one.name / str(number)

    def _write(self, one: Format) -> list[Finding]:
        for number in (0, 1):
            folder = self._sample(one, number)
            folder.mkdir(parents=True)
            one.write(folder, number)
        # Reading may change files, as a log is cut; so a copy is read.
        copy = shutil.copytree(self._sample(one, 0), self.folder / f"read-{os.getpid()}")
        try:
            one.read(copy)
        except Exception as error:
            return [Finding("wrong", "".join(traceback.format_exception(error)))]
        finally:
            shutil.rmtree(copy)
        return []

    def _count(self, one: Format, inputs: int) -> int:
        return max(1, round(inputs * one.share / sum(other.share for other in self.formats)))

    def _batches(self, inputs: int) -> Iterator[list[Input]]:
        for one in self.formats:
            whole = [Input(one, number) for number in range(self._count(one, inputs))]
            for start in range(0, len(whole), _BATCH):
                yield whole[start : start + _BATCH]


def judge(one: Format, folder: Path, mutation: Mutation) -> Finding | Literal["read", "refused"]:
    """What reading a mutated input shows: a fault, or that it was read or refused as it should be."""
    try:
        one.read(folder)
    except AarenError as error:
        return _judge_message(str(error)) or "refused"
    except SystemExit as stop:
        return "refused" if stop.code in (0, 2) else Finding("wrong", f"exit status {stop.code}")
    except WrongSuccess as error:
        return Finding("wrong", error.about, error.detail or str(mutation))
    except OSError as error:
        # Command lines print it as one line.
        return "refused" if error.filename is not None else _traceback(error)
    except Exception as error:
        return _traceback(error)
    if mutation.refuse:
        return Finding("wrong", f"{mutation.about}: taken, though it should be refused", mutation.where)
    return "read"


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
_NO_MEMORY = re.compile(r"allocate|out of memory|bad_alloc|MemoryError", re.IGNORECASE)


def _judge_message(error: str) -> Finding | None:
    """What a message shows, as command lines print it."""
    message = console.printable(error)
    if _CONTROL.search(message):
        return Finding("wrong", "an error prints control characters raw", ascii(message[:200]))
    if _NO_MEMORY.search(message):
        return Finding("memory", f"an error for want of {MEMORY >> 30} GiB", message[:200])
    if len(message) > LONGEST:
        return Finding("wrong", f"an error of more than {LONGEST} characters", ascii(message[:80]))
    if len(message.split()) < 3:
        return Finding("wrong", "an error that says nothing", ascii(message))
    return None


def _traceback(error: Exception) -> Finding:
    """A finding named by the error's type and the deepest line of this package, its attack left out."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "aaren_rl" in f.filename]
    place = next((f for f in reversed(frames) if f"{os.sep}stress{os.sep}" not in f.filename), frames[-1])
    about = f"{type(error).__name__} in {'/'.join(Path(place.filename).parts[-2:])}, {place.name}"
    kind = "memory" if _NO_MEMORY.search(f"{type(error).__name__} {error}") else "tracebacks"
    return Finding(kind, about, ascii(str(error)[:150]))
