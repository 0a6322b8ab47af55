"""The setting of all comparisons: one size of model, and made-up data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.training.config import TrainingConfig

OBSERVATION_SIZE, ACTION_SIZE = 11, 3
"""Sizes of hopper."""

MODEL = ModelConfig(blocks=3, width=128, heads=1, dropout=0.1, layout="interleaved")
"""The Decision Transformer's size and tokens (Chen et al. 2021, appendix A)."""

TRAINING = TrainingConfig(average=0.0, batch_size=64, context=20, learning_rate=1e-4, weight_decay=1e-4, clip=0.25)
"""Its training settings."""

CONTEXT = 20
"""Steps in a segment, and in the window that the peers act from."""

EPISODE = 1_000
"""Steps of a made-up episode, and of the longest that the peers can embed."""


def make_model(**changes: str) -> DecisionModel:
    """An untrained model of the common size, with another layout or mixer where one is named."""
    scaling = Scaling(np.zeros(OBSERVATION_SIZE, np.float32), np.ones(OBSERVATION_SIZE, np.float32))
    bound = np.ones(ACTION_SIZE)
    spaces = Box.unbounded((OBSERVATION_SIZE,)), Box.bounded(-bound, bound)
    return DecisionModel(replace(MODEL, **changes), *spaces, scaling)  # type: ignore[arg-type]


def make_card() -> AgentCard:
    """Card of an agent that acts in hopper."""
    return AgentCard(EnvironmentSpec("Hopper-v5"), "made-up", "bundled", (3_600.0,))


def make_trajectories(steps: int, episode: int | None = None) -> Trajectories:
    """Whole episodes of noise, of `EPISODE` or another number of steps each."""
    rng = np.random.default_rng(0)
    ends = np.arange(0, steps + 1, episode or EPISODE)
    steps = int(ends[-1])
    none = np.zeros(len(ends) - 1, dtype=np.bool_)
    return Trajectories(
        rng.standard_normal((steps, OBSERVATION_SIZE), dtype=np.float32),
        rng.uniform(-1, 1, (steps, ACTION_SIZE)).astype(np.float32),
        rng.uniform(0, 4, steps).astype(np.float32),
        ends,
        none,
        ~none,
    )
