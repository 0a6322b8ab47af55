"""Tries one set of every family of environments: `python scripts/families.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from aaren_rl.errors import unknown_name
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.families import FAMILIES, as_markdown, try_family


@dataclass(frozen=True)
class Arguments:
    """Make a small set for every family of environments, train on it, evaluate, and print what worked."""

    families: list[str]
    """Names of families, as "point mazes"; none for all."""
    episodes: int = 6
    """Episodes of each set."""
    updates: int = 20
    """Updates of each training."""
    seed: int = 0
    """Seed of everything."""
    verbose: bool = False
    """Print what is done."""


GROUPS = (Group("size", "Size of a trial.", ("episodes", "updates", "seed", "verbose")),)


def main() -> None:
    """Entry point of `aaren-families`."""
    run(lambda: try_families(parse(Arguments, "families", GROUPS, ["families"])))


def try_families(arguments: Arguments) -> None:
    """Tries the families, and prints the table."""
    known = {family.name: family for family in FAMILIES}
    for name in arguments.families:
        if name not in known:
            raise unknown_name("family", name, known)
    trials = []
    for family in [known[name] for name in arguments.families] or FAMILIES:
        with TemporaryDirectory() as folder:
            quiet = say if arguments.verbose else (lambda line: None)
            trials.append(
                try_family(family, Path(folder), arguments.episodes, arguments.updates, arguments.seed, quiet)
            )
        say(f"{family.name}: {', '.join(trials[-1].passed) or 'nothing'}; {trials[-1].reason}")
    say("")
    say(as_markdown(trials))


if __name__ == "__main__":
    main()
