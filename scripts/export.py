"""Exports an agent for machines without torch: `python scripts/export.py runs/hopper/last --to onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aaren_rl.envs.environments import import_packages
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import exporting
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import describe, run, say
from aaren_rl.stepping.onnx import CARD


@dataclass(frozen=True)
class Arguments:
    """Export an agent as one graph of a single step."""

    agent: Path
    """Folder of an agent, as runs/<run>/last."""
    to: Literal["onnx"] = "onnx"
    """Format of the graph."""
    out: Path | None = None
    """Folder to write; by default the agent's, with -onnx or -onnx-int8 added to its name."""
    acting: str | None = None
    """Way of acting, stream or reset:STEPS; by default the agent's."""
    int8: bool = False
    """Store the perceptrons' weights in 8 bits, for a third of the size and slightly other actions."""
    episodes: int | None = None
    """Episodes that compare the export with the agent; by default 100 with --int8, else none."""

    imports: tuple[str, ...] = ()
    """Packages that register environments, to be imported first."""

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 0:
            raise InvalidInput(f"episodes is {self.episodes}; expected at least 0")


GROUPS = (
    Group("graph", "Form of the graph and its folder.", ("to", "out", "acting", "int8")),
    Group("comparison", "Evaluation of the agent and of its export.", ("episodes", "imports")),
)


def main() -> None:
    """Entry point of `aaren-export`."""
    run(lambda: export(parse(Arguments, "export", GROUPS, ["agent"])))


def export(arguments: Arguments) -> exporting.Export:
    """Exports, compares, and prints what was written and what changed."""
    import_packages(arguments.imports)
    exported = exporting.export(arguments.agent, arguments.out, arguments.acting, arguments.int8)
    say(
        f"graph:      {exported.graph}, {exported.graph.stat().st_size / 2**10:.0f} KiB"
        f"{', int8' if arguments.int8 else ''}\n"
        f"card:       {exported.folder / CARD}\n"
        f"actions:    within {exported.described['largest_difference']:.1e} of torch's, as a share of their half range"
    )
    episodes = arguments.episodes if arguments.episodes is not None else 100 if arguments.int8 else 0
    if episodes:
        _compare(exported, episodes)
    return exported


def _compare(exported: exporting.Export, episodes: int) -> None:
    results = exporting.compare(exported, episodes)
    for name, figures in results.items():
        say(describe(name, figures))
    say(f"change:     return {results['exported']['mean'] - results['torch']['mean']:+.1f}")


if __name__ == "__main__":
    main()
