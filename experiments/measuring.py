"""Measurements of time: alternating rounds, rows of a table, JSON, plots."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch

from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.console import say
from aaren_rl.figures import drawn
from aaren_rl.folders import replace_file

ROUNDS = 7
"""Rounds of a comparison; every round plays each side once and gives one ratio."""

Side: TypeAlias = Callable[[], float]
"""Plays one round of one side of a comparison, and returns seconds per call."""

SCALES = {"s": 1.0, "ms": 1e3, "us": 1e6}
PACKAGES = ("aaren-rl", "torch", "numpy", "gymnasium", "mujoco", "transformers", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: subject of the measurement.
        value: median over the rounds; of our side if sides are compared.
        unit: unit of the value.
        ratio: median of the ratios of all rounds; None without a comparison.
        spread: lowest and highest of these ratios.
        ratio_of: numerator and denominator in words.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    ratio_of: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines on logarithmic axes: points (x, y) by the name of the line."""

    name: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass
class Report:
    """Rows of a measurement. Each is printed at once, since the whole takes minutes."""

    rows: list[Row] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Adds a row and prints it."""
        self.rows.append(row)
        say(table_line(row))

    def leave_out(self, name: str, reason: str) -> None:
        """Adds a row that cannot be measured here, with the reason, and prints it."""
        self.not_measured[name] = reason
        say(_line(name, "not measured", "", reason))

    def write_json(self, path: Path, about: Mapping[str, Any]) -> None:
        """Writes the machine, the rows, and the rows that are left out."""
        content = {
            "machine": dict(about),
            "rows": [
                {"name": row.name, "value": row.value, "unit": row.unit, "ratio": row.ratio}
                | {"spread": row.spread, "ratio_of": row.ratio_of}
                for row in self.rows
            ],
            "not_measured": [{"name": name, "reason": reason} for name, reason in self.not_measured.items()],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content, indent=2) + "\n")


def timed(work: Callable[[], object], calls: int = 1) -> Side:
    """A side whose round calls `work` a number of times, by the wall clock."""

    def play() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) / calls

    return play


def alternate(sides: Mapping[str, Side], rounds: int | None = None) -> dict[str, list[float]]:
    """Plays the sides in turn, A B A B. Other load on the machine then falls on all of them.

    Args:
        sides: sides by name; each is played once beforehand, to warm up.
        rounds: number of rounds; None for `ROUNDS`.

    Returns:
        Seconds per call of every round, by side.
    """
    for play in sides.values():
        play()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds or ROUNDS):
        for name, play in sides.items():
            taken[name].append(play())
    return taken


def compare(name: str, ours: Sequence[float], over: Sequence[float], under: Sequence[float], of: str, unit: str) -> Row:
    """Row of a comparison of sides that were played in turn.

    Args:
        name: name of the row.
        ours: seconds per round; their median is the value.
        over: numerators of the ratios, in seconds per round.
        under: denominators of the ratios, in seconds per round.
        of: numerator and denominator in words.
        unit: unit of the value, one of `SCALES`.
    """
    ratios = [above / below for above, below in zip(over, under, strict=True)]
    value = statistics.median(ours) * SCALES[unit]
    return Row(name, value, unit, statistics.median(ratios), (min(ratios), max(ratios)), of)


def require(modules: Iterable[str]) -> None:
    """Checks that the modules of a comparison are installed.

    Raises:
        InvalidInput: a module is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"this benchmark compares with {', '.join(missing)}, not installed here; "
            "in a clone: .venv/bin/pip install '.[bench]'"
        )


def machine() -> dict[str, Any]:
    """Description of this machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def table_head() -> str:
    """The first two lines of the Markdown table."""
    return _line("measurement", "value", "ratio (lowest to highest)", "ratio of") + f"\n|{'|'.join(['---'] * 4)}|"


def table_line(row: Row) -> str:
    """A row as a line of the Markdown table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    ratio += "" if row.spread is None else " ({:.3g} to {:.3g})".format(*row.spread)
    return _line(row.name, f"{_rounded(row.value)} {row.unit}", ratio, row.ratio_of)


def table(rows: Iterable[Row]) -> str:
    """All rows as a Markdown table."""
    return "\n".join([table_head(), *map(table_line, rows)])


def plot(report: Report, folder: Path) -> list[Path]:
    """Draws every chart, and the ratios to the peers as bars, as PNG files.

    Returns:
        The files.
    """
    made: list[Path] = []
    for chart in report.charts:
        made.append(folder / f"{chart.name}.png")
        with drawn(made[-1], 6, 4) as figure:
            axes = figure.subplots()
            for name, points in chart.lines.items():
                axes.plot(*zip(*points, strict=True), marker="o", label=name)
            axes.set(xlabel=chart.x_label, ylabel=chart.y_label, xscale="log", yscale="log")
            axes.legend(frameon=False)
    faster = [row for row in report.rows if row.ratio_of.endswith("/ ours")]
    if faster:
        made.append(folder / "ratios.png")
        with drawn(made[-1], 7, 1.2 + 0.35 * len(faster)) as figure:
            axes = figure.subplots()
            ratios = [row.ratio or 0.0 for row in faster]
            spreads = [row.spread or (0.0, 0.0) for row in faster]
            below = [ratio - low for ratio, (low, _) in zip(ratios, spreads, strict=True)]
            above = [high - ratio for ratio, (_, high) in zip(ratios, spreads, strict=True)]
            bars = axes.barh([row.name for row in faster], ratios, xerr=(below, above))
            axes.bar_label(bars, [f"{ratio:.2g}x" for ratio in ratios], padding=6)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.invert_yaxis()
            axes.set(xscale="log", xlabel="times faster (line: the lowest and the highest round)")
    return made


def _line(name: str, value: str, ratio: str, of: str) -> str:
    return f"| {name:<44} | {value:>14} | {ratio:<25} | {of} |"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
