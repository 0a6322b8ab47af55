"""Prints the table of mixers: `python scripts/mixers.py`."""

from __future__ import annotations

from dataclasses import dataclass

from aaren_rl.experiments import mixer_table
from aaren_rl.experiments.command_line import parse
from aaren_rl.experiments.console import run, say


@dataclass(frozen=True)
class Arguments:
    """Print the table of mixers: options, memory, source, what differs from it, and costs."""


def main() -> None:
    """Entry point of `aaren-mixers`."""
    run(lambda: print_mixers(parse(Arguments, "mixers", ())))


def print_mixers(arguments: Arguments) -> None:
    """Prints the table and what its letters stand for."""
    say(f"{mixer_table.table()}\n\n{mixer_table.legend()}")


if __name__ == "__main__":
    main()
