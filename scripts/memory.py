"""Accuracy over length in memory tasks: `scripts/memory.py AGENT`, or `scripts/memory.py --probes aaren gru`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.memory import lengths, probes


@dataclass(frozen=True)
class Arguments:
    """Measure accuracy in memory tasks by length: of agents, or with --probes of mixers that are trained first."""

    of_agents: lengths.Request
    of_mixers: probes.Request = field(default_factory=probes.Request)
    episodes: int = 100
    """Whole episodes of each agent at each length."""
    seed: int = 0
    """Seed of the first environment; the others follow it."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Device to compute on; the CPU steps small models faster."""


GROUPS = (
    Group("evaluation", "Episodes to play.", ("episodes", "seed", "device")),
    Group("agents", "Lengths of the agents' tasks, and files beside the printed table.", ("lengths", "json", "plot")),
    Group(
        "probes",
        "Mixers that are trained and measured on this project's memory tasks; the same command again does the rest.",
        ("probes", "tasks", "seeds", "updates", "settings", "longest", "out", "jobs"),
    ),
)


def main() -> None:
    """Entry point of `aaren-memory`."""
    run(lambda: measure(parse(Arguments, "memory", GROUPS, ["agents"])))


def measure(arguments: Arguments) -> None:
    """Measures agents, or trains and measures mixers."""
    agents, mixers = arguments.of_agents, arguments.of_mixers
    evaluation = arguments.episodes, arguments.seed, arguments.device
    if bool(agents.agents) == bool(mixers.probes):
        raise InvalidInput("expected either folders of agents or --probes with mixers")
    if mixers.probes and agents != lengths.Request([]):
        raise InvalidInput("--lengths, --json and --plot are for agents; --probes has --longest, and writes into --out")
    if agents.agents and mixers != probes.Request():
        raise InvalidInput(f"{', '.join(f'--{name}' for name in GROUPS[-1].options[1:])} are for --probes")
    if mixers.probes:
        probes.probe(mixers, *evaluation, say)
    else:
        lengths.measure_agents(agents, *evaluation)


if __name__ == "__main__":
    main()
