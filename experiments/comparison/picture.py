"""Pictures of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aaren_rl.experiments.comparison import labels
from aaren_rl.experiments.comparison.costs import Cost, Costs
from aaren_rl.experiments.comparison.scores import Aggregates, Comparison
from aaren_rl.figures import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 32.0
"""Diameter of the largest circle, in points."""

MEMORIES = {
    "constant": ("tab:blue", "carries a summary"),
    "window": ("tab:orange", "carries some past steps"),
    "growing": ("tab:red", "carries all past steps (dashed)"),
}
"""Colour and words for the memory of an agent."""


def draw(comparison: Comparison, out: Path) -> Path:
    """Draws interquartile means with their intervals, and beside them the score of every run, into table.png.

    Args:
        comparison: scores on at least one dataset.
        out: folder of the picture.

    Returns:
        The picture's path.
    """
    # Imported where it is used: it takes seconds, which every command line would wait for.
    import matplotlib

    agents, datasets, last = comparison.agents, comparison.scored, comparison.last
    colours = dict(zip(agents, matplotlib.colormaps["tab10"](np.arange(len(agents)) % 10), strict=True))
    # Agents share a dataset's row, the first on top.
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


def draw_costs(comparison: Comparison, costs: Costs, out: Path) -> Path:
    """Draws interquartile means over the speed of training and over the time of a step, into costs.png.

    Areas of circles are in proportion to the square root of the state's bytes, which span orders of magnitude.

    Args:
        comparison: scores with an interquartile mean of each agent.
        costs: costs of its agents.
        out: folder of the picture.

    Returns:
        The picture's path.
    """
    agents, protocol, path = costs.agents, comparison.protocol, out / "costs.png"
    with drawn(path, 13, 5.5 + 0.12 * len(agents)) as figure:
        training, stepping = figure.subplots(1, 2, sharey=True)
        panels = (
            (training, [cost.sequences_per_second.median for cost in agents.values()]),
            (stepping, [cost.milliseconds_per_step.median for cost in agents.values()]),
        )
        for axes, across in panels:
            _draw_circles(axes, comparison.last, agents, across)
        bars = " (bar: its 95% interval)" if all(comparison.last.intervals.values()) else ""
        training.set(xlabel="training sequences per second", ylabel=f"interquartile mean of normalised scores{bars}")
        stepping.set(xlabel="milliseconds per step")
        _draw_legend(figure, agents)
        seeds, updates = (", ".join(map(str, protocol[name])) for name in ("seeds", "updates"))
        figure.suptitle(
            f"data: {', '.join(comparison.datasets)}, source: {protocol['source']}, seeds: {seeds}, updates: {updates}",
            wrap=True,
        )
        # Names are placed around the circles, once the panels have their sizes.
        figure.draw_without_rendering()
        for axes, across in panels:
            _write_names(axes, comparison.last, agents, across)
    return path


def _draw_circles(axes: Axes, scores: Aggregates, agents: dict[str, Cost], across: list[float]) -> None:
    """Draws scores with their intervals over a cost."""
    from matplotlib.colors import to_rgba
    from matplotlib.ticker import LogLocator, NullLocator

    for (agent, cost), diameter, x in zip(agents.items(), _diameters(agents), across, strict=True):
        colour, dashes = MEMORIES[cost.memory][0], "--" if cost.memory == "growing" else "-"
        if interval := scores.intervals[agent]:
            axes.plot([x, x], interval, color=colour, linewidth=1, alpha=0.6)
        style: dict[str, Any] = {"facecolors": to_rgba(colour, 0.35), "edgecolors": colour, "linestyle": dashes}
        axes.scatter(x, scores.iqm[agent], diameter**2, zorder=3, **style)
    # Wide enough for names and for at least one tick.
    axes.set(xscale="log", xlim=(min(across) / 1.6, max(across) * 1.6))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.1)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)


def _draw_legend(figure: Figure, agents: dict[str, Cost]) -> None:
    """Draws the meaning of colours and sizes below the panels."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markeredgecolor": "0.3"}
    memories = {cost.memory for cost in agents.values()}
    entries = [
        Line2D([], [], label=words, markerfacecolor=colour, markersize=9, **style)
        for memory, (colour, words) in MEMORIES.items()
        if memory in memories
    ]
    sizes = [cost.state_bytes for cost in agents.values()]
    # Rounded to one significant digit.
    examples = {float(f"{size:.0e}") for size in np.geomspace(min(sizes), max(sizes), 3)}
    entries += [
        Line2D([], [], label=f"{size:,.0f} bytes", markerfacecolor="none", markersize=_diameter(size, agents), **style)
        for size in sorted(examples)
    ]
    # The largest circle is taller than a line of text.
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, borderpad=1.2)


def _write_names(axes: Axes, scores: Aggregates, agents: dict[str, Cost], across: list[float]) -> None:
    """Writes every agent's name beside its circle, with a line to it."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    notes = [
        axes.annotate(
            agent,
            (x, scores.iqm[agent]),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            zorder=4,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0, "shrinkB": diameter / 2},
        )
        for agent, x, diameter in zip(agents, across, _diameters(agents), strict=True)
    ]
    point = axes.figure.dpi / 72
    centres = axes.transData.transform([note.xy for note in notes])
    radii = np.array(_diameters(agents)) / 2 * point
    sizes = np.array([Text.get_window_extent(note).size for note in notes])
    intervals = [(x, scores.intervals[agent]) for agent, x in zip(agents, across, strict=True)]
    ends = [[(x, interval[0]), (x, interval[1])] for x, interval in intervals if interval]
    bars = axes.transData.transform(np.reshape(ends, (-1, 2))).reshape(-1, 4)
    bars += np.array([-1, 0, 1, 0]) * point
    middles = labels.place(centres, radii, sizes, bars, np.array(axes.bbox.extents))
    nearest = np.clip(centres, middles - sizes / 2, middles + sizes / 2)
    apart = np.linalg.norm(nearest - centres, axis=1) - radii
    for note, offset, gap in zip(notes, (middles - centres) / point, apart / point, strict=True):
        note.set_position(offset)
        note.set_in_layout(False)
        # A name that touches its circle needs no line to it.
        if gap < 4 and note.arrow_patch is not None:
            note.arrow_patch.set_visible(False)


def _diameters(agents: dict[str, Cost]) -> list[float]:
    return [_diameter(cost.state_bytes, agents) for cost in agents.values()]


def _diameter(state_bytes: float, agents: dict[str, Cost]) -> float:
    """Diameter of a state's circle, in points; its area grows with the square root of the bytes."""
    return float(LARGEST * (state_bytes / max(cost.state_bytes for cost in agents.values())) ** 0.25)
