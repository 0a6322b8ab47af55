"""The tables of the memory probes, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aaren_rl.experiments.comparison.table import grid
from aaren_rl.experiments.memory import contamination

Row = dict[str, Any]
"""What was measured of one run: see `aaren_rl.experiments.memory.probes`."""


def to_markdown(rows: Sequence[Row], episodes: int, updates: int) -> str:
    """Accuracy by task, mixer and length, the contamination, and how to read them."""
    words = (
        f"Accuracy of the answers that count, after {updates:,} updates: mean over seeds (lowest to highest); of a "
        f"single seed with its 95% interval. {episodes} episodes of each agent at each length. Lengths are times that "
        "of the training episodes, which stands behind the task."
    )
    parts = [_accuracies(rows), words]
    if any(row["contamination"] for row in rows):
        lengths = {row["contamination"]["length"] for row in rows if row["contamination"]}
        parts += [
            _contaminations(rows),
            f"Contamination: one foreign observation at step {contamination.STEP} of episodes of length "
            f"{', '.join(map(str, sorted(lengths)))}, some times the training length. Columns are steps since it. "
            "Entries are shares of changed actions, in the T-maze mean absolute differences of the action; mean over "
            "seeds (lowest to highest). In recall the foreign observation is another symbol, which makes one answer "
            "wrong.",
        ]
    return "\n\n".join(parts) + "\n"


def _accuracies(rows: Sequence[Row]) -> str:
    # The task with the most lengths has those of the others too.
    longest = max((row["lengths"] for row in rows), key=len)
    lines = []
    for task, mixer, seeds in _groups(rows):
        first = seeds[0]
        points = [[row["points"].get(str(length)) for row in seeds] for length in first["lengths"]]
        cells = [_accuracy(point) for point in points] + ["-"] * (len(longest) - len(points))
        lines.append([f"{task} ({first['lengths'][0]} steps, chance {first['chance']:g})", mixer, *cells])
    times = [f"{length // longest[0]}x" for length in longest]
    return grid(["task", "mixer", *times], lines, 2)


def _contaminations(rows: Sequence[Row]) -> str:
    lines = []
    for task, mixer, seeds in _groups([row for row in rows if row["contamination"]]):
        found = [row["contamination"] for row in seeds]
        cells = [_spread([one["deviation"][str(age)] for one in found], "{:.2g}".format) for age in contamination.AGES]
        cells += [_spread([one[name] for one in found]) for name in ("accuracy", "disturbed_accuracy")]
        lines.append([task, mixer, *cells])
    return grid(["task", "mixer", *map(str, contamination.AGES), "accuracy", "accuracy, disturbed"], lines, 2)


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Rows of the same task and mixer, task by task."""
    tasks, mixers = (list(dict.fromkeys(row[name] for row in rows)) for name in ("task", "mixer"))
    for task in tasks:
        for mixer in mixers:
            if seeds := [row for row in rows if (row["task"], row["mixer"]) == (task, mixer)]:
                yield task, mixer, seeds


def _accuracy(points: Sequence[Any]) -> str:
    if None in points:
        return "-"
    if len(points) == 1 and points[0]["ci95"] is not None:
        low, high = points[0]["ci95"]
        return f"{_share(points[0]['accuracy'])} [{_share(low)}, {_share(high)}]"
    return _spread([point["accuracy"] for point in points])


def _spread(values: Sequence[float], written: Callable[[float], str] | None = None) -> str:
    """The mean, and the lowest and the highest of several values."""
    written = written or _share
    mean = written(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({written(min(values))} to {written(max(values))})"


def _share(value: float) -> str:
    """Two digits, and more where they would make a perfect share of one that is not."""
    rounded = f"{value:.2f}"
    return rounded if rounded != "1.00" or value == 1 else f"{math.floor(value * 10_000) / 10_000:.4f}"
