"""Makes bundled datasets: `python scripts/collect.py hopper-medium --steps 1000000`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aaren_rl.envs import catalogue
from aaren_rl.envs.collect import STEPS, collect
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say


@dataclass(frozen=True)
class Arguments:
    """Roll out bundled behaviours of the catalogue, and save the steps as local Minari datasets."""

    names: list[str]
    """Names of the catalogue, as hopper-medium."""
    steps: int = STEPS
    """Least number of steps in each dataset; its last episode is whole."""
    seed: int = 0
    """Seed of the environments and of the behaviours' noise."""
    overwrite: bool = False
    """Replace a dataset that exists."""


GROUPS = (Group("dataset", "Size and noise of each dataset.", ("steps", "seed", "overwrite")),)


def main() -> None:
    """Entry point of `aaren-collect`."""
    run(lambda: collect_named(parse(Arguments, "collect", GROUPS, ["names"])))


def collect_named(arguments: Arguments) -> None:
    """Collects, and prints where each dataset lies."""
    entries = [catalogue.find(name) for name in arguments.names]
    for entry in entries:
        began = time.perf_counter()
        folder = collect(entry, arguments.steps, arguments.seed, arguments.overwrite, say=say)
        say(f"{entry.bundled_id}: {folder}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
