"""Attacks this package on this machine: `python scripts/stress.py fuzz --inputs 2000 --json fuzz.json`."""

from __future__ import annotations

import sys

from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.stress import rows
from aaren_rl.experiments.stress.attack import Request, attack, explain
from aaren_rl.scripts import collect, compare, evaluate, export, train

GROUPS = (
    Group("run", "Seed, processes and output.", ("seed", "jobs", "json")),
    Group("faults", "Kills, and what they meet.", ("kills", "operations")),
    Group("fuzz", "Inputs to read.", ("inputs", "only")),
    Group("stream", "Agents and steps.", ("steps", "mixers")),
)

COMMANDS = {
    command.__name__.rpartition(".")[2]: command.main for command in (collect, compare, evaluate, export, train)
}
"""Command lines that are interrupted."""


def main() -> None:
    """Entry point of `aaren-stress`."""
    run(lambda: stress(parse(Request, "stress", GROUPS, ["part"])))


def stress(request: Request) -> None:
    """Attacks, and prints a table; exit status 1 if something broke, 130 after Ctrl-C."""
    if request.only is not None:
        say(explain(request, request.only))
        return
    found, ended = attack(request, COMMANDS)
    say(rows.table(found))
    if request.json is not None:
        rows.write(request.json, request.part, found, seed=request.seed, ended=ended)
        say(f"figures: {request.json}")
    if not ended:
        sys.exit(130)
    sys.exit(1 if rows.faulty(found) else 0)


if __name__ == "__main__":
    main()
