"""Exports an agent for machines without torch: `python scripts/export.py runs/hopper/last --to c`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aaren_rl.envs.environments import import_packages
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import exporting
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import describe, run, say
from aaren_rl.stepping.exported import CARD


@dataclass(frozen=True)
class Arguments:
    """Export an agent as a single step: a graph for onnxruntime, C, or a program for torch."""

    agent: Path
    """Folder of an agent, as runs/<run>/last."""
    to: exporting.Form = "onnx"
    """Form of the step: agent.onnx, agent.h and agent.c, which need libm alone, or agent.pt2 of torch.export."""
    out: Path | None = None
    """Folder to write; by default the agent's, with the form added to its name, as -onnx or -c-int8."""
    acting: str | None = None
    """Way of acting, stream or reset:STEPS; by default the agent's."""
    int8: bool = False
    """Store weights in 8 bits, for a third of the size and slightly other actions."""
    episodes: int | None = None
    """Episodes that compare the export with the agent; by default 100 with --int8, else none."""

    imports: tuple[str, ...] = ()
    """Packages that register environments, to be imported first."""

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 0:
            raise InvalidInput(f"episodes is {self.episodes}; expected at least 0")


GROUPS = (
    Group("step", "Form of the step and its folder.", ("to", "out", "acting", "int8")),
    Group("comparison", "Evaluation of the agent and of its export.", ("episodes", "imports")),
)


def main() -> None:
    """Entry point of `aaren-export`."""
    run(lambda: export(parse(Arguments, "export", GROUPS, ["agent"])))


def export(arguments: Arguments) -> exporting.Export:
    """Exports, compares, and prints what was written and what changed."""
    import_packages(arguments.imports)
    exported = exporting.export(arguments.agent, arguments.out, arguments.acting, arguments.int8, arguments.to)
    described = exported.described
    size = f"{exported.step.stat().st_size / 2**10:.0f} KiB{', int8' if arguments.int8 else ''}"
    within = described["largest_difference"]
    checked = "not checked: this machine has no C compiler"
    if within is not None:
        checked = f"within {within:.1e} of torch's, as a share of their half range"
    say(f"{'code' if arguments.to == 'c' else 'graph'}:".ljust(12) + f"{exported.step}, {size}")
    if arguments.to == "c":
        sizes = ", ".join(f"{described[f'{name}_bytes']:,} bytes of {name}" for name in ("weight", "state", "scratch"))
        say(f"memory:     {sizes}")
    say(f"card:       {exported.folder / CARD}\nactions:    {checked}")
    episodes = arguments.episodes if arguments.episodes is not None else 100 if arguments.int8 else 0
    if episodes and within is None:
        say(f"not evaluated: {episodes} episodes need the compiler too")
    elif episodes:
        _compare(exported, episodes)
    return exported


def _compare(exported: exporting.Export, episodes: int) -> None:
    results = exporting.compare(exported, episodes)
    for name, figures in results.items():
        say(describe(name, figures))
    say(f"change:     return {results['exported']['mean'] - results['torch']['mean']:+.1f}")


if __name__ == "__main__":
    main()
