"""Success over length in memory tasks: `python scripts/memory.py runs/t-maze/last --plot memory.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from aaren_rl.experiments import memory_tasks
from aaren_rl.experiments.console import device_named, run, say


@dataclass(frozen=True)
class Arguments:
    """Measure agents of memory tasks at given lengths: how often they are right, and the time of a step."""

    agents: Annotated[list[str], tyro.conf.Positional]
    """Agent folders, as runs/<run>/last or LABEL=FOLDER."""
    lengths: tuple[int, ...] = (20, 50, 100, 150, 300, 600, 1200, 2400, 4800, 9600)
    """Steps from what is to be remembered to the question, each played at exactly."""
    episodes: int = 100
    """Whole episodes of each agent at each length."""
    seed: int = 0
    """Row i of the vector environment is seeded with seed + i."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute; for small models the CPU steps faster."""
    json: Path | None = None
    """Write all figures into this file."""
    plot: Path | None = None
    """Draw success and time by length into this file."""


def main() -> None:
    """Entry point of `aaren-memory`."""
    run(lambda: measure(tyro.cli(Arguments, prog="memory", config=(tyro.conf.FlagCreatePairsOff,))))


def measure(arguments: Arguments) -> None:
    """Measures, prints a table, and writes the files that were asked for."""
    agents = memory_tasks.load(arguments.agents, device_named(arguments.device))
    points = memory_tasks.measure(agents, arguments.lengths, arguments.episodes, arguments.seed)
    say(memory_tasks.table(points))
    if arguments.json is not None:
        memory_tasks.write(arguments.json, agents, points, arguments.seed, arguments.device)
        say(f"figures:    {arguments.json}")
    if arguments.plot is not None:
        memory_tasks.draw(points, arguments.plot)
        say(f"plot:       {arguments.plot}")


if __name__ == "__main__":
    main()
