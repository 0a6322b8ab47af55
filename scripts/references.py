"""Measures returns that scores are held against: `python scripts/references.py pendulum-expert pointmaze-umaze`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from aaren_rl.envs import reference_returns
from aaren_rl.envs.catalogue import Entry, catalogue, find
from aaren_rl.envs.environments import register
from aaren_rl.envs.reference_returns import Returns
from aaren_rl.envs.references import reference_of
from aaren_rl.errors import AarenError
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import rounded, run, say
from aaren_rl.folders import replace_file


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
    run(lambda: measure(parse(Arguments, "references", GROUPS, ["names"])))


def measure(arguments: Arguments) -> None:
    """Measures, prints a line on each dataset, and writes the rows."""
    entries = [find(name) for name in arguments.names] or _without_reference()
    found: list[Returns] = []
    with tqdm(total=2 * arguments.episodes * len(entries), unit="episode", disable=None) as bar:
        for entry in entries:
            try:
                one = reference_returns.measure(entry, arguments.episodes, arguments.seed, bar.update)
                reference_returns.to_toml([one])
            except AarenError as error:
                if arguments.names:
                    raise
                say(f"{entry.name}: not measured: {error}")
                continue
            spread = [f"{rounded(float(r.mean()))} +- {rounded(float(r.std()))}" for r in (one.random, one.behaviour)]
            say(f"{one.name}: random {spread[0]}, {one.made_by} {spread[1]}, {one.environment}")
            found.append(one)
            if arguments.out is not None:
                replace_file(arguments.out, reference_returns.to_toml(found))


def _without_reference() -> list[Entry]:
    """An entry of each environment that no table has and that behaviours or an expert play here.

    Says which packages are missing.
    """
    entries: dict[str, Entry] = {}
    missing: set[str] = set()
    for entry in catalogue().values():
        environment = entry.environments.get("bundled")
        if environment is None or not entry.bundled or entry.behaviours == () or str(environment) in entries:
            continue
        # None of these can stand in a table.
        if environment.wrappers or entry.evaluation is not None:
            continue
        try:
            register(environment)
        except AarenError as error:
            missing.add(str(error))
            continue
        if reference_of(environment) is None:
            entries[str(environment)] = entry
    for reason in sorted(missing):
        say(f"not measured: {reason}")
    return list(entries.values())


if __name__ == "__main__":
    main()
