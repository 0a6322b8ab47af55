"""Trains a behaviour with soft actor-critic: `python scripts/train_behaviour.py --env-id Ant-v5 --out ant`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aaren_rl.experiments import behaviour_training
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say


@dataclass(frozen=True)
class Arguments:
    """Train Stable-Baselines3's SAC and save snapshots of its actor in the form of the bundled behaviours."""

    env_id: str
    """Gymnasium id of an environment with actions in [-1, 1]."""
    out: Path
    """Folder to write <steps>.npz and log.json into."""
    steps: int = 1_000_000
    """Environment steps to train for."""
    snapshot_every: int = 10_000
    """Steps between two snapshots."""
    episodes: int = 5
    """Episodes behind each row of log.json, with the mean action."""
    seed: int = 0
    """Seed of the weights, the environment and the exploration."""


GROUPS = (
    Group("training", "Environment, length and seed.", ("env_id", "steps", "seed")),
    Group("snapshot", "Files to write, and when.", ("out", "snapshot_every", "episodes")),
)


def main() -> None:
    """Entry point of `aaren-train-behaviour`."""
    run(lambda: train_behaviour(parse(Arguments, "train_behaviour", GROUPS)))


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
