"""Training of a behaviour with soft actor-critic."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.envs.behaviours import ActorBehaviour
from aaren_rl.envs.dataset import Say
from aaren_rl.envs.environments import describe, make
from aaren_rl.errors import InvalidInput


def train(
    env_id: str, out: Path, steps: int, snapshot_every: int, episodes: int, seed: int, say: Say
) -> list[dict[str, float]]:
    """Trains Stable-Baselines3's SAC and saves snapshots of its actor in the form of the bundled behaviours.

    Args:
        env_id: Gymnasium id with actions in [-1, 1].
        out: folder of <steps>.npz and log.json.
        steps: environment steps.
        snapshot_every: steps between two snapshots.
        episodes: episodes behind each row of the log, with the mean action.
        seed: seed of the weights, the environment and the exploration.
        say: receives a line on every snapshot.

    Returns:
        Rows of log.json, one a snapshot: steps, mean and standard deviation of the return, mean length, seconds.

    Raises:
        InvalidInput: Stable-Baselines3 is missing, the folder is taken, or the actions do not lie in [-1, 1].
    """
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        raise InvalidInput(
            "training a behaviour needs Stable-Baselines3; in a clone: .venv/bin/pip install '.[behaviours]'"
        ) from error
    if snapshot_every < 1 or steps < snapshot_every:
        raise InvalidInput(f"{steps} steps with a snapshot every {snapshot_every}; none would be saved")
    if (out / "log.json").exists():
        raise InvalidInput(f"{out} holds a training already; pass another --out")
    spec = EnvironmentSpec(env_id)
    space = describe(spec).action_space
    if not isinstance(space, Box) or not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
        raise InvalidInput(f"{env_id} has actions {space}; snapshots are of actors that act within [-1, 1]")
    env, judge = make(spec), make(spec)
    out.mkdir(parents=True, exist_ok=True)
    model = SAC("MlpPolicy", env, seed=seed)
    log: list[dict[str, float]] = []
    began = time.perf_counter()
    for done in range(snapshot_every, steps + 1, snapshot_every):
        model.learn(snapshot_every, reset_num_timesteps=False)
        snapshot = out / f"{done:08d}.npz"
        to_behaviour(model).save(snapshot)
        row = {"t": done, **_score(model, judge, episodes)}
        log.append({**row, "sec": time.perf_counter() - began})
        (out / "log.json").write_text(json.dumps(log, indent=0) + "\n", "utf-8")
        say(f"{done} steps: return {row['ret']:.0f} +- {row['std']:.0f}, {snapshot}")
    return log


def _score(model: Any, env: gym.Env[Any, Any], episodes: int) -> dict[str, float]:
    from stable_baselines3.common.evaluation import evaluate_policy

    returns, lengths = evaluate_policy(model, env, n_eval_episodes=episodes, return_episode_rewards=True, warn=False)
    return {"ret": float(np.mean(returns)), "std": float(np.std(returns)), "len": float(np.mean(lengths))}


def to_behaviour(model: Any) -> ActorBehaviour:
    """The actor of a Stable-Baselines3 SAC model as a behaviour."""
    actor = model.policy.actor
    linears = [actor.latent_pi[0], actor.latent_pi[2], actor.mu, actor.log_std]
    return ActorBehaviour(
        [(layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy()) for layer in linears]
    )
