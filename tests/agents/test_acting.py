"""Which library an agent steps its model with; how it acts is in test_decision_agent.py."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent, decision_agent
from aaren_rl.agents.acting import Rows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.mixers import Aaren, Mixer
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping.numpy_step import NumpyStep


def make_agent(seed=0, std=0.4, **shape):
    env = gym.make("Hopper-v5")
    low, high = env.action_space.low, env.action_space.high
    env.close()
    scaling = Scaling(np.zeros(11, np.float32), np.ones(11, np.float32), low, high, return_scale=10.0)
    model = DecisionModel(
        ModelConfig(**{"blocks": 1, "width": 16, "dropout": 0.0, "layout": "interleaved", **shape}), scaling
    )
    shake(model, seed, std)
    return DecisionAgent(model, AgentCard("Hopper-v5", "untrained", "bundled", (30.0,)))


def shake(model, seed, std=0.4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * std)


def library(agent):
    stepping = agent._stepping
    return "numpy" if isinstance(stepping, Rows) and isinstance(stepping.function, NumpyStep) else "torch"


def drive(agent, rows, steps=40, seed=0):
    """Actions over made-up observations and rewards, with an end in each row here and there."""
    rng = np.random.default_rng(seed)
    agent.reset(np.linspace(10, 30, rows), rows, gym.vector.AutoresetMode.SAME_STEP)
    actions = []
    for t in range(steps):
        ended = rng.random(rows) < 0.1
        reward = rng.normal(size=rows)
        actions.append(agent.act(rng.normal(size=(rows, 11)), *((reward, ended) if t else ())))
    return np.stack(actions)


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        # The largest product, tokens of all rows by width by hidden units, has at most 2^18 multiplications in NumPy.
        ({"width": 128}, 1, "numpy"),
        ({"width": 128}, 2, "torch"),
        ({"width": 128, "layout": "fused"}, 4, "numpy"),
        ({"width": 128, "layout": "fused"}, 5, "torch"),
        ({"width": 16}, 85, "numpy"),
        ({"width": 16}, 86, "torch"),
        ({"width": 256}, 1, "torch"),
        ({"width": 16, "mixer": "softmax"}, 1, "torch"),
    ],
)
def test_small_products_are_numpys_and_large_ones_torchs(shape, rows, expected):
    agent = make_agent(**shape)
    agent.reset(num_envs=rows)
    assert library(agent) == expected


def test_mixers_that_numpy_does_not_know_are_torchs(monkeypatch):
    monkeypatch.setattr(Aaren, "stepper", Mixer.stepper)
    agent = make_agent()
    agent.reset()
    assert library(agent) == "torch"


def test_other_devices_are_torchs():
    agent = make_agent()
    # Without a GPU at hand the device is only said to be one.
    agent.device = torch.device("meta")
    assert not isinstance(agent._begin(1), Rows)


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
@pytest.mark.parametrize("timesteps", ["none", "learned", "sinusoidal"])
def test_both_libraries_give_the_same_actions(monkeypatch, layout, timesteps):
    agent, other = (make_agent(layout=layout, timesteps=timesteps, heads=2, blocks=2) for _ in range(2))
    ours = drive(agent, 3)
    assert library(agent) == "numpy"
    monkeypatch.setattr(decision_agent, "SMALL", 0)
    theirs = drive(other, 3)
    assert library(other) == "torch"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert ours.std(0).min() > 0.02


def test_a_large_batch_in_torch_gives_the_actions_of_its_rows_in_numpy():
    """Across the border between the two, as an evaluation of many episodes crosses it."""
    agent, single = make_agent(width=64, layout="fused"), make_agent(width=64, layout="fused")
    rows, rng = 20, np.random.default_rng(0)
    observations, rewards = rng.normal(size=(15, rows, 11)), rng.normal(size=(15, rows))
    agent.reset(30.0, rows)
    together = [agent.act(observations[t], rewards[t] if t else None) for t in range(15)]
    assert library(agent) == "torch"
    for row in (0, 7, 19):
        single.reset(30.0)
        for t in range(15):
            alone = single.act(observations[t, row], rewards[t, row] if t else None)
            np.testing.assert_allclose(alone, together[t][row], rtol=0, atol=1e-4)
        assert library(single) == "numpy"


@pytest.mark.parametrize("small", [0, 2**18])
@pytest.mark.parametrize("timesteps", ["none", "learned"])
def test_changes_of_the_weights_count_from_the_next_reset_on(monkeypatch, small, timesteps):
    monkeypatch.setattr(decision_agent, "SMALL", small)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(10, 11))

    def act(agent, t):
        return agent.act(observations[t], 0.5 if t else None)

    agent, unchanged, changed = (make_agent(seed, timesteps=timesteps) for seed in (0, 0, 1))
    for each in (agent, unchanged, changed):
        each.reset()
    for t in range(10):
        if t == 5:
            shake(agent.model, 1)
        np.testing.assert_allclose(act(agent, t), act(unchanged, t), rtol=0, atol=1e-6)
    agent.reset()
    unchanged.reset()
    for t in range(10):
        action = act(agent, t)
        np.testing.assert_allclose(action, act(changed, t), rtol=0, atol=1e-6)
        assert np.abs(action - act(unchanged, t)).max() > 0.1
