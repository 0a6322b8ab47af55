"""Trains a behaviour with soft actor-critic: `python scripts/train_behaviour.py --env-id Ant-v5 --out ant`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from aaren_rl.data.spaces import space_of
from aaren_rl.envs.behaviours import ActorBehaviour
from aaren_rl.envs.environments import EnvironmentSpec, make
from aaren_rl.errors import InvalidInput
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
    """Trains as the arguments say.

    Raises:
        InvalidInput: Stable-Baselines3 is missing, the folder is taken, or the actions do not lie in [-1, 1].
    """
    try:
        from stable_baselines3 import SAC
        from stable_baselines3.common.evaluation import evaluate_policy
    except ImportError as error:
        raise InvalidInput(
            "training a behaviour needs Stable-Baselines3; in a clone: .venv/bin/pip install '.[behaviours]'"
        ) from error
    if arguments.snapshot_every < 1 or arguments.steps < arguments.snapshot_every:
        raise InvalidInput(
            f"{arguments.steps} steps with a snapshot every {arguments.snapshot_every}; none would be saved"
        )
    if (arguments.out / "log.json").exists():
        raise InvalidInput(f"{arguments.out} holds a training already; pass another --out")
    spec = EnvironmentSpec(arguments.env_id)
    env, judge = make(spec), make(spec)
    space = space_of(env.action_space)
    if not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
        raise InvalidInput(f"{arguments.env_id} has actions {space}; snapshots are of actors that act within [-1, 1]")
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = SAC("MlpPolicy", env, seed=arguments.seed)
    log: list[dict[str, float]] = []
    began = time.perf_counter()
    for steps in range(arguments.snapshot_every, arguments.steps + 1, arguments.snapshot_every):
        model.learn(arguments.snapshot_every, reset_num_timesteps=False)
        to_behaviour(model).save(arguments.out / f"{steps:08d}.npz")
        returns, lengths = evaluate_policy(
            model, judge, n_eval_episodes=arguments.episodes, return_episode_rewards=True, warn=False
        )
        row = {
            "t": steps,
            "ret": float(np.mean(returns)),
            "std": float(np.std(returns)),
            "len": float(np.mean(lengths)),
        }
        log.append({**row, "sec": time.perf_counter() - began})
        (arguments.out / "log.json").write_text(json.dumps(log, indent=0) + "\n", "utf-8")
        say(f"{steps} steps: return {row['ret']:.0f} +- {row['std']:.0f}, {arguments.out / f'{steps:08d}.npz'}")


def to_behaviour(model: Any) -> ActorBehaviour:
    """The actor of a Stable-Baselines3 SAC model as a behaviour."""
    actor = model.policy.actor
    linears = [actor.latent_pi[0], actor.latent_pi[2], actor.mu, actor.log_std]
    return ActorBehaviour(
        [(layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy()) for layer in linears]
    )


if __name__ == "__main__":
    main()
