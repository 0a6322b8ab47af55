"""The table of a comparison, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from aaren_rl.actor import Target
from aaren_rl.experiments.comparison.scores import Aggregates, Comparison
from aaren_rl.experiments.console import rounded
from aaren_rl.folders import replace_file


def write(comparison: Comparison, out: Path, more: str = "") -> list[Path]:
    """Writes table.json, and table.md with more Markdown at its end."""
    markdown, figures = out / "table.md", out / "table.json"
    replace_file(markdown, "\n".join(part for part in (to_markdown(comparison), more) if part))
    replace_file(figures, json.dumps(_to_json(comparison), indent=2) + "\n")
    return [markdown, figures]


def to_markdown(comparison: Comparison) -> str:
    """The table, the protocol in words, and the commands that reproduce the rows."""
    parts = [_table(comparison, comparison.last, "normalized_score")] if comparison.scored else []
    if comparison.best is not None:
        parts += [
            "The agents that were best in training, by its evaluations:",
            _table(comparison, comparison.best, "best"),
        ]
    if comparison.shows_returns:
        parts += ["Mean returns, in the environments' rewards:", _returns(comparison)]
    # The table of differences needs fewer columns.
    if len(comparison.last.above) > 1 and comparison.against is None:
        parts += ["Probability that the IQM of the agent on the left is above that of the agent in the head:"]
        parts += [_above(comparison.last.above)]
    if comparison.last.differences:
        parts += [_differences(comparison)]
    parts += [_words(comparison), "Every row by its command, with another `--out` to run it anew:"]
    parts += ["\n".join(f"- {agent}: `{comparison.commands[agent]}`" for agent in comparison.agents)]
    return "\n\n".join(parts) + "\n"


def _to_json(comparison: Comparison) -> dict[str, Any]:
    def aggregates(of: Aggregates) -> dict[str, Any]:
        return {"iqm": of.iqm, "intervals": of.intervals, "above": of.above}

    best = {} if comparison.best is None else {"best": aggregates(comparison.best)}
    against = {
        other: {"difference": one.value, "interval": one.interval, "verdict": one.verdict}
        for other, one in comparison.last.differences.items()
    }
    return {
        **aggregates(comparison.last),
        **best,
        **({} if comparison.against is None else {"against": {"agent": comparison.against, "others": against}}),
        "rows": comparison.rows,
        "protocol": comparison.protocol,
    }


def _table(comparison: Comparison, aggregates: Aggregates, figure: str) -> str:
    expected = len(comparison.datasets) * len(comparison.seeds)
    lines = []
    for agent in comparison.agents:
        rows = [row for row in comparison.rows if row["agent"] == agent]
        parameters = [row["parameters"] for row in rows]
        lines.append(
            [
                agent,
                _range(min(parameters), max(parameters)),
                *(_spread(comparison.scores(agent, dataset, figure)) for dataset in comparison.scored),
                f"{len(rows)} of {expected}",
                mean_in_words(aggregates, agent),
            ]
        )
    return grid(["agent", "parameters", *comparison.scored, "runs", "IQM"], lines)


def _returns(comparison: Comparison) -> str:
    lines = [
        [agent, *(_spread(comparison.scores(agent, dataset, "mean"), rounded) for dataset in comparison.datasets)]
        for agent in comparison.agents
    ]
    return grid(["agent", *comparison.datasets], lines)


def mean_in_words(aggregates: Aggregates, agent: str) -> str:
    """The interquartile mean of an agent, with its interval if it has one."""
    iqm, interval = aggregates.iqm.get(agent), aggregates.intervals.get(agent)
    return "-" if iqm is None else f"{iqm:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _differences(comparison: Comparison) -> str:
    lines = []
    for other, one in comparison.last.differences.items():
        interval = "" if one.interval is None else " [{:+.1f}, {:+.1f}]".format(*one.interval)
        lines.append([other, f"{one.value:+.1f}{interval}", one.verdict or "-"])
    words = (
        f"IQM of {comparison.against} minus that of the other, with its 95% interval by the same bootstrap, each pair "
        "for itself: above or below where the interval leaves 0 out."
    )
    return f"{words}\n\n{grid(['other', 'difference', f'{comparison.against} is'], lines)}"


def _above(above: dict[str, dict[str, float]]) -> str:
    lines = [[one, *(f"{above[one][other]:.2f}" if other != one else "" for other in above)] for one in above]
    return grid(["", *above], lines)


def grid(head: list[str], lines: list[list[str]], words: int = 1) -> str:
    """A Markdown table whose first columns, `words` of them, hold words, and the others figures."""
    rule = ["---" if number < words else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _spread(scores: dict[int, float], in_words: Callable[[float], str] = "{:.1f}".format) -> str:
    if not scores:
        return "-"
    low, high = min(scores.values()), max(scores.values())
    mean = sum(scores.values()) / len(scores)
    return in_words(mean) + (f" ({in_words(low)} to {in_words(high)})" if len(scores) > 1 else "")


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _words(comparison: Comparison) -> str:
    protocol = comparison.protocol
    versions = protocol["versions"]
    packages = [f"{name} {_or(versions[name])}" for name in ("aaren-rl", "gymnasium", "mujoco") if name in versions]
    environments = _listed(dict.fromkeys(protocol["environments"].values()))
    targets = _listed(f"{_or(map(_exactly, targets))} ({dataset})" for dataset, targets in protocol["targets"].items())
    score = f"Normalised score (0 = random, 100 = expert; reference: {_or(protocol['reference'])})"
    lines = [
        f"{score if comparison.scored else 'Mean return'} of the agent after the last update, by dataset: mean over "
        f"seeds (lowest to highest). {_or(protocol['episodes'])} episodes a run in {environments} "
        f"({_listed(packages)}), acting: {_or(protocol['acting'])}, target return {targets}. Trained on data of the "
        f"source {protocol['source']} for {_amounts(protocol['updates'])} updates, seeds "
        f"{_listed(map(str, protocol['seeds']))}.",
    ]
    if "search" in protocol:
        lines.append(_search_in_words(protocol["search"]))
    compared, left_out = protocol["compared"], protocol["left_out"]
    if compared:
        spread = (
            f"in brackets its 95% interval by a stratified percentile bootstrap of {protocol['resamples']:,} resamples"
            if all(comparison.last.intervals.values())
            else "without an interval, since a dataset has a single seed"
        )
        lines.append(
            f"IQM: interquartile mean over the {len(compared)} runs (dataset and seed) that every agent shown has, "
            f"{spread} (Agarwal et al. 2021, arXiv 2108.13264)."
        )
    elif comparison.scored:
        lines.append("No IQM: the agents shown have no dataset and seed in common.")
    if without := [dataset for dataset in comparison.datasets if dataset not in comparison.scored]:
        lines.append(f"Without a score, for want of reference returns, and not in an IQM: {_listed(without)}.")
    if left_out:
        left = _listed(f"{dataset} seed {seed}" for dataset, seed in left_out)
        lines.append(f"Left out of the IQM, since not every agent shown has finished them: {left}.")
    if comparison.unfinished:
        lines.append(f"No run is finished yet of: {_listed(comparison.unfinished)}.")
    return "\n\n".join(lines)


def _search_in_words(search: dict[str, Any]) -> str:
    chosen = _listed(f"{name} {value} (of {search['space'][name]})" for name, value in search["settings"].items())
    return (
        f"{search['agent']}: {search['from']} with settings that were chosen by search over {search['trials']} trials "
        f"({search['pruned']} pruned, {search['fail']} failed): {chosen}. They had the highest mean score, "
        f"{search['score']:.4g}, in the last evaluation of their training ({search['episodes']} episodes, other "
        f"environment seeds) on {_listed(search['datasets'])}, seeds {_listed(map(str, search['seeds']))}, which are "
        "not reported. No other agent was searched."
    )


def _or(values: Iterable[Any]) -> str:
    return " or ".join(map(str, values))


def _amounts(values: Sequence[int]) -> str:
    """Each of a few numbers, or the least and the greatest of many: runs by wall-clock make as many as they can."""
    return _or(values) if len(values) <= 3 else f"{min(values):,} to {max(values):,}"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(values)


def _exactly(target: Target | None) -> str:
    # Peers that clone, or learn from values, are not asked for a return.
    return "none" if target is None else target if isinstance(target, str) else f"{target:g}"
