"""Success over length in memory tasks: `python scripts/memory.py runs/t-maze/last --plot memory.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aaren_rl.experiments import memory_tasks
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import device_named, run, say


@dataclass(frozen=True)
class Arguments:
    """Measure the success of agents in memory tasks, and the time of a step, by the length of the task."""

    agents: list[str]
    """Folders of agents, as runs/<run>/last or LABEL=FOLDER."""
    lengths: tuple[int, ...] = (20, 50, 100, 150, 300, 600, 1200, 2400, 4800, 9600)
    """Steps between the cue and the question, one measurement each."""
    episodes: int = 100
    """Whole episodes of each agent at each length."""
    seed: int = 0
    """Seed of the first environment; the others follow it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Device to compute on; the CPU steps small models faster."""
    json: Path | None = None
    """Write all figures into this file."""
    plot: Path | None = None
    """Draw success and time by length into this file."""


GROUPS = (
    Group("task", "Lengths and episodes to play.", ("lengths", "episodes", "seed", "device")),
    Group("output", "Files beside the printed table.", ("json", "plot")),
)


def main() -> None:
    """Entry point of `aaren-memory`."""
    run(lambda: measure(parse(Arguments, "memory", GROUPS, ["agents"])))


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
