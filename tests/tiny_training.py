"""A small training run for test_training.py: imported by the tests, and run as a script to be interrupted."""

import sys
from pathlib import Path

import numpy as np
import torch

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.training.run import Interrupted, Trainer, TrainingConfig

CARD = AgentCard("Hopper-v5", "made-up/tiny-v0", "bundled", (10.0,))


def make_data(seed=0, episodes=12):
    """Episodes whose actions follow from the observation, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.arange(4, 4 + episodes))
    observations = rng.normal(size=(lengths.sum(), 3))
    return Trajectories(
        observations,
        np.tanh(observations[:, :2]),
        rng.normal(size=lengths.sum()),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(episodes, dtype=bool),
        np.ones(episodes, dtype=bool),
    )


def make_trainer(folder, data=None, model_seed=0, shape=None, evaluate=None, **schedule):
    """A trainer of a small model with dropout; the schedule's defaults are small too."""
    data = make_data() if data is None else data
    torch.manual_seed(model_seed)
    scaling = Scaling(*data.observation_statistics(), -np.ones(2), np.ones(2))
    shape = {"blocks": 1, "width": 16, "dropout": 0.2, "layout": "interleaved", **(shape or {})}
    model = DecisionModel(ModelConfig(**shape), scaling)
    small = {"updates": 20, "batch_size": 4, "context": 5, "warmup": 5, "learning_rate": 1e-3, "held_out": 0.2}
    often = {"log_every": 5, "evaluate_every": 10, "checkpoint_every": 5, "average": 0.0}
    return Trainer(model, data, TrainingConfig(**{**small, **often, **schedule}), CARD, Path(folder), evaluate=evaluate)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        make_trainer(sys.argv[1], updates=int(sys.argv[2]), checkpoint_every=20, evaluate_every=60).run(progress=False)
    except Interrupted:
        sys.exit(3)
