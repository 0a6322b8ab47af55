"""Trains an agent: `python scripts/train.py --env hopper-medium`."""

from __future__ import annotations

from aaren_rl.experiments import config
from aaren_rl.experiments.console import run
from aaren_rl.experiments.train import train


def main() -> None:
    """Entry point of `aaren-train`."""
    run(lambda: train(config.parse()), together=True)


if __name__ == "__main__":
    main()
