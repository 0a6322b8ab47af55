"""Measures returns that scores are held against: `python scripts/references.py pendulum-expert pointmaze-umaze`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run
from aaren_rl.experiments.referencing import measure


@dataclass(frozen=True)
class Arguments:
    """Measure mean returns of random actions and of what makes a dataset: 0 and 100 of a normalised score."""

    names: tuple[str, ...] = ()
    """Names of the catalogue, as pendulum-expert; none for one of each environment that no table has."""
    episodes: int = 100
    """Episodes of random actions, and as many of the behaviours or the expert."""
    seed: int = 0
    """Seed of the environments, and of all that is drawn."""
    out: Path | None = None
    """TOML file to write the rows of a table of references into, as envs/references/experts.toml has them."""


GROUPS = (Group("measurement", "Episodes, and the file of the rows.", ("episodes", "seed", "out")),)


def main() -> None:
    """Entry point of `aaren-references`."""
    run(lambda: _measure(parse(Arguments, "references", GROUPS, ["names"])))


def _measure(arguments: Arguments) -> None:
    measure(arguments.names, arguments.episodes, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
