"""Draws a comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aaren_rl.figures import drawn
from aaren_rl.scripts.comparison.table import Comparison


def draw(comparison: Comparison, out: Path) -> Path:
    """Draws interquartile means with their intervals, and beside them every run, into table.png.

    Returns:
        The picture's path.
    """
    # Imported where it is used: it takes seconds, which every command line would wait for.
    import matplotlib

    agents, datasets, last = comparison.agents, comparison.datasets, comparison.last
    colours = dict(zip(agents, matplotlib.colormaps["tab10"](np.arange(len(agents)) % 10), strict=True))
    # Agents lie side by side in a dataset's row, the first on top.
    offsets = dict(zip(agents, np.linspace(-0.3, 0.3, len(agents)) if len(agents) > 1 else [0.0], strict=True))
    height = 1.4 + max(0.35 * len(agents), 0.22 * len(agents) * len(datasets), 0.35 * len(datasets))
    path = out / "table.png"
    with drawn(path, 9, height) as figure:
        means, runs = figure.subplots(1, 2)
        for row, agent in enumerate(agents):
            style = {"marker": "o", "color": colours[agent]}
            if agent in last.iqm:
                means.plot(last.iqm[agent], row, **style)
            if interval := last.intervals.get(agent):
                means.plot(interval, [row, row], color=colours[agent], linewidth=2)
            for line, dataset in enumerate(datasets):
                scores = list(comparison.scores(agent, dataset).values())
                runs.plot(scores, [line + offsets[agent]] * len(scores), linestyle="", alpha=0.7, **style)
        means.set(xlabel="interquartile mean of normalised scores", yticks=range(len(agents)), yticklabels=agents)
        runs.set(xlabel="normalised score, one dot a seed", yticks=range(len(datasets)), yticklabels=datasets)
        for axes, rows in ((means, agents), (runs, datasets)):
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="x", color="0.9")
            axes.set_axisbelow(True)
        seeds = ", ".join(map(str, comparison.seeds))
        figure.suptitle(f"data: {comparison.protocol['source']}, seeds: {seeds}")
    return path
