"""The scores of a comparison: results of finished runs, their interquartile means, and how they were measured."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import Any

from aaren_rl.envs import statistics
from aaren_rl.errors import DataError
from aaren_rl.experiments.comparison import running
from aaren_rl.experiments.comparison.matrix import Run

_CONDITIONS = {"max_episode_steps": "limit", "wrappers": "wrappers", "instances": "instances"}
"""Entries of a result under which returns are comparable, beside the environment, and words for them."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Difference of two agents' interquartile means.

    Attributes:
        value: first mean minus the second.
        interval: 95% interval of a stratified bootstrap of both; None if a dataset has a single seed.
    """

    value: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str | None:
        """Place of the first agent by the interval; None without an interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return "above" if low > 0 else "below" if high < 0 else "no difference shown"


@dataclass(frozen=True)
class Aggregates:
    """Interquartile means of agents over the runs that all agents have.

    Attributes:
        common: (dataset, seed) of these runs.
        iqm: interquartile mean of each agent; empty without a common run.
        intervals: 95% interval of a stratified bootstrap; None if a dataset has a single seed.
        above: probability that the first agent's interquartile mean is above the second's, under the same bootstrap.
        differences: differences of the reference agent from each other agent.
    """

    common: list[tuple[str, int]]
    iqm: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    above: dict[str, dict[str, float]]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Finished runs of the selected agents, datasets and seeds.

    Attributes:
        agents: agents with a finished run.
        datasets: all selected datasets.
        seeds: all selected seeds.
        rows: one row a run.
        unfinished: agents without a finished run.
        last: aggregates of the agents after the last update.
        best: aggregates of the agents that were best in training; None unless all runs have one.
        protocol: data, environments, versions and seeds of the measurement.
        commands: command that reproduces each agent's row.
        against: reference agent of the differences; None for no differences.
        shows_returns: True if the table shows mean returns too.
    """

    agents: list[str]
    datasets: list[str]
    seeds: list[int]
    rows: list[Row]
    unfinished: list[str]
    last: Aggregates
    best: Aggregates | None
    protocol: dict[str, Any]
    commands: dict[str, str]
    against: str | None = None
    shows_returns: bool = False

    @property
    def scored(self) -> list[str]:
        """Datasets with scores: all but those without reference returns."""
        unscored = {row["dataset"] for row in self.rows if row["normalized_score"] is None}
        return [dataset for dataset in self.datasets if dataset not in unscored]

    def scores(self, agent: str, dataset: str, figure: str = "normalized_score") -> dict[int, float]:
        """Scores, or another figure, of an agent on a dataset by seed."""
        return {row["seed"]: row[figure] for row in self.rows if (row["agent"], row["dataset"]) == (agent, dataset)}


def collect(
    runs: list[Run],
    commands: dict[str, str],
    against: str | None = None,
    returns: bool = False,
    search: dict[str, Any] | None = None,
) -> Comparison:
    """Reads the results of finished runs.

    Args:
        runs: selected runs.
        commands: command that reproduces each agent's row.
        against: reference agent of the differences; None for no differences.
        returns: the table shows mean returns too, and takes results without a score.
        search: figures of the search that chose an agent; None if no agent was chosen so.

    Raises:
        DataError: no run is finished, or no run of `against`; a result lacks an entry; or results differ in their
            data, environment or reference.
        CheckpointError: a result cannot be read.
    """
    finished = [(run, figures) for run in runs if (figures := running.outcome(run)) is not None]
    if not finished:
        raise DataError(f"no run under {runs[0].folder.parents[2]} is finished; run without --table first")
    rows = [_row(run, figures, commands[run.agent], returns) for run, figures in finished]
    scored = [row for row in rows if row["normalized_score"] is not None]
    running.check_sources((run, row["source"]) for (run, _), row in zip(finished, rows, strict=True))
    _check_columns(finished)
    agents = list(dict.fromkeys(run.agent for run in runs))
    shown = [agent for agent in agents if any(row["agent"] == agent for row in rows)]
    if against is not None and against not in shown:
        raise DataError(f"no run of {against} is finished, so nothing can be held against it; leave --against out")
    last = aggregate(scored, shown, against=against)
    return Comparison(
        agents=shown,
        datasets=list(dict.fromkeys(run.dataset for run in runs)),
        seeds=list(dict.fromkeys(run.seed for run in runs)),
        rows=rows,
        unfinished=[agent for agent in agents if agent not in shown],
        last=last,
        best=aggregate(scored, shown, "best") if scored and all(row["best"] is not None for row in scored) else None,
        protocol=_protocol(runs, finished, last) | ({"search": search} if search and search["agent"] in shown else {}),
        commands=commands,
        against=against,
        shows_returns=returns,
    )


def aggregate(
    rows: list[Row], agents: list[str], figure: str = "normalized_score", against: str | None = None
) -> Aggregates:
    """Interquartile means of a figure over the (dataset, seed) that all agents have.

    Args:
        rows: rows of all runs that have the figure.
        agents: agents to aggregate.
        figure: "normalized_score" or "best".
        against: reference agent of the differences; None for no differences.
    """
    scores = {
        agent: {(row["dataset"], row["seed"]): row[figure] for row in rows if row["agent"] == agent} for agent in agents
    }
    common = [key for key in scores[agents[0]] if all(key in one for one in scores.values())]
    iqm: dict[str, float] = {}
    intervals: dict[str, tuple[float, float] | None] = {}
    resampled = {}
    for agent in agents if common else []:
        strata = [[scores[agent][key] for key in common if key[0] == dataset] for dataset in dict(common)]
        iqm[agent] = statistics.interquartile_mean(strata)
        intervals[agent] = None
        if all(len(runs) > 1 for runs in strata):
            # Agents are independent, and the draws of one do not depend on the others in the table.
            resampled[agent] = statistics.resampled_interquartile_means(strata, zlib.crc32(agent.encode()))
            intervals[agent] = statistics.interval(resampled[agent])
    above: dict[str, dict[str, float]] = {agent: {} for agent in resampled}
    for one, other in itertools.permutations(resampled, 2):
        above[one][other] = statistics.probability_above(resampled[one], resampled[other])
    differences = {}
    if against is not None:
        for other in (agent for agent in iqm if agent != against):
            # Draws of two agents are independent, so their differences are draws of the difference.
            drawn = resampled[against] - resampled[other] if resampled else None
            between = None if drawn is None else statistics.interval(drawn)
            differences[other] = Difference(iqm[against] - iqm[other], between)
    return Aggregates(common, iqm, intervals, above, differences)


def _row(run: Run, figures: dict[str, Any], command: str, without_scores: bool) -> Row:
    file = run.folder / running.RESULT
    needed = ("mean", "ci95", "source", "environment", "updates", "parameters", "acting", "train_seconds")
    for name in ("normalized_score", *needed):
        if name not in figures:
            raise DataError(
                f"{file} does not say {name!r}; another version wrote it. Delete that file and run again: the agent is "
                "kept, and evaluated anew"
            )
    if figures["normalized_score"] is None and not without_scores:
        raise DataError(
            f"{file} has no normalised score, for want of reference returns; leave {run.dataset} out, or pass --returns"
        )
    # A result without "best" says that the last agent was the best, if the run evaluated in training.
    best = figures.get("best", figures if run.config.check_episodes else {"normalized_score": None})
    return {
        "agent": run.agent,
        "dataset": run.dataset,
        "seed": run.seed,
        "normalized_score": figures["normalized_score"],
        "best": best["normalized_score"],
        **{name: figures[name] for name in needed},
        "command": command,
    }


def _check_columns(finished: list[tuple[Run, dict[str, Any]]]) -> None:
    """Checks that the runs of a dataset had the same data, environment and reference."""
    columns: dict[str, dict[str, list[str]]] = {}
    for run, figures in finished:
        measured = f"{figures['environment']} {figures.get('environment_kwargs') or ''}".strip()
        measured += "".join(f", {word} {figures[name]}" for name, word in _CONDITIONS.items() if figures.get(name))
        measured += f" against {figures.get('reference')}, data {str(figures.get('data_sha256'))[:12]}"
        columns.setdefault(run.dataset, {}).setdefault(measured, []).append(run.name)
    for dataset, ways in columns.items():
        if len(ways) > 1:
            listed = "; ".join(f"in {measured}: {', '.join(names)}" for measured, names in ways.items())
            raise DataError(
                f"the runs on {dataset} are not compared, they differ in data or evaluation ({listed}); set one env_id "
                "under [settings] and pass another --out, or choose agents with --only"
            )


def _protocol(runs: list[Run], finished: list[tuple[Run, dict[str, Any]]], last: Aggregates) -> dict[str, Any]:
    def each(name: str, dataset: str | None = None) -> list[Any]:
        found = [figures.get(name) for run, figures in finished if dataset in (None, run.dataset)]
        return list(dict.fromkeys(found))

    packages = {name for _, figures in finished for name in figures.get("versions", {})}
    datasets = list(dict.fromkeys(run.dataset for run, _ in finished))
    unscored = {run.dataset for run, figures in finished if figures["normalized_score"] is None}
    cells = list(dict.fromkeys((run.dataset, run.seed) for run in runs if run.dataset not in unscored))
    return {
        "source": each("source")[0],
        "reference": [name for name in each("reference") if name is not None],
        "environments": {dataset: each("environment", dataset)[0] for dataset in datasets},
        "versions": {
            name: sorted({str(figures.get("versions", {}).get(name)) for _, figures in finished})
            for name in sorted(packages)
        },
        "episodes": each("episodes"),
        "updates": each("updates"),
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "targets": {dataset: each("target", dataset) for dataset in datasets},
        "acting": each("acting"),
        "resamples": statistics.RESAMPLES,
        "compared": [list(key) for key in last.common],
        "left_out": [list(key) for key in cells if key not in last.common],
    }
