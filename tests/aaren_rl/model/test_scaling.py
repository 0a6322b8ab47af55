"""Scaled values: of any unit, held where data are constant, bounded whatever an environment shows, in every form."""

import copy
import importlib.util
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same, double, open_norms, predict
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl import mixers
from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard, load_agent, save_agent
from aaren_rl.data.bounds import SCALED_BOUND, action_space_of
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box, space_of
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.mixers import state_tensors
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.model.encoders import StandardisedBox
from aaren_rl.model.inputs_stepper import RETURN_TO_GO
from aaren_rl.stepping import ModelStepper, NumpyModelStepper
from aaren_rl.stepping.onnx import ExportFailed, session, to_onnx
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.learner import SingleLearner

LARGEST = float(np.finfo(np.float32).max)
UNITS = [1e-30, 1e-9, 1e-6, 1.0, 1e6, 1e30]
CARD = AgentCard(None, "made-up", "arrays", (100.0,))
exporting = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra `export`")


def build(loud, scaling, actions=None, **changes):
    """A small model whose every part shows."""
    space = actions or Box.bounded([-1.0, 0.0], [1.0, 5.0])
    config = ModelConfig(**{"blocks": 1, "width": 16, "heads": 2, "dropout": 0.0, "reward": True, **changes})
    return open_norms(loud(DecisionModel(config, Box.unbounded(scaling.observation_mean.shape), space, scaling))).eval()


def draw(scaling, time=20, batch=2, seed=0):
    """Steps such as the data of a scaling hold: observations, rewards of the step before, returns-to-go."""
    rng = np.random.default_rng(seed)
    size = len(scaling.observation_mean)
    mean, std = (part.astype(np.float64) for part in (scaling.observation_mean, scaling.observation_std))
    observations = (mean + std * rng.normal(size=(batch, time, size))).astype(np.float32)
    rewards = (scaling.reward_scale * rng.uniform(-1, 1, (batch, time))).astype(np.float32)
    rewards[:, 0] = 0
    return observations, rewards, scaling.return_scale * rng.uniform(0.5, 1, batch)


def in_torch(model):
    step = ModelStepper(model)

    def function(*arrays):
        with torch.inference_mode():
            return tuple(part.numpy() for part in step(*map(torch.from_numpy, arrays)))

    return function


def in_numpy(model):
    return NumpyModelStepper.of(ModelStepper(model))


def step_all(function, model, observations, rewards, targets):
    """Actions (batch, time, action size), and every row of state on the way."""
    state = np.tile(ModelStepper(model).start.numpy(), (len(observations), 1))
    state[:, RETURN_TO_GO] = targets
    actions, states = [], []
    for t in range(observations.shape[1]):
        action, state = function(observations[:, t], rewards[:, t], state)
        actions.append(action)
        states.append(state)
    return np.stack(actions, 1), np.stack(states, 1)


def segment_of(actions, observations, rewards, targets):
    """The same steps as one segment, in float64; a segment's reward is that of its own action."""
    timesteps = torch.arange(actions.shape[1]).expand(len(actions), -1)
    after = np.concatenate([rewards[:, 1:], np.zeros_like(rewards[:, :1])], 1)
    returns_to_go = np.asarray(targets)[:, None] - rewards.astype(np.float64).cumsum(1)
    parts = (torch.from_numpy(np.asarray(part, np.float64)) for part in (observations, actions, after, returns_to_go))
    observed, acted, earned, returns = parts
    return Segment(observed, timesteps, acted, earned, returns)


def single(segment):
    return segment.map(lambda part: part.float() if part.is_floating_point() else part)


def assert_one_function(model, given, tolerance=1e-4, forms=(in_torch, in_numpy)):
    """Stepping in every form, and `forward` in float32, equal `forward` in float64."""
    for form in forms:
        actions, states = step_all(form(model), model, *given)
        assert np.isfinite(actions).all()
        assert np.isfinite(states).all()
        segment = segment_of(actions, *given)
        wide = copy.deepcopy(model).double()
        with torch.inference_mode():
            expected = predict(wide, double(segment)).numpy()
            narrow = predict(model, single(segment)).numpy()
        np.testing.assert_allclose(actions, expected, rtol=0, atol=tolerance, err_msg=form.__name__)
        np.testing.assert_allclose(narrow, expected, rtol=0, atol=tolerance, err_msg="forward")
    return actions


def data_of(observations, actions=None, rewards=None):
    rng = np.random.default_rng(0)
    steps = len(observations)
    ends = np.arange(0, steps + 1, 50)
    return Trajectories(
        observations,
        rng.uniform(-1, 1, (steps, 2)) if actions is None else actions,
        rng.normal(size=steps) if rewards is None else rewards,
        ends,
        np.zeros(len(ends) - 1, bool),
        np.ones(len(ends) - 1, bool),
    )


# What varies, in any unit


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("offset", [0.0, 10.0, -1e3])
def test_what_varies_is_standardised_in_any_unit(unit, offset):
    values = (np.random.default_rng(0).normal(size=(200, 3)) + offset) * unit
    data = data_of(values)
    scaling = Scaling.of(data)
    np.testing.assert_allclose(scaling.observation_std, data.observations.astype(np.float64).std(0), rtol=1e-4)
    features = StandardisedBox(Box.unbounded((3,)), *data.observation_statistics())(torch.from_numpy(data.observations))
    assert features.mean(0).abs().max() < 1e-3
    assert (features.std(0, correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("mean", "std"), [(1e9, 1e5), (-1e9, 1e5), (1e-9, 1e-12), (3e6, 10.0), (1e30, 1e26), (-2e38, 1e36)], ids=str
)
def test_means_far_larger_than_deviations_keep_their_digits(loud, mean, std):
    """Folded into the weights, mean and deviation would cancel."""
    scaling = Scaling(np.array([mean, 0, 1.0]), np.array([std, 1.0, 0.5]), return_scale=100.0, reward_scale=0.5)
    actions = assert_one_function(build(loud, scaling), draw(scaling), tolerance=2e-4)
    assert actions.std((0, 1)).min() > 0.02


@pytest.mark.parametrize("low", [[90.0, 1e9], [-1e-9, -1e6]], ids=str)
def test_actions_far_from_zero_keep_their_digits(loud, low):
    low = np.array(low)
    space = Box.bounded(low, low + np.abs(low) * [1e-2, 1e-3])
    scaling = Scaling(np.zeros(3), np.ones(3), return_scale=100.0, reward_scale=0.5)
    model = build(loud, scaling, space)
    low, high = (bound.astype(np.float64) for bound in space.bounds())
    given = draw(scaling)
    for form in (in_torch, in_numpy):
        actions, _ = step_all(form(model), model, *given)
        with torch.inference_mode():
            expected = predict(copy.deepcopy(model).double(), segment_of(actions, *given)).numpy()
        np.testing.assert_allclose((actions - low) / (high - low), (expected - low) / (high - low), rtol=0, atol=2e-4)
        assert ((actions >= low) & (actions <= high)).all()


# What is constant


def constant_data(still=(0.0, 5.0, -1e9)):
    """Data of which the last components never vary, and what varies decides the action."""
    observations = np.random.default_rng(0).normal(size=(200, 2 + len(still)))
    observations[:, 2:] = still
    return data_of(observations, actions=np.tanh(observations[:, :2]))


@pytest.mark.parametrize("shown", [1e-3, -7.0, 1e9, 3e38])
@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_constant_components_are_held_in_every_form(loud, layout, shown):
    scaling = Scaling.of(constant_data())
    assert (scaling.observation_std == 0).tolist() == [False, False, True, True, True]
    model = build(loud, scaling, layout=layout)
    observations, rewards, targets = draw(scaling)
    elsewhere = observations.copy()
    elsewhere[..., 2:] = shown
    actions = assert_one_function(model, (observations, rewards, targets))
    for form in (in_torch, in_numpy):
        as_recorded, _ = step_all(form(model), model, observations, rewards, targets)
        held, _ = step_all(form(model), model, elsewhere, rewards, targets)
        np.testing.assert_array_equal(held, as_recorded)
    with torch.inference_mode():
        segments = [single(segment_of(actions, seen, rewards, targets)) for seen in (observations, elsewhere)]
        assert_same("forward", *(predict(model, segment) for segment in segments))
    # The others are not held.
    elsewhere[..., 0] += 1.0
    assert np.abs(step_all(in_numpy(model), model, elsewhere, rewards, targets)[0] - actions).max() > 0.01


@pytest.mark.parametrize("acting", ["stream", "window:5"])
def test_a_loaded_agent_ignores_constant_components(loud, tmp_path, acting):
    scaling = Scaling.of(constant_data())
    save_agent(tmp_path / "agent", build(loud, scaling), CARD)
    loaded = load_agent(tmp_path / "agent")[0]
    assert_same("deviation", loaded.inputs.observation.std, torch.from_numpy(scaling.observation_std))
    observations, *_ = draw(scaling, batch=1)
    acted = []
    for shown in (None, 12.0, -3e38):
        agent = DecisionAgent.load(tmp_path / "agent", acting=acting)
        agent.reset(50.0)
        seen = observations[0].copy()
        seen[:, 2:] = seen[:, 2:] if shown is None else shown
        acted.append([agent.act(one, 0.1 if t else None) for t, one in enumerate(seen)])
    np.testing.assert_array_equal(acted[1], acted[0])
    np.testing.assert_array_equal(acted[2], acted[0])


def test_the_weights_of_constant_components_are_not_trained():
    data = constant_data()
    model = DecisionModel(
        ModelConfig(blocks=1, width=16), Box.unbounded((5,)), Box.bounded([-1, -1], [1, 1]), Scaling.of(data)
    )
    learner = SingleLearner(model, data, TrainingConfig(batch_size=8, warmup=0, weight_decay=0.0, average=0.0))
    before = model.inputs.embed_observation.weight.detach().clone()
    learner.update()
    moved = (model.inputs.embed_observation.weight - before).abs().amax(0)
    assert (moved[2:] == 0).all()
    assert (moved[:2] > 0).all()


@exporting
def test_an_exported_step_holds_and_clips_as_the_model(loud, tmp_path, monkeypatch):
    """With a constant action besides, whose half range of 0 may not hide a difference in the other."""
    scaling = Scaling.of(constant_data())
    model = build(loud, scaling, Box.bounded([-1.0, 90.0], [1.0, 90.0]), layout="interleaved")
    running = session(str(to_onnx(model, CARD, tmp_path / "exported")))

    def exported(observation, reward, state):
        return running.run(None, {"observation": observation, "reward": reward, "state": state})

    observations, rewards, targets = draw(scaling)
    observations[:, 5:9, 0] = [1e20, -1e20, LARGEST, -LARGEST]
    observations[:, 11, 2:] = 3e38
    rewards[:, 7] = LARGEST
    given = observations, rewards, targets
    actions = assert_one_function(model, given, forms=(in_torch, in_numpy, lambda model: exported))
    assert (actions[..., 1] == 90).all()
    graph = (tmp_path / "exported" / "agent.onnx").read_bytes()
    monkeypatch.setattr("aaren_rl.stepping.onnx._graph", lambda step: graph)
    with torch.no_grad():
        model.head.linear.bias.add_(2e-3)
    with pytest.raises(ExportFailed):
        to_onnx(model, CARD, tmp_path / "other")


# What is far out

EXTREMES = [1e20, -1e20, LARGEST, -LARGEST]
CONSTANT_SIZE = [name for name in mixers.names() if mixers.get(name).memory != "growing"]


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
@pytest.mark.parametrize("name", CONSTANT_SIZE)
def test_conformance_no_finite_number_spoils_a_state(make_model, name, layout):
    """Neither in one component nor in all, nor as a reward, in any form of acting; and the agent goes on afterwards."""
    torch.manual_seed(0)
    model = open_norms(make_model(mixer=name, layout=layout, reward=True, blocks=2))
    low, high = model.action_space.bounds()
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(2, 60, 4)).astype(np.float32)
    rewards = rng.random((2, 60)).astype(np.float32)
    for number, value in enumerate(EXTREMES):
        observations[0, 5 + number, number] = value
        observations[:, 15 + number] = value
        rewards[0, 25 + number] = value
        rewards[:, 35 + number], observations[1, 35 + number] = value, -value
    rewards[:, 0] = 0
    given = observations, rewards, np.array([90.0, -LARGEST])
    forms = [in_torch(model), in_numpy(model)]
    for form in [form for form in forms if form is not None]:
        with np.errstate(all="raise", under="ignore"):
            actions, states = step_all(form, model, *given)
        assert np.isfinite(states).all()
        assert ((actions >= low) & (actions <= high)).all()
        # Sums without decay, as linear attention's, hold what was far out for good; the rest still shows.
        assert actions[:, 45:].std((0, 1)).min() > 1e-5
    with torch.inference_mode():
        state = model.initial_state(2)
        action = torch.zeros(2, 2)
        with np.errstate(over="ignore"):
            returns_to_go = (given[2][:, None] - rewards.astype(np.float64).cumsum(1)).astype(np.float32)
        returns_to_go = torch.from_numpy(returns_to_go)
        for t in range(60):
            parts = torch.from_numpy(observations[:, t]), torch.full((2,), t), returns_to_go[:, t]
            now = Segment.of_one_step(*parts, action, torch.from_numpy(rewards[:, t]))
            action, state = model.step(now, state)
            assert all(part.isfinite().all() for part in state_tensors(state) if part.is_floating_point())
            assert action.isfinite().all()


@pytest.mark.parametrize("name", mixers.names())
def test_conformance_a_segment_of_extremes_has_a_finite_loss(make_model, name):
    """With infinite returns-to-go too, which float32 makes of large rewards taken off."""
    torch.manual_seed(0)
    model = make_model(mixer=name, reward=True, layout="interleaved").train()
    observations = torch.randn(2, 12, 4)
    observations[0, 3:7, 1] = torch.tensor(EXTREMES)
    observations[1, 3:7] = torch.tensor(EXTREMES)[:, None]
    rewards, returns = torch.zeros(2, 12), torch.zeros(2, 12)
    rewards[0, 5:9] = returns[0, 5:9] = torch.tensor(EXTREMES)
    returns[1, 6:8] = torch.tensor([float("inf"), -float("inf")])
    actions = torch.full((2, 12, 2), 0.5)
    actions[:, 4:8] = torch.tensor(EXTREMES)[:, None]
    loss, _ = model.loss(Segment(observations, torch.arange(12).expand(2, -1), actions, rewards, returns))
    loss.backward()
    assert loss.isfinite()
    assert all(part.grad is None or part.grad.isfinite().all() for part in model.parameters())


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_all_forms_clip_alike(loud, layout):
    scaling = Scaling(np.array([0.0, 1e3]), np.array([1.0, 10.0]), return_scale=10.0, reward_scale=0.5)
    model = build(loud, scaling, layout=layout)
    observations, rewards, targets = draw(scaling)
    observations[0, 3:7, 0], observations[1, 3:7, 1] = EXTREMES, EXTREMES
    observations[:, 9] = [99.0, -1e4]
    rewards[0, 5], rewards[1, 8], rewards[1, 12] = 1e20, -60.0, LARGEST
    assert_one_function(model, (observations, rewards, targets * 1000))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_are_clipped_from_the_bound_on(loud, sign):
    """Up to it they differ, and beyond it they do not, in observations, rewards and returns-to-go alike."""
    scaling = Scaling(np.array([3.0]), np.array([2.0]), return_scale=10.0, reward_scale=0.5)
    units = {"observation": (3.0, 2.0), "reward": (0.0, 0.5), "return": (0.0, 10.0)}
    for name, (centre, unit) in units.items():
        # A reward is taken off the return-to-go, which would show it too.
        model = build(loud, scaling, return_to_go=name == "return")
        for form in (in_torch(model), in_numpy(model)):
            acted = []
            for size in (0.9 * SCALED_BOUND, SCALED_BOUND, 1.1 * SCALED_BOUND, 1e30):
                observations, rewards = np.full((1, 2, 1), 3.0, np.float32), np.zeros((1, 2), np.float32)
                target, value = np.zeros(1), centre + sign * size * unit
                {"observation": observations[:, 1], "reward": rewards[:, 1], "return": target}[name][:] = value
                acted.append(step_all(form, model, observations, rewards, target)[0][:, 1])
            assert np.abs(acted[1] - acted[0]).max() > 1e-6, name
            np.testing.assert_array_equal(acted[2], acted[1], err_msg=name)
            np.testing.assert_array_equal(acted[3], acted[1], err_msg=name)


def test_scaled_values_within_the_bound_are_not_touched():
    encoder = StandardisedBox(Box.unbounded((2,)), np.array([1.0, -2.0]), np.array([0.5, 3.0]))
    values = torch.tensor([[50.0, -290.0], [-49.0, 290.0]])
    assert_close("features", encoder(values), torch.tensor([[98.0, -96.0], [-100.0, 97.333336]]))


# Training on finite data, whatever they are


def large_rewards(data):
    return replace(data, rewards=data.rewards * np.float32(1e36))


def large_observations(data):
    return replace(data, observations=data.observations * np.float32(1e30))


def mixed_observations(data):
    observations = data.observations * np.array([1e-30, 1.0, 1e30], np.float32)
    observations[7], observations[120, 1] = LARGEST, -LARGEST
    return replace(data, observations=observations)


def mixed_rewards(data):
    rewards = data.rewards * np.float32(1e-6)
    rewards[130] = -3e38
    return replace(data, rewards=rewards)


def no_rewards(data):
    return replace(data, rewards=np.zeros_like(data.rewards))


def large_actions(data):
    return replace(data, actions=data.actions * np.array([1e-30, 3e38], np.float32))


def constant_everything(data):
    return replace(data, observations=np.full_like(data.observations, 7), actions=np.full_like(data.actions, 90))


KINDS = [
    large_rewards,
    large_observations,
    mixed_observations,
    mixed_rewards,
    no_rewards,
    large_actions,
    constant_everything,
]


@pytest.mark.parametrize("context", [8, "packed"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_finite_data_make_training_diverge(kind, context):
    rng = np.random.default_rng(0)
    data = kind(data_of(rng.normal(size=(200, 3))))
    spaces = Box.unbounded((3,)), action_space_of(data.actions, None)
    torch.manual_seed(0)
    model = DecisionModel(ModelConfig(blocks=1, width=16, reward=True), *spaces, Scaling.of(data))
    config = TrainingConfig(batch_size=8, context=context, learning_rate=1e-2, warmup=0, average=0.9, held_out=0.25)
    learner = SingleLearner(model, data, config)
    losses = [learner.update() for _ in range(15)]
    assert all(value.isfinite() for metrics in losses for value in metrics.values())
    assert np.isfinite(learner.validate()[0]["loss"])
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    if kind is not constant_everything:
        assert losses[-1]["loss"] < losses[0]["loss"]


# What bounds that do not suit would spoil


@pytest.mark.parametrize("limit", [1.0, 1e4, LARGEST], ids=str)
def test_actions_are_learned_whatever_the_environments_bounds(limit):
    """The right action is 0.8 times what is observed; a mean error of 0.4 is that of a constant."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (400, 1)).astype(np.float32)
    data = data_of(observations, actions=0.8 * observations, rewards=np.zeros(400))
    space = action_space_of(data.actions, Box.bounded([-limit], [limit]))
    torch.manual_seed(0)
    shape = ModelConfig(width=16, mixer="none", dropout=0.0, previous_action=False, layout="interleaved")
    model = DecisionModel(shape, Box.unbounded((1,)), space, Scaling.of(data))
    config = TrainingConfig(batch_size=16, learning_rate=1e-2, warmup=10, average=0.9, held_out=0, precision="float32")
    learner = SingleLearner(model, data, config)
    for _ in range(250):
        learner.update()
    agent = DecisionAgent(learner.models[0], CARD)
    seen = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    agent.reset(0.0, num_envs=100)
    assert np.abs(agent.act(seen) - 0.8 * seen).mean() < 0.1


@given(
    st.sampled_from(["float16", "float32", "float64"]),
    st.floats(-1e3, 1e3),
    st.floats(1e-2, 1e3),
    st.floats(0.01, 2.0),
    st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4]),
)
@settings(max_examples=60)
def test_actions_fit_the_environments_space_in_its_dtype(dtype, low, width, share, push):
    """Saturated or not, whatever part of the bounds the data fill."""
    env = gym.spaces.Box(np.array([low, -0.1], dtype), np.array([low + width, 0.1], dtype), dtype=np.dtype(dtype))
    rng = np.random.default_rng(0)
    middle, half = (env.low.astype(np.float64) + env.high) / 2, (env.high.astype(np.float64) - env.low) / 2
    actions = np.clip(middle + share * half * rng.uniform(-1, 1, (50, 2)), env.low, env.high)
    space = action_space_of(actions.astype(np.float32), space_of(env))
    torch.manual_seed(0)
    scaling = Scaling(np.zeros(2), np.ones(2))
    model = DecisionModel(ModelConfig(blocks=1, width=8, heads=1), Box.unbounded((2,)), space, scaling)
    torch.nn.init.constant_(model.head.linear.bias, push)
    for acting in ("stream", "window:3"):
        agent = DecisionAgent(model, CARD, acting=acting)
        agent.reset(1.0)
        for t in range(3):
            action = agent.act(rng.normal(size=2), 0.0 if t else None)
            assert env.contains(action.astype(dtype))
