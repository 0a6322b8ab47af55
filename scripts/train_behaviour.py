"""Trains a behaviour with soft actor-critic: `python scripts/train_behaviour.py --env-id Ant-v5 --out ant`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from aaren_rl.experiments import behaviour_training
from aaren_rl.experiments.console import run, say


@dataclass(frozen=True)
class Arguments:
    """Train Stable-Baselines3's SAC and save snapshots of its actor in the form of the bundled behaviours."""

    env_id: str
    """Gymnasium id with continuous actions."""
    out: Path
    """Folder for <steps>.npz and log.json."""
    steps: int = 1_000_000
    """Environment steps."""
    snapshot_every: int = 10_000
    """Steps between two snapshots."""
    episodes: int = 5
    """Episodes, with the mean action, that log.json averages at each snapshot."""
    seed: int = 0
    """Of the weights, the environment and the exploration."""


def main() -> None:
    """Entry point of `aaren-train-behaviour`."""
    run(lambda: train_behaviour(tyro.cli(Arguments, prog="train_behaviour")))


def train_behaviour(arguments: Arguments) -> None:
    """Trains, and prints a line on every snapshot."""
    behaviour_training.train(
        arguments.env_id,
        arguments.out,
        arguments.steps,
        arguments.snapshot_every,
        arguments.episodes,
        arguments.seed,
        say,
    )


if __name__ == "__main__":
    main()
