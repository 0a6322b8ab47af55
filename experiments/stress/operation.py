"""The contract of what is interrupted: how to begin it, how to go on with it, and what must be left of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

Main = Callable[[], None]
"""Entry point of a command line, which reads the words of the process."""


@dataclass(frozen=True)
class World:
    """What all operations find.

    Attributes:
        folder: of the datasets, of a finished run and of its export.
        commands: entry points of the command lines, by name.
    """

    folder: Path
    commands: Mapping[str, Main]

    @property
    def datasets(self) -> Path:
        """Root of the Minari datasets."""
        return self.folder / "minari"

    @property
    def run(self) -> Path:
        """Folder of a finished run."""
        return self.folder / "run"

    def command(self, name: str, *words: object) -> Main:
        """A command with its words."""

        def call() -> None:
            sys.argv = [name, *map(str, words)]
            self.commands[name]()

        return call


class Operation:
    """Something that writes, in a folder that is the working directory.

    Args:
        world: what it finds.
    """

    name: ClassVar[str]
    share: ClassVar[int]
    """Of all kills, in hundredths."""

    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, folder: Path) -> None:
        """Writes what lies there before."""

    def begin(self, folder: Path) -> Main:
        """The operation from its start."""
        raise NotImplementedError

    def again(self, folder: Path) -> Main:
        """The operation after it was interrupted."""
        return self.begin(folder)

    def damage(self, folder: Path) -> str | None:
        """What is lost of what was there before, or cannot be read, at any moment; None for nothing."""
        for old in listed(folder, "**/.*.old-*"):
            name = old.name[1:].rpartition(".old-")[0]
            if not old.with_name(name).exists():
                return f"the folder {name} is gone, it lies under a hidden name"
        return None

    def result(self, folder: Path) -> str:
        """What the finished operation leaves, in words that are equal for equal results."""
        raise NotImplementedError

    def together(self, folder: Path, statuses: list[int]) -> str | None:
        """What is wrong after two processes did the same at once and ended with these statuses; None for nothing."""
        return None if 0 in statuses else f"none of both succeeded, exit statuses {sorted(statuses)}"


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files and folders of a pattern, where what a killed command began may still come and go."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return list(folder.glob(pattern))


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders that a finished operation should not leave."""
    return sorted(
        {
            path.name.rpartition("-")[0]
            for path in listed(folder, "**/.*")
            if ".partial-" in path.name or ".old-" in path.name
        }
    )


def unless(read: Callable[[], object], what: str) -> str | None:
    """What is wrong with something that must be readable; None if it can be read."""
    try:
        read()
    except Exception as error:
        return f"{what} cannot be read: {type(error).__name__}"
    return None
