"""Nothing but encoders and heads knows the shape of a value: models equal those over the flattened spaces."""

import importlib.util

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same, open_norms, pad, predict, step_through

from aaren_rl.checkpoint import load_agent, save_agent
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.model.inputs_stepper import RETURN_TO_GO
from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.numpy_model_stepper import NumpyModelStepper
from aaren_rl.stepping.onnx import session, to_onnx

BATCH, STEPS = 3, 12
SHAPES = [((2, 3), (2, 2)), ((), ()), ((2, 1, 2), (3,)), ((4,), (1, 1))]
all_shapes = pytest.mark.parametrize("shapes", SHAPES, ids=str)
VARIANTS = [
    {"layout": "fused"},
    {"layout": "interleaved"},
    {"layout": "interleaved", "reward": True, "timesteps": "sinusoidal"},
    {"layout": "fused", "reward": True, "previous_action": False, "timesteps": "learned"},
    {"layout": "fused", "mixer": "local:4"},
]
all_variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@pytest.fixture
def make_pair(loud):
    """A model over spaces of these shapes, and one of equal weights over the flattened spaces."""

    def make(shapes, **changes):
        rng = np.random.default_rng(0)
        observed, acted = shapes
        mean, std = (np.asarray(rng.uniform(0.5, 3, observed), np.float32) for _ in range(2))
        low, high = -rng.uniform(0.1, 3, acted), rng.uniform(0.1, 3, acted)
        config = ModelConfig(**{"blocks": 2, "width": 16, "heads": 2, "dropout": 0.0, **changes})
        models = []
        for flat in (False, True):
            arrays = [np.ravel(array) if flat else np.asarray(array) for array in (mean, std, low, high)]
            spaces = Box.unbounded(arrays[0].shape), Box.bounded(*arrays[2:])
            scaling = Scaling(*arrays[:2], return_scale=100.0, reward_scale=0.5)
            models.append(open_norms(loud(DecisionModel(config, *spaces, scaling))).eval())
            with torch.no_grad():
                # So that no action saturates.
                models[-1].head.linear.bias.zero_()
                models[-1].head.linear.weight.mul_(0.3)
        assert [model.action_space.shape for model in models] == [acted, (int(np.prod(acted)),)]
        return models

    return make


def draw(model):
    """Random steps for the spaces of a model, the first ones inside an episode that ends within."""
    generator = torch.Generator().manual_seed(1)
    timesteps = torch.cat([torch.arange(5, 11), torch.arange(STEPS - 6)]).expand(BATCH, -1)
    observed, acted = model.observation_space.shape, model.action_space.shape
    low, high = map(torch.from_numpy, model.action_space.bounds())
    return Segment(
        torch.randn(BATCH, STEPS, *observed, generator=generator) * 3,
        timesteps,
        low + (high - low) * torch.rand(BATCH, STEPS, *acted, generator=generator),
        torch.randn(BATCH, STEPS, generator=generator),
        100 * torch.rand(BATCH, STEPS, generator=generator),
        previous_action=low + (high - low) * torch.rand(BATCH, *acted, generator=generator),
        previous_reward=torch.randn(BATCH, generator=generator),
    )


def flattened(segment):
    """The segment with its observations and actions as vectors."""
    return segment._replace(
        observations=segment.observations.reshape(BATCH, STEPS, -1),
        actions=segment.actions.reshape(BATCH, STEPS, -1),
        previous_action=segment.previous_action.reshape(BATCH, -1),
    )


def rows(batch, step):
    """Rows of state before episodes, which ask for different returns."""
    return step.initial_state(torch.linspace(50.0, 150.0, batch)).numpy()


def walk(function, state, observations):
    """The actions, and the state after each step, of a step over episodes of rewards that differ."""
    actions, states = [], []
    for t in range(len(observations)):
        reward = np.full(len(state), 0.1 * t, np.float32)
        action, state = function(observations[t], reward, state)
        actions.append(np.array(action))
        states.append(np.array(state))
    return np.stack(actions), np.stack(states)


def in_torch(step):
    def function(*arrays):
        with torch.inference_mode():
            return tuple(part.numpy() for part in step(*map(torch.from_numpy, arrays)))

    return function


def made_up(shape, steps=STEPS, batch=BATCH):
    return (3 * np.random.default_rng(2).normal(size=(steps, batch, *shape))).astype(np.float32)


@all_shapes
@all_variants
def test_forward_equals_the_flattened_one(make_pair, shapes, variant):
    shaped, flat = make_pair(shapes, **variant)
    segment = draw(shaped)
    actions = predict(shaped, segment)
    assert actions.shape == (BATCH, STEPS, *shapes[1])
    assert actions.std((0, 1)).min() > 0.005
    assert_same("actions", actions.reshape(BATCH, STEPS, -1), predict(flat, flattened(segment)))
    padded, expected = predict(shaped, pad(segment, 2, 3)), predict(flat, pad(flattened(segment), 2, 3))
    assert_same("padded", padded.reshape(expected.shape), expected)


@all_shapes
@all_variants
def test_loss_and_gradients_equal_the_flattened_ones(make_pair, shapes, variant):
    shaped, flat = make_pair(shapes, **variant)
    segment = draw(shaped)._replace(counted=torch.rand(BATCH, STEPS) < 0.5)
    losses = shaped.loss(segment)[0], flat.loss(flattened(segment))[0]
    assert_same("loss", *losses)
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(shaped.named_parameters(), flat.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert_close(f"gradient of {name}", ours.grad, theirs.grad)


@all_shapes
@all_variants
def test_model_steps_equal_the_flattened_ones(make_pair, shapes, variant):
    shaped, flat = make_pair(shapes, **variant)
    segment = draw(shaped)
    actions, _ = step_through(shaped, segment)
    assert_same("actions", actions.reshape(BATCH, STEPS, -1), step_through(flat, flattened(segment))[0])
    assert_close("forward", actions, predict(shaped, segment), rtol=0, atol=1e-4)


@all_shapes
@all_variants
def test_folded_steps_equal_the_flattened_ones(make_pair, shapes, variant):
    shaped, flat = (ModelStepper(model) for model in make_pair(shapes, **variant))
    assert_same("start", shaped.start, flat.start)
    assert shaped.mixed == flat.mixed == 2 + flat.action_space.size
    observations = made_up(shapes[0])
    actions, states = walk(in_torch(shaped), rows(BATCH, shaped), observations)
    expected, expected_states = walk(in_torch(flat), rows(BATCH, flat), observations.reshape(STEPS, BATCH, -1))
    assert actions.shape == (STEPS, BATCH, *shapes[1])
    np.testing.assert_allclose(actions.reshape(expected.shape), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(states, expected_states, rtol=1e-5, atol=1e-6)
    assert expected.std((0, 1)).min() > 0.005
    # Rows of state hold the previous action as numbers, in C order.
    np.testing.assert_array_equal(states[:, :, 2 : shaped.mixed], expected)


@all_shapes
@all_variants
def test_steps_in_numpy_equal_the_flattened_ones(make_pair, shapes, variant):
    steps = [ModelStepper(model) for model in make_pair(shapes, **variant)]
    shaped, flat = map(NumpyModelStepper.of, steps)
    observations = made_up(shapes[0])
    actions, states = walk(shaped, rows(BATCH, steps[0]), observations)
    expected, expected_states = walk(flat, rows(BATCH, steps[1]), observations.reshape(STEPS, BATCH, -1))
    assert actions.shape == (STEPS, BATCH, *shapes[1])
    np.testing.assert_array_equal(actions.reshape(expected.shape), expected)
    np.testing.assert_array_equal(states, expected_states)
    in_torchs, _ = walk(in_torch(steps[0]), rows(BATCH, steps[0]), observations)
    np.testing.assert_allclose(actions, in_torchs, rtol=0, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="the extra `export` is not installed")
@pytest.mark.parametrize("shapes", SHAPES[:2], ids=str)
def test_exported_steps_equal_the_flattened_ones(make_pair, card, tmp_path, shapes):
    shaped, flat = make_pair(shapes, layout="interleaved", reward=True, blocks=1)
    running, step = session(str(to_onnx(shaped, card, tmp_path / "exported"))), ModelStepper(flat)

    def function(observation, reward, state):
        return running.run(None, {"observation": observation, "reward": reward, "state": state})

    for batch in (1, 4):
        observations = made_up(shapes[0], batch=batch)
        actions, states = walk(function, rows(batch, step), observations)
        expected, expected_states = walk(in_torch(step), rows(batch, step), observations.reshape(STEPS, batch, -1))
        assert actions.shape == (STEPS, batch, *shapes[1])
        np.testing.assert_allclose(actions.reshape(expected.shape), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(states[..., RETURN_TO_GO], expected_states[..., RETURN_TO_GO])


@all_shapes
def test_agents_of_any_shape_are_saved_and_loaded(make_pair, card, tmp_path, shapes):
    model, _ = make_pair(shapes, layout="interleaved")
    save_agent(tmp_path / "agent", model, card)
    loaded, _ = load_agent(tmp_path / "agent")
    assert (loaded.observation_space, loaded.action_space) == (model.observation_space, model.action_space)
    assert_same("actions", predict(loaded, draw(model)), predict(model, draw(model)))
