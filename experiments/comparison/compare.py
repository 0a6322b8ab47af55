"""A comparison from its file to its table: runs what is left, collects scores, and measures costs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from aaren_rl.envs.dataset import Say
from aaren_rl.envs.environments import import_packages
from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments.comparison import bandit, costs, matrix, picture, preparing, running, scores, table
from aaren_rl.experiments.comparison.processes import Pool, Processes
from aaren_rl.experiments.comparison.ray_cluster import RayCluster
from aaren_rl.experiments.search import searching, space
from aaren_rl.training.run import Interrupted


@dataclass(frozen=True)
class Request:
    """Train agents on datasets with several seeds, and compare them by the interquartile mean of their scores.

    Finished runs are kept and interrupted ones go on: the same command again does the rest.
    """

    file: Path
    """TOML file with datasets, seeds, the [settings] of every agent, and the differences of each in [agents.NAME]."""
    out: Path | None = None
    """Folder of the runs and the table; by default runs/<name of the file>."""
    jobs: int = 1
    """Number of runs at a time, each in a process with one thread."""
    on: Literal["processes", "ray"] = "processes"
    """Train in processes of this machine, or on the Ray cluster of RAY_ADDRESS; without that, ray starts one here."""
    cpus: float = 1.0
    """CPUs that a run reserves on a Ray cluster; it computes with one thread."""
    gpus: float = 0.0
    """GPUs that a run reserves on a Ray cluster, or a part of one; with 0 it trains without."""
    only: tuple[str, ...] = ()
    """Agents to run and to show; all by default."""
    datasets: tuple[str, ...] = ()
    """Datasets to run and to show; all by default."""
    seeds: tuple[int, ...] = ()
    """Seeds to run and to show; all by default."""
    table: bool = False
    """Run nothing; write the table of the finished runs."""
    against: str | None = None
    """Agent whose scores the table subtracts from those of the others, with intervals."""
    imports: tuple[str, ...] = ()
    """Packages that register environments, to be imported first."""
    returns: bool = False
    """Show mean returns beside the scores, and take datasets without reference returns, which have no score."""
    picture: bool = False
    """Measure the costs of training and acting once, and draw the scores over them."""
    d3rlpy: Path | None = None
    """Interpreter with d3rlpy, for agents with a [agents.NAME.peer]."""
    bandit: bool = False
    """Show the score over the number of episodes spent to choose among an agent's seeds."""

    def __post_init__(self) -> None:
        if self.on == "ray" and self.jobs != 1:
            raise InvalidInput(
                f"--jobs {self.jobs} is for processes; on Ray the cluster's CPUs and GPUs say how many runs train at a "
                "time: leave it out, or pass --cpus and --gpus"
            )
        if self.on != "ray" and (self.cpus, self.gpus) != (1.0, 0.0):
            raise InvalidInput("--cpus and --gpus are for --on ray; leave them out")

    def pool(self, out: Path, say: Say) -> Pool:
        """Where the runs train.

        Raises:
            InvalidInput: an option does not fit, or Ray is missing.
        """
        python = None if self.d3rlpy is None else self.d3rlpy.absolute()
        if self.on == "ray":
            return RayCluster(out, self.cpus, self.gpus, say, python)
        return Processes(self.jobs, python)


def compare(request: Request, say: Say) -> scores.Comparison:
    """Does the runs that are not finished, and writes the table; on request also the costs and their picture.

    Args:
        request: selection of runs, and files to write.
        say: receives lines on runs and files.

    Raises:
        InvalidInput: the file or an option is wrong, or a folder holds a run of another configuration.
        DataError: data cannot be loaded, or results cannot stand in one table.
        RunsFailed: some runs failed; the others were done.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    import_packages(request.imports)
    whole = matrix.load(request.file)
    out = request.out or Path("runs") / request.file.stem
    with request.pool(out, say) as pool:
        whole, search = _searched(request, whole, out, pool, say)
        runs = _select(request, whole).runs(out)
        running.check_folders(runs, request.file)
        known = {} if request.table else preparing.joined(searching.origins(search), preparing.begun(whole.runs(out)))
        failures = [] if request.table else _run(request, runs, known, out, pool, say)
    comparison = _tabulate(request, runs, search, out, say)
    if failures:
        raise running.RunsFailed("\n".join([f"{len(failures)} of {len(runs)} runs failed:", *failures]))
    return comparison


def _select(request: Request, whole: matrix.Matrix) -> matrix.Matrix:
    """The part of a comparison that is asked for.

    Raises:
        InvalidInput: a name or a seed is not in the file.
    """
    chosen = whole.select(request.only, request.datasets, request.seeds)
    if request.against is not None and request.against not in chosen.agents:
        raise InvalidInput(f"--against: {unknown_name('agent', request.against, chosen.agents)}")
    if request.picture and (measured := [name for name in chosen.agents if name in chosen.peers]):
        raise InvalidInput(
            f"--picture measures this project's agents, and {', '.join(measured)} are d3rlpy's; choose others by --only"
        )
    return chosen


def _tabulate(
    request: Request, runs: list[matrix.Run], search: dict[str, Any] | None, out: Path, say: Say
) -> scores.Comparison:
    """Writes and says the table of the finished runs; `search` has the figures of the search that chose an agent."""
    commands = {one.agent: _command(request, (one.agent,), *(["--returns"] if request.returns else [])) for one in runs}
    comparison = scores.collect(runs, commands, request.against, request.returns, search)
    files = [*table.write(comparison, out), *([picture.draw(comparison, out)] if comparison.scored else [])]
    say(f"\n{table.to_markdown(comparison)}\ntable:      {', '.join(map(str, files))}")
    more: list[str] = []
    if request.bandit:
        more.append(bandit.to_markdown(runs))
        table.write(comparison, out, more[-1])
        say(f"\n{more[-1]}")
    if request.picture:
        found = costs.measured(comparison, runs, out, say)
        flags = ["--returns", "--picture"] if request.returns else ["--picture"]
        markdown = costs.to_markdown(comparison, found, _command(request, request.only, *flags))
        table.write(comparison, out, "\n".join([*more, markdown]))
        say(f"\n{markdown}\ncosts:      {out / costs.FILE}, {picture.draw_costs(comparison, found, out)}")
    return comparison


def _run(
    request: Request,
    runs: list[matrix.Run],
    known: dict[str, preparing.Origin],
    out: Path,
    pool: Pool,
    say: Say,
) -> list[str]:
    left = [
        replace(run, config=replace(run.config, imports=request.imports))
        for run in preparing.prepare(runs, known, out, pool, say, request.returns)
    ]
    if len(left) < len(runs):
        say(f"{len(runs) - len(left)} of {len(runs)} runs are finished and stand")
    running.check_interpreter(left, request.d3rlpy)
    with _resumable(request):
        failures = running.do(left, pool, len(runs), say)
    if len(failures) == len(runs):
        raise running.RunsFailed("\n".join(["all runs failed:", *failures]))
    return failures


def _searched(
    request: Request, whole: matrix.Matrix, out: Path, pool: Pool, say: Say
) -> tuple[matrix.Matrix, dict[str, Any] | None]:
    """The comparison with the agent that its file's search chose, and the figures of the search, which is done first.

    Without a [search], or where that agent is not asked for, the comparison as it is.
    """
    search = space.read(whole)
    if search is None or (request.only and search.options.name not in request.only):
        return whole, None
    found = searching.found(search, out)
    if found is None and request.table:
        say(f"the search in {out / space.FOLDER} is not done, so {search.options.name} is not in the table")
        return whole, None
    if found is None:
        # Before the search and not after it.
        promised = {**whole.agents, search.options.name: whole.agents[search.options.agent]}
        _select(request, replace(whole, agents=promised))
        running.check_folders(whole.runs(out), request.file)
        with _resumable(request):
            searching.run(search, out, pool, say, request.returns, request.imports)
        found = searching.found(search, out)
        assert found is not None
    return found


@contextmanager
def _resumable(request: Request) -> Iterator[None]:
    """Says of an interruption with which command to go on."""
    try:
        yield
    except Interrupted as error:
        flags = ["--against", request.against] if request.against is not None else []
        flags += [f"--{name}" for name in ("returns", "picture", "bandit") if getattr(request, name)]
        given = [(one.name, getattr(request, one.name), one.default) for one in fields(request)]
        for name, value, default in given:
            flags += [f"--{name}", str(value)] if name in ("jobs", "on", "cpus", "gpus") and value != default else []
        raise Interrupted(f"{error}; go on with {_command(request, request.only, *flags)}") from error


def _command(request: Request, only: tuple[str, ...], *flags: str) -> str:
    """Command line with these agents and flags."""
    words: list[object] = ["python", "scripts/compare.py", request.file]
    for name, values in (
        ("--out", () if request.out is None else (request.out,)),
        ("--only", only),
        ("--datasets", request.datasets),
        ("--seeds", request.seeds),
        ("--import", request.imports),
        ("--d3rlpy", () if request.d3rlpy is None else (request.d3rlpy,)),
    ):
        words += [name, *values] if values else []
    return shlex.join(map(str, [*words, *flags]))
