"""Measures references of datasets by name, or of all environments that no table has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from aaren_rl.envs import reference_returns
from aaren_rl.envs.catalogue import Entry, catalogue, find
from aaren_rl.envs.environments import register
from aaren_rl.envs.reference_returns import Returns
from aaren_rl.envs.references import reference_of
from aaren_rl.errors import AarenError
from aaren_rl.experiments.console import rounded, say
from aaren_rl.folders import replace_file


def measure(names: Sequence[str], episodes: int, seed: int, out: Path | None) -> None:
    """Measures, prints a line on each dataset, and writes the rows.

    Args:
        names: of the catalogue; none for one of each environment that no table has.
        episodes: of random actions, and as many of what makes the data.
        seed: of all that is drawn.
        out: TOML file of the rows; None for none.

    Raises:
        InvalidInput: a name is unknown, or what it names cannot stand in a table.
    """
    entries = [find(name) for name in names] or without_reference()
    found: list[Returns] = []
    with tqdm(total=2 * episodes * len(entries), unit="episode", disable=None) as bar:
        for entry in entries:
            try:
                one = reference_returns.measure(entry, episodes, seed, bar.update)
                reference_returns.to_toml([one])
            except AarenError as error:
                if names:
                    raise
                say(f"{entry.name}: not measured: {error}")
                continue
            spread = [f"{rounded(float(r.mean()))} +- {rounded(float(r.std()))}" for r in (one.random, one.behaviour)]
            say(f"{one.name}: random {spread[0]}, {one.made_by} {spread[1]}, {one.environment}")
            found.append(one)
            if out is not None:
                replace_file(out, reference_returns.to_toml(found))


def without_reference() -> list[Entry]:
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
