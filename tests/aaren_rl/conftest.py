import numpy as np
import pytest
import torch

from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.model import DecisionModel, ModelConfig, Scaling


@pytest.fixture
def loud():
    """Gives a module weights so large that every part of it shows in its output."""

    def change(module, seed=0, std=0.3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return module

    return change


@pytest.fixture
def observation_space():
    return Box.unbounded((4,))


@pytest.fixture
def action_space():
    """Bounds of which one pair is not symmetric."""
    return Box.bounded([-1.0, 0.0], [1.0, 5.0])


@pytest.fixture
def scaling():
    return Scaling(
        np.array([1.0, -2.0, 0.5, 30.0], dtype=np.float32),
        np.array([0.5, 2.0, 1.0, 10.0], dtype=np.float32),
        return_scale=100.0,
        reward_scale=0.5,
    )


@pytest.fixture
def make_model(loud, observation_space, action_space, scaling):
    """A small loud model in evaluation mode."""

    def make(seed=0, actions=action_space, **changes):
        shape = {"blocks": 2, "width": 16, "heads": 2, "dropout": 0.0, "layout": "interleaved", **changes}
        model = loud(DecisionModel(ModelConfig(**shape), observation_space, actions, scaling), seed).eval()
        if model.condition is not None:
            # Otherwise its many units saturate the actions.
            model.condition.modulate.weight.data.mul_(0.1)
            model.condition.modulate.bias.data.mul_(0.1)
        return model

    return make


@pytest.fixture
def card():
    return AgentCard(EnvironmentSpec("Hopper-v5", {"exclude": True}), "made-up/tiny-v0", "bundled", (100.0, 50.0), 7)


@pytest.fixture
def coded():
    """Trajectories whose observation says which episode and step it is, and whose action and reward follow from it.

    Every other episode ends in a final state, and the others are cut off.
    """

    def make(lengths):
        lengths = np.asarray(lengths)
        numbers = np.arange(len(lengths))
        episode = np.repeat(numbers, lengths)
        step = np.concatenate([np.arange(length) for length in lengths])
        return Trajectories(
            np.stack([episode, step], 1),
            (1000 * episode + step + 1)[:, None],
            np.ones(len(step)),
            np.concatenate([[0], np.cumsum(lengths)]),
            numbers % 2 == 1,
            numbers % 2 == 0,
            np.stack([numbers, lengths], 1),
        )

    return make
