"""Compares agents over datasets and seeds: `python scripts/compare.py comparison.toml --jobs 4`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments.comparison import costs, matrix, picture, running, table
from aaren_rl.experiments.console import run, say
from aaren_rl.training.run import Interrupted


@dataclass(frozen=True)
class Arguments:
    """Train agents on datasets with several seeds, and compare them by the interquartile mean of their scores.

    Runs that are finished are kept, runs that were interrupted go on: the same command again does what is left.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """TOML file: datasets, seeds, [settings] of every agent, and in [agents.NAME] what is different in one of them."""
    out: Path | None = None
    """Folder of the runs and the table; runs/<name of the file> by default."""
    jobs: int = 1
    """Runs at a time, each in a process and with one thread of its own."""
    only: tuple[str, ...] = ()
    """Agents to run and to show; all by default."""
    datasets: tuple[str, ...] = ()
    """Datasets to run and to show; all by default."""
    seeds: tuple[int, ...] = ()
    """Seeds to run and to show; all by default."""
    table: bool = False
    """Run nothing, only make the table of what is finished."""
    against: str | None = None
    """Agent that the table holds every other one against: the difference of their scores, and whether it shows."""
    picture: bool = False
    """Then measure, once, what training and acting cost the agents, and draw their scores over it."""


def main() -> None:
    """Entry point of `aaren-compare`."""
    run(lambda: compare(tyro.cli(Arguments, prog="compare", config=(tyro.conf.FlagCreatePairsOff,))))


def compare(arguments: Arguments) -> None:
    """Does the runs that are not finished, and writes the table; where asked, the costs and their picture.

    Raises:
        InvalidInput: the file or an argument does not fit, or a folder holds a run of another configuration.
        DataError: data cannot be had, or results cannot stand in one table.
        RunsFailed: some runs failed; the others were done.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    if arguments.jobs < 1:
        raise InvalidInput(f"--jobs {arguments.jobs}; expected at least 1")
    whole = matrix.load(arguments.file)
    out = arguments.out or Path("runs") / arguments.file.stem
    chosen = whole.select(arguments.only, arguments.datasets, arguments.seeds)
    if arguments.against is not None and arguments.against not in chosen.agents:
        raise InvalidInput(f"--against: {unknown_name('agent', arguments.against, chosen.agents)}")
    runs = chosen.runs(out)
    running.check_folders(runs, arguments.file)
    failures = [] if arguments.table else _run(arguments, runs, whole.runs(out))
    commands = {one.agent: _command(arguments, (one.agent,)) for one in runs}
    comparison = table.collect(runs, commands, arguments.against)
    files = [*table.write(comparison, out), picture.draw(comparison, out)]
    say(f"\n{table.to_markdown(comparison)}\ntable:      {', '.join(map(str, files))}")
    if arguments.picture:
        found = costs.measured(comparison, runs, out)
        markdown = costs.to_markdown(comparison, found, _command(arguments, arguments.only, "--picture"))
        table.write(comparison, out, markdown)
        say(f"\n{markdown}\ncosts:      {out / costs.FILE}, {picture.draw_costs(comparison, found, out)}")
    if failures:
        raise running.RunsFailed("\n".join([f"{len(failures)} of {len(runs)} runs failed:", *failures]))


def _run(arguments: Arguments, runs: list[matrix.Run], whole: list[matrix.Run]) -> list[str]:
    left = running.prepare(runs, whole)
    if len(left) < len(runs):
        say(f"{len(runs) - len(left)} of {len(runs)} runs are finished and stand")
    try:
        failures = running.do(left, arguments.jobs, len(runs))
    except Interrupted as error:
        flags = ["--against", arguments.against] if arguments.against is not None else []
        flags += ["--picture"] if arguments.picture else []
        raise Interrupted(f"{error}; go on with {_command(arguments, arguments.only, *flags)}") from error
    if len(failures) == len(runs):
        raise running.RunsFailed("\n".join(["all runs failed:", *failures]))
    return failures


def _command(arguments: Arguments, only: tuple[str, ...], *flags: str) -> str:
    """The command line with these agents and flags."""
    words: list[object] = ["python", "scripts/compare.py", arguments.file]
    for name, values in (
        ("--out", () if arguments.out is None else (arguments.out,)),
        ("--only", only),
        ("--datasets", arguments.datasets),
        ("--seeds", arguments.seeds),
    ):
        words += [name, *values] if values else []
    return shlex.join(map(str, [*words, *flags]))


if __name__ == "__main__":
    main()
