"""Decides whether data are trained on from memory or from disk, and converts them for the latter, once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from aaren_rl.data import converted
from aaren_rl.data.converted import Rows
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.free_memory import free_memory, in_words
from aaren_rl.envs.readers.streamed import Streamed
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import AarenError, DataError, InvalidInput, unknown_name
from aaren_rl.folders import whole_folder

Choice: TypeAlias = Literal["auto", "memory", "disk"]
Progress: TypeAlias = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""Takes a number of steps and a name, and shows how many of the steps are done."""
Say: TypeAlias = Callable[[str], object]

SHARE = 0.5
"""Share of the free memory that "auto" gives to data. The rest is the model's, and that of passes over the data."""


@dataclass(frozen=True)
class Keeping:
    """Where data lie while they are trained on.

    Attributes:
        choice: "memory", "disk", or "auto" for memory unless the data take more than `SHARE` of what is free.
        folder: that data on disk are converted into; None only with "memory".
        room: bytes that are free on a GPU, which holds data in memory too; None without one.
        progress: shows how far a conversion is; None for nothing.
        copies: processes of this machine that hold the data in memory.

    Raises:
        InvalidInput: there is no such choice.
    """

    choice: Choice = "memory"
    folder: Path | None = None
    room: int | None = None
    progress: Progress | None = None
    copies: int = 1

    def __post_init__(self) -> None:
        if self.choice not in get_args(Choice):
            raise unknown_name("place of data", str(self.choice), get_args(Choice))

    def refuse_whole(self, what: str, say: Say) -> None:
        """Says that data which are read as a whole lie in memory.

        Args:
            what: the data, with their format.
            say: called with the line.

        Raises:
            InvalidInput: they were to lie on disk.
        """
        if self.choice == "disk":
            raise InvalidInput(
                f"{what} is read as a whole, so it cannot be kept on disk; convert it once where memory holds it "
                "(aaren-convert SOURCE NEW_ID), and train on the Minari dataset with --data disk"
            )
        if self.choice == "auto":
            say(f"data: in memory, since {what} is read as a whole")

    def keep(self, streamed: Streamed, say: Say) -> Trajectories:
        """Data in memory, or from their converted copy, which is made if there is none.

        Args:
            streamed: the data.
            say: called with lines on what is chosen, and why.

        Raises:
            DataError: the copy is damaged or cannot be written, or the data are none.
        """
        disk, why = self._chooses_disk(streamed.bytes)
        if not disk:
            if self.choice != "memory":
                say(f"data: in memory, {why}")
            return streamed.whole()
        assert self.folder is not None, "data on disk have a folder"
        source = _fingerprint(streamed)
        folder = self.folder.absolute() / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', streamed.id)}-{source[:12]}"
        say(f"data: on disk, {why}")
        if folder.exists() or not self._convert_once(streamed, folder, source, say):
            say(f"data: reads the converted copy in {folder}")
        return self._open(folder, source, say)

    def _chooses_disk(self, size: int) -> tuple[bool, str]:
        """Whether data of so many bytes lie on disk, and why."""
        if self.choice != "auto":
            return self.choice == "disk", f"{in_words(size)}, by --data {self.choice}"
        free, where = free_memory() // self.copies, "memory"
        if self.copies > 1:
            where = f"memory for each of {self.copies} processes"
        if self.room is not None and self.room < free:
            free, where = self.room, "the GPU's memory"
        more = size > SHARE * free
        than = "more than" if more else "at most"
        return more, f"{in_words(size)}: {than} {SHARE:.0%} of the {in_words(max(free, 0))} of {where} that are free"

    def _open(self, folder: Path, source: str, say: Say) -> Trajectories:
        said = converted.read_about(folder).get("made_from")
        if said != {"sha256": source}:
            raise DataError(f"{folder} is a copy of other data, by its {converted.ABOUT}; delete it, or move it away")
        derived = folder
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            derived = Path(tempfile.gettempdir())
            say(f"data: {folder} cannot be written ({error}); arrays made of the data lie in {derived} (TMPDIR)")
        return converted.open_folder(folder, derived)

    def _convert_once(self, streamed: Streamed, folder: Path, source: str, say: Say) -> bool:
        """Converts data, unless another process does so meanwhile; True if this one did."""
        with one_at_a_time(folder, say):
            missing = not folder.exists()
            if missing:
                self._convert(streamed, folder, source, say)
        return missing

    def _convert(self, streamed: Streamed, folder: Path, source: str, say: Say) -> None:
        say(f"data: converts {streamed.id} into {folder}, once")
        free = shutil.disk_usage(folder.parent).free
        if streamed.bytes > free:
            raise DataError(
                f"{folder.parent} has {in_words(free)} of free space, and {in_words(streamed.bytes)} are needed; free "
                "some, or name a folder on another disk with --data-folder"
            )
        show = self.progress or (lambda steps, name: nullcontext(lambda done: None))
        bar = show(streamed.counts.steps, streamed.id)
        with whole_folder(folder, DataError, replace=False) as partial, bar as advance:
            rows = _counted(_read(streamed), advance)
            converted.write(partial, rows, streamed.counts, streamed.spaces, {"sha256": source})


def _counted(rows: Iterator[Rows], advance: Callable[[int], object]) -> Iterator[Rows]:
    for part in rows:
        yield part
        advance(len(part.rewards))


def _read(streamed: Streamed) -> Iterator[Rows]:
    """The rows of data, whose damage is not taken for that of the copy.

    Raises:
        DataError: they cannot be read.
    """
    rows = streamed.rows()
    while True:
        try:
            part = next(rows, None)
        except AarenError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            where = os.path.commonpath(streamed.files) if streamed.files else "memory"
            raise DataError(
                f"{streamed.id}, in {where}, cannot be read: {error}; it may be cut off or damaged: fetch it again"
            ) from error
        if part is None:
            return
        yield part


def _fingerprint(streamed: Streamed) -> str:
    """SHA-256 of what data are read from: names, sizes and times of the files, spaces, and options."""
    files = []
    for file in sorted(streamed.files):
        about = file.stat()
        files.append([file.name, about.st_size, about.st_mtime_ns])
    spaces = [None if space is None else space.to_json() for space in streamed.spaces]
    said = [converted.VERSION, streamed.id, streamed.variant, streamed.counts, spaces, files]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
