"""Makes bundled datasets: `python scripts/collect.py hopper-medium --steps 1000000`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from aaren_rl.envs import catalogue
from aaren_rl.envs.collect import STEPS, collect
from aaren_rl.experiments.console import run, say


@dataclass(frozen=True)
class Arguments:
    """Roll the bundled behaviours of catalogue entries out into local Minari datasets."""

    names: Annotated[list[str], tyro.conf.Positional]
    """Catalogue names, as hopper-medium halfcheetah-medium-replay."""
    steps: int = STEPS
    """At least so many steps for each, in whole episodes."""
    seed: int = 0
    """The same seed gives the same data."""
    overwrite: bool = False
    """Replace a dataset that exists."""


def main() -> None:
    """Entry point of `aaren-collect`."""
    run(lambda: collect_named(tyro.cli(Arguments, prog="collect", config=(tyro.conf.FlagCreatePairsOff,))))


def collect_named(arguments: Arguments) -> None:
    """Collects as the arguments say."""
    entries = [catalogue.find(name) for name in arguments.names]
    for entry in entries:
        began = time.perf_counter()
        folder = collect(entry, arguments.steps, arguments.seed, arguments.overwrite)
        say(f"{entry.bundled_id}: {folder}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
