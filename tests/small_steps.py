"""Small models of odd action bounds, and what their steps do in torch."""

import numpy as np
import torch

from aaren_rl.data.spaces import Box
from aaren_rl.model import DecisionModel, ModelConfig, Scaling

SCALING = Scaling(
    np.array([1.0, -2.0, 0.5, 30.0], dtype=np.float32),
    np.array([0.5, 2.0, 1.0, 10.0], dtype=np.float32),
    return_scale=100.0,
)
SPACES = Box.unbounded((4,)), Box.bounded([-1.0, 0.0], [1.0, 5.0])


def build(**shape):
    """A model of odd action bounds in which every part shows."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DecisionModel(ModelConfig(**{"width": 16, "blocks": 2, "dropout": 0.0, **shape}), *SPACES, SCALING)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def play_in_torch(step, rows, target):
    state, actions = step.initial_state(torch.tensor([target])), []
    with torch.no_grad():
        for row in torch.from_numpy(rows):
            action, state = step(row[None, 1:], row[:1], state)
            actions.append(action[0].numpy())
    return np.stack(actions)


def rows_of(steps, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(SCALING.observation_mean, SCALING.observation_std, (steps, 4))
    return np.column_stack([rng.random(steps) * (np.arange(steps) > 0), rows]).astype(np.float32)
