"""Exports an agent as a single step, or puts it on the Hub: `python scripts/export.py runs/hopper/last --to c`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aaren_rl.envs.environments import import_packages
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import exporting
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import describe, run, say


@dataclass(frozen=True)
class Arguments:
    """Export an agent as a single step (a graph for onnxruntime, C, a program for torch), or put it on the Hub."""

    agent: str
    """Folder of an agent, as runs/<run>/last; or, but with --to hub, its name on the Hugging Face Hub, as user/repo."""
    to: exporting.Form | Literal["hub"] = "onnx"
    """Form of the step: agent.onnx, agent.h and agent.c, which need libm alone, or agent.pt2 of torch.export; hub puts
    the agent itself on the Hugging Face Hub, with a model card."""
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
    hub: exporting.HubOptions = field(default_factory=exporting.HubOptions)

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 0:
            raise InvalidInput(f"episodes is {self.episodes}; expected at least 0")
        if (self.to == "hub") == (self.hub.repo is None) or (self.to != "hub" and self.hub != exporting.HubOptions()):
            raise InvalidInput(
                "--to hub needs --repo user/repo; --repo, --licence and --private go with --to hub alone"
            )
        if self.to == "hub" and (self.out, self.acting, self.int8, self.episodes) != (None, None, False, None):
            raise InvalidInput("--out, --acting, --int8 and --episodes are for a step; leave them out with --to hub")


GROUPS = (
    Group("step", "Form of the step and its folder.", ("to", "out", "acting", "int8")),
    Group("comparison", "Evaluation of the agent and of its export.", ("episodes", "imports")),
    Group("hub", "Place on the Hugging Face Hub, with --to hub.", ("repo", "licence", "private")),
)


def main() -> None:
    """Entry point of `aaren-export`."""
    run(lambda: export(parse(Arguments, "export", GROUPS, ["agent"])))


def export(arguments: Arguments) -> exporting.Export | None:
    """Exports, compares, and prints what was written and what changed; None for an agent that was put on the Hub."""
    if arguments.to == "hub":
        say(arguments.hub.push(arguments.agent))
        return None
    import_packages(arguments.imports)
    exported = exporting.export(arguments.agent, arguments.out, arguments.acting, arguments.int8, arguments.to)
    say(str(exported))
    episodes = arguments.episodes if arguments.episodes is not None else 100 if arguments.int8 else 0
    if episodes and exported.described["largest_difference"] is None:
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
