"""What an agent carries, and which library steps it; how the agent acts is in test_decision_agent.py."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent, decision_agent
from aaren_rl.agents.acting import Acting
from aaren_rl.agents.model_states import GrowingState, Window
from aaren_rl.agents.states import DeviceRows, Rows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import space_of
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Aaren, Mixer
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping import ModelStepper, NumpyModelStepper


def make_agent(seed=0, std=0.4, **shape):
    env = gym.make("Hopper-v5")
    spaces = space_of(env.observation_space), space_of(env.action_space)
    env.close()
    config = ModelConfig(**{"blocks": 1, "width": 16, "dropout": 0.0, "layout": "interleaved", **shape})
    model = DecisionModel(config, *spaces, replace(Scaling.identity(spaces[0]), return_scale=10.0))
    shake(model, seed, std)
    return DecisionAgent(model, AgentCard(EnvironmentSpec("Hopper-v5"), "untrained", "bundled", (30.0,)))


def shake(model, seed, std=0.4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * std)


def library(agent):
    state = agent._state
    return "numpy" if isinstance(state, Rows) and isinstance(state.function, NumpyModelStepper) else "torch"


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


def test_a_batch_in_torch_acts_as_its_rows_in_numpy():
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


def make_states(model, rows):
    """A state of each class over one model."""
    step, cpu = ModelStepper(model), torch.device("cpu")
    return {
        "rows": Rows(NumpyModelStepper.of(step), step.start.numpy(), step.mixed, rows),
        "device rows": DeviceRows(step, rows, cpu),
        "growing": GrowingState(model, rows, cpu),
        "window": Window(model, rows, cpu, Acting("window", 50)),
    }


def drive_states(states, change=lambda t, state: None, steps=20):
    """Actions and returns-to-go of states over made-up observations, by name, (steps, rows, ...)."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(steps, 3, 11)).astype(np.float32)
    # In float32 these sums are exact, so that returns-to-go can be compared as they are.
    rewards = rng.integers(-4, 5, size=(steps, 3)).astype(np.float32)
    rewards[0] = 0
    # Row 0 restarts once, and the reward of its step before belongs to no episode.
    rewards[7, 0] = 0
    everywhere, first = np.ones(3, dtype=bool), np.array([True, False, False])
    actions, returns_to_go = {}, {}
    for name, state in states.items():
        state.restart(everywhere, np.array([10.0, 20.0, 30.0]))
        acted, asked = [], []
        for t in range(steps):
            if t == 7:
                state.restart(first, np.array([15.0, -1.0, -1.0]))
            change(t, state)
            acted.append(state.step(observations[t], rewards[t]).copy())
            asked.append(state.return_to_go)
        actions[name], returns_to_go[name] = np.array(acted), np.array(asked)
    return actions, returns_to_go, rewards


@pytest.mark.parametrize("timesteps", ["none", "learned"])
@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_all_states_act_alike(layout, timesteps):
    model = make_agent(layout=layout, timesteps=timesteps, reward=True).model
    actions, *_ = drive_states(make_states(model, 3))
    for name, acted in actions.items():
        np.testing.assert_allclose(acted, actions["growing"], rtol=0, atol=1e-4, err_msg=name)
    assert actions["growing"].std(0).mean() > 0.05


def test_all_states_own_the_return_to_go():
    second = np.array([False, True, False])

    def ask(t, state):
        if t == 12:
            state.ask(second, np.array([-1.0, 40.0, -1.0]))
        # What was given out may be changed without changing the state.
        state.return_to_go[:] = 1e6

    _, returns_to_go, rewards = drive_states(make_states(make_agent().model, 3), ask)
    earned = rewards.cumsum(0)
    expected = np.array([10.0, 20.0, 30.0]) - earned
    expected[7:, 0] += 5.0 + earned[6, 0]
    expected[12:, 1] += 20.0 + earned[11, 1]
    for name, asked in returns_to_go.items():
        np.testing.assert_array_equal(asked, expected, err_msg=name)
        assert asked.dtype == np.float64, name


def test_forgetting_empties_mixers_and_nothing_else():
    model, last = make_agent(timesteps="learned").model, np.array([False, False, True])
    states = make_states(model, 3)
    with pytest.raises(InvalidInput, match="a window forgets by itself"):
        states.pop("window").forget(last)
    remembering, asked, _ = drive_states(states)

    def forget(t, state):
        if t == 12:
            state.forget(last)

    actions, still_asked, _ = drive_states(states, forget)
    for name, acted in actions.items():
        np.testing.assert_allclose(acted, actions["growing"], rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(still_asked[name], asked["growing"], err_msg=name)
    differs = np.abs(actions["growing"] - remembering["growing"]).max(-1) > 1e-3
    assert differs[12:, 2].any()
    assert not differs[:12].any()
    assert not differs[:, :2].any()


@pytest.mark.parametrize("shape", [{}, {"layout": "fused", "timesteps": "learned"}, {"reward": True}])
def test_all_states_take_another_last_action_alike(shape):
    model = make_agent(**shape).model
    replaced = np.random.default_rng(3).uniform(-1, 1, size=(20, 3, 3)).astype(np.float32)

    def change(t, state):
        if t in (3, 4, 11):
            state.replace_action(replaced[t])

    actions, returns_to_go, _ = drive_states(make_states(model, 3), change)
    untouched, still_asked, _ = drive_states(make_states(model, 3))
    for name, acted in actions.items():
        np.testing.assert_allclose(acted, actions["growing"], rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(returns_to_go[name], still_asked[name], err_msg=name)
    differs = np.abs(actions["growing"] - untouched["growing"]).max(-1) > 1e-3
    assert differs[3].any()
    assert not differs[:3].any()
