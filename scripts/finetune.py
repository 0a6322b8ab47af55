"""Goes on training an agent in its environment: `python scripts/finetune.py runs/hopper/last --steps 100000`."""

from __future__ import annotations

from aaren_rl.experiments.console import run
from aaren_rl.experiments.finetuning import finetune
from aaren_rl.experiments.finetuning_options import parse


def main() -> None:
    """Entry point of `aaren-finetune`."""
    run(_finetune)


def _finetune() -> None:
    arguments = parse()
    finetune(arguments.agent, arguments.options)


if __name__ == "__main__":
    main()
