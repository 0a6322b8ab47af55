"""Goes on training an agent in its environment: `python scripts/finetune.py runs/hopper/last --steps 100000`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run
from aaren_rl.experiments.finetuning import Options, finetune


@dataclass(frozen=True)
class Arguments:
    """Fine-tune an agent online, from the checkpoint and the data of its run."""

    agent: Path
    """Folder of a run, or of its agent, as runs/<run>/last."""
    options: Options = field(default_factory=Options)


GROUPS = (
    Group("exploration", "Episodes in the environment.", ("steps", "round_episodes", "explore", "noise", "seed")),
    Group("training", "Buffer and updates.", ("buffer", "keep", "round_updates", "learning_rate")),
    Group(
        "evaluation",
        "Episodes before and after, packages to import, and the folder of the result.",
        ("episodes", "out", "imports"),
    ),
)


def main() -> None:
    """Entry point of `aaren-finetune`."""
    run(lambda: _finetune(parse(Arguments, "finetune", GROUPS, ["agent"])))


def _finetune(arguments: Arguments) -> None:
    finetune(arguments.agent, arguments.options)


if __name__ == "__main__":
    main()
