"""Small valid inputs of every file format, which mutations start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import tomli_w
import torch
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.behaviours import ActorBehaviour
from aaren_rl.envs.evaluation import versions
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping.onnx import to_onnx
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.run import Run

ENVIRONMENT = "Pendulum-v1"
"""Environment of all samples: observations of shape (3,), actions of shape (1,)."""

OBSERVATIONS, ACTIONS = Box.unbounded((3,)), Box.bounded([-2.0], [2.0])
RETURNS = (-900.0, -400.0, -200.0)
CARD = AgentCard(EnvironmentSpec(ENVIRONMENT), "stress/pendulum-v0", "arrays", (-200.0, -400.0), data_returns=RETURNS)

COMPARISON = Path("comparison", "hopper-medium", "small", "seed-0")
"""Folder of a run in a comparison."""


def trajectories(seed: int = 0, episodes: int = 3, steps: int = 8) -> Trajectories:
    """Random episodes that fit the environment."""
    rng = np.random.default_rng(seed)
    return Trajectories.from_episodes(
        Episode(
            rng.normal(size=(steps + 1, 3)),
            rng.uniform(-2, 2, (steps, 1)),
            rng.normal(size=steps),
            terminated=number % 2 == 0,
        )
        for number in range(episodes)
    )


def model(seed: int, mixer: str = "aaren", **shape: Any) -> DecisionModel:
    """A small untrained model."""
    torch.manual_seed(seed)
    config = ModelConfig(**{"mixer": mixer, "blocks": 1, "width": 8, "dropout": 0.0, **shape})
    return DecisionModel(config, OBSERVATIONS, ACTIONS, Scaling.of(trajectories(seed)))


def learner(seed: int = 0) -> SingleLearner:
    """A small learner, before its first update."""
    schedule = TrainingConfig(
        updates=4, batch_size=2, context=4, warmup=2, held_out=0.0, log_every=1, checkpoint_every=2, seed=seed
    )
    return SingleLearner(model(seed), trajectories(seed), schedule)


def make_run(folder: Path, seed: int = 0) -> Run:
    """A run of such a learner, with an evaluation that costs nothing."""
    return Run(learner(seed), CARD, folder, evaluate=lambda trained: {"return": float(seed)})


def write_d4rl(folder: Path, seed: int) -> None:
    """A D4RL file, with final observations."""
    data = trajectories(seed, episodes=4 + seed)
    ends = np.zeros(data.steps, np.bool_)
    ends[data.offsets[1:] - 1] = True
    terminals = np.repeat(data.terminated, data.lengths) & ends
    arrays = {
        "observations": data.numbers,
        "actions": data.actions,
        "rewards": data.rewards,
        "terminals": terminals,
        "timeouts": ends & ~terminals,
        "next_observations": np.roll(data.numbers, -1, axis=0),
    }
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip" if seed else None)


def write_minari(folder: Path, seed: int) -> None:
    """A Minari dataset's folder, in the form that this Minari writes."""
    env = gym.make(ENVIRONMENT)
    spec, spaces = env.spec, (env.observation_space, env.action_space)
    env.close()
    storage = MinariStorage.new(folder / "data", *spaces, spec)
    rng = np.random.default_rng(seed)
    steps = 8
    flags = np.arange(steps) == steps - 1
    storage.update_episodes(
        EpisodeBuffer(
            observations=rng.uniform(-1, 1, (steps + 1, 3)).astype(np.float32),
            actions=rng.uniform(-2, 2, (steps, 1)).astype(np.float32),
            rewards=rng.normal(size=steps),
            terminations=flags & False,
            truncations=flags,
            infos={},
        )
        for _ in range(3)
    )
    storage.update_metadata({"dataset_id": f"stress/pendulum-v{seed}", "author": {"stress"}, "minari_version": "0.5.3"})


def write_agent(folder: Path, seed: int) -> None:
    """An agent's folder; the second has another mixer and another layout."""
    made = model(0) if seed == 0 else model(1, "gru", layout="interleaved", reward=True, timesteps="learned")
    DecisionAgent(made, CARD).save(folder / "agent")


def write_export(folder: Path, seed: int) -> None:
    """The folder of an exported agent."""
    to_onnx(model(seed), CARD, folder / "exported")


def write_run(folder: Path, seed: int) -> None:
    """A run's folder with all that training leaves."""
    make_run(folder / "run", seed).run(progress=False)
    config = RunConfig(env=ENVIRONMENT, run=folder / "run", training=TrainingConfig(updates=4, seed=seed))
    run_config.save(config, folder / "run" / CONFIG)


def write_comparison(folder: Path, seed: int) -> None:
    """The file of a comparison, and the result of its only run."""
    settings = {"episodes": 2, "training": {"updates": 4, "warmup": 2}, "model": {"blocks": 1, "width": 8 + seed * 8}}
    table = {
        "datasets": ["hopper-medium"],
        "seeds": [0],
        "settings": settings,
        "agents": {"small": {"acting": "stream"}},
    }
    (folder / "comparison.toml").write_text(tomli_w.dumps(table))
    run = folder / COMPARISON
    run.mkdir(parents=True)
    result = {
        "normalized_score": 10.0 + seed,
        "ci95": [8.0, 12.0],
        "mean": 300.0,
        "std": 10.0,
        "ci95_return": [280.0, 320.0],
        "episodes": 2,
        "seeds": [0, 1],
        "target": 3600.0,
        "environment": "Hopper-v5",
        "environment_kwargs": {},
        "reference": "d4rl",
        "checkpoint": "last",
        "source": "bundled",
        "dataset": "aaren/hopper/medium-v0",
        "updates": 4,
        "mixer": "aaren",
        "parameters": 1_000,
        "acting": "stream",
        "data_sha256": "0" * 64,
        "device": "cpu",
        "training": {"precision": "float32", "compiled": False, "cuda_graph": False, "seed": 0},
        "versions": versions(),
        "returns": [290.0, 310.0],
        "lengths": [100, 110],
        "train_seconds": 1.5,
    }
    (run / "result.json").write_text(json.dumps(result, indent=2))


def write_behaviour(folder: Path, seed: int) -> None:
    """A behaviour's snapshot."""
    rng = np.random.default_rng(seed)
    sizes = ((3, 8), (8, 8), (8, 1), (8, 1))
    layers = [(rng.normal(size=size).astype(np.float32), np.zeros(size[1], np.float32)) for size in sizes]
    ActorBehaviour(layers).save(folder / "behaviour.npz")


def write_words(folder: Path, seed: int) -> None:
    """The words of a command line, one a line."""
    words = {
        0: ["--env", "hopper-medium", "--updates", "10", "--width", "16", "--mixer", "local:60", "--device", "cpu"],
        1: ["--env=walker2d-expert", "--context", "10+20", "--layout", "interleaved", "--learning-rate", "1e-3"],
    }
    (folder / "words.txt").write_text("\n".join(words[seed]))
