"""Encoders of spaces, and heads alone."""

import copy

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.model import Scaling
from aaren_rl.model.encoders import BoundedBox, StandardisedBox, action_encoder, observation_encoder
from aaren_rl.model.heads import head_of
from aaren_rl.ops.numpy_layers import normalise

WIDTH = 16
SHAPES = [(), (1,), (3,), (2, 2), (2, 1, 3)]
all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def bounded(shape, seed=0):
    """A space with bounds of its own for each number."""
    rng = np.random.default_rng(seed)
    return Box.bounded(-rng.uniform(0.1, 3, shape), rng.uniform(0.1, 3, shape))


def segment(batch, time):
    return Segment(torch.zeros(batch, time, 1), torch.arange(time).expand(batch, -1))


def make_head(shape, loud):
    return loud(head_of(bounded(shape), WIDTH))


def draw(*shape, seed=0):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@all_shapes
def test_the_mode_has_the_shape_and_bounds_of_the_space(loud, shape):
    head = make_head(shape, loud)
    low, high = map(torch.from_numpy, head.scale.space.bounds())
    mode = head(draw(4, 50) * 5, segment(4, 50)).mode
    assert mode.shape == (4, 50, *shape)
    assert ((mode >= low) & (mode <= high)).all()
    # It is neither one action nor bounds only.
    assert mode.std((0, 1)).min() > 0.05
    assert ((mode > low) & (mode < high)).any()


@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES), st.floats(0.01, 1e6), st.integers(0, 9))
def test_no_hidden_vector_leads_out_of_the_bounds(seed, shape, size, bounds_seed):
    head = head_of(bounded(shape, bounds_seed), WIDTH)
    low, high = map(torch.from_numpy, head.scale.space.bounds())
    mode = head(draw(3, 5, seed=seed) * size, segment(3, 5)).mode
    assert ((mode >= low) & (mode <= high)).all()


@all_shapes
def test_the_loss_is_the_mean_square_of_the_scaled_error(loud, shape):
    head = make_head(shape, loud)
    space = head.scale.space
    low, high = map(torch.from_numpy, space.bounds())
    prediction = head(draw(2, 7), segment(2, 7))
    actions = low + (high - low) * torch.rand(2, 7, *shape, generator=torch.Generator().manual_seed(1))
    loss = prediction.loss(actions)
    assert loss.shape == (2, 7)
    error = (prediction.mode - actions) / ((high - low) / 2)
    assert_close("loss", loss, error.reshape(2, 7, space.size).square().mean(-1), rtol=1e-4, atol=1e-5)
    assert loss.min() > 1e-4
    assert_close("loss of the mode", prediction.loss(prediction.mode), torch.zeros(2, 7), rtol=0, atol=1e-9)


def test_the_loss_is_float32_whatever_the_prediction_is(loud):
    head = make_head((3,), loud)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = head(draw(2, 7), segment(2, 7))
        assert prediction.scaled.dtype == torch.bfloat16
        assert prediction.loss(torch.zeros(2, 7, 3)).dtype == torch.float32


@all_shapes
@pytest.mark.parametrize("unit", [True, False])
def test_its_steppers_equal_the_mode(loud, shape, unit):
    space = Box.bounded(-np.ones(shape), np.ones(shape)) if unit else bounded(shape)
    head = loud(head_of(space, WIDTH))
    norm = loud(torch.nn.LayerNorm(WIDTH), seed=2, std=1.0)
    x = draw(5, seed=3)
    x = x - x.mean(-1, keepdim=True)
    with torch.no_grad():
        expected = head(norm(x).unsqueeze(1), segment(5, 1)).mode.squeeze(1)
        stepper = head.stepper()
        assert stepper.unit_range == unit
        action = stepper(norm(x))
    assert action.shape == (5, *shape)
    assert_close("action", action, expected)
    in_numpy = stepper.to_numpy(norm)(normalise(x.numpy(), norm.eps))
    assert in_numpy.dtype == np.float32
    assert_close("action in NumPy", torch.from_numpy(in_numpy), expected)


@all_shapes
def test_features_are_standardised_or_within_one(shape):
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=shape).astype(np.float32), rng.uniform(0.5, 3, shape).astype(np.float32)
    space, limits = Box.unbounded(shape), bounded(shape)
    encoder = observation_encoder(space, Scaling(np.asarray(mean), np.asarray(std)))
    assert isinstance(encoder, StandardisedBox)
    values = torch.from_numpy(np.asarray(mean + 2 * std, np.float32)).expand(4, 5, *shape)
    assert_close("features", encoder(values), torch.full((4, 5, space.size), 2.0), rtol=0, atol=1e-5)
    encoder = action_encoder(limits)
    assert isinstance(encoder, BoundedBox)
    for bound, expected in zip(limits.bounds(), (-1.0, 1.0), strict=True):
        features = encoder(torch.from_numpy(bound).expand(4, 5, *shape))
        assert_close("features", features, torch.full((4, 5, limits.size), expected), rtol=0, atol=1e-5)


def encoders(shape):
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=shape), rng.uniform(0.5, 3, shape)
    return [StandardisedBox(Box.unbounded(shape), mean, std), BoundedBox(bounded(shape))]


@all_shapes
@pytest.mark.parametrize("which", [0, 1])
def test_raw_numbers_become_the_features_by_one_line(shape, which):
    encoder = encoders(shape)[which]
    values = encoder.examples(5, torch.Generator().manual_seed(0))
    assert values.shape == (5, *shape)
    centre, factor = encoder.affine()
    assert centre.shape == factor.shape == (encoder.size,)
    raw = encoder.raw(values)
    assert raw.shape == (5, encoder.size)
    assert_close("features", (raw - centre) * factor, encoder(values).double(), rtol=1e-5, atol=1e-6)
    assert_same("raw numbers", torch.from_numpy(encoder.raw(values.numpy())), raw)


@all_shapes
def test_examples_look_like_data(shape):
    standardised, limited = encoders(shape)
    generator = torch.Generator().manual_seed(0)
    features = standardised(standardised.examples(4000, generator))
    assert features.mean(0).abs().max() < 0.1
    assert (features.std(0) - 1).abs().max() < 0.1
    features = limited(limited.examples(4000, generator))
    assert features.abs().max() <= 1 + 1e-6
    assert features.min(0).values.max() < -0.9
    assert features.max(0).values.min() > 0.9


@pytest.mark.parametrize("space", [Box.unbounded((2,)), Box.bounded([0.0, 0.0], [1.0, np.inf])], ids=str)
def test_actions_without_bounds_are_refused(space):
    for make in (action_encoder, lambda space: head_of(space, WIDTH)):
        with pytest.raises(InvalidInput, match="has no bounds; give it the range of the data's actions"):
            make(space)


HELD = [(5.0, 5.0), (90.0, 90.0), (0.0, 0.0), (-1e30, -1e30), (0.1, 0.1), (1.0, 1.0 + 1e-12)]
"""Bounds without a range in float32."""


@pytest.mark.parametrize("bounds", HELD, ids=str)
def test_a_component_without_a_range_is_held(loud, bounds):
    """It adds nothing to features and loss, and its action is the constant to the last bit, in every form."""
    space = Box.bounded([-1.0, bounds[0]], [3.0, bounds[1]], "float64")
    head, constant = loud(head_of(space, WIDTH)), np.float32(bounds[0])
    hidden = draw(2, 7)
    prediction = head(hidden, segment(2, 7))
    assert (prediction.mode[..., 1] == float(constant)).all()
    assert prediction.mode[..., 0].std() > 0.05
    actions = torch.tensor([0.5, float(constant)]).expand(2, 7, 2)
    elsewhere = actions + torch.tensor([0.0, 7.0])
    assert_same("loss", prediction.loss(elsewhere), prediction.loss(actions))
    assert_close("loss", prediction.loss(actions), ((prediction.mode - actions)[..., 0] / 2).square() / 2)
    gradients = torch.autograd.grad(prediction.loss(elsewhere).mean(), head.linear.parameters())
    assert all((part[1] == 0).all() and part[0].abs().max() > 0 for part in gradients)
    features = action_encoder(space)(elsewhere)
    assert_same("features", features[..., 1], torch.zeros(2, 7))
    with torch.no_grad():
        stepper, x = head.stepper(), hidden[:, 0] - hidden[:, 0].mean(-1, keepdim=True)
        norm = loud(torch.nn.LayerNorm(WIDTH), seed=2)
        assert (stepper(norm(x))[:, 1] == float(constant)).all()
        assert (stepper.to_numpy(norm)(normalise(x.numpy(), norm.eps))[:, 1] == constant).all()


@pytest.mark.parametrize("limit", [3e38, 1e39], ids=["overflow", "infinite"])
def test_bounds_without_a_finite_range_in_float32_are_refused(limit):
    space = Box.bounded([0.0, -limit], [1.0, limit], "float64")
    with pytest.raises(InvalidInput, match="no finite range in float32"):
        action_encoder(space)


@pytest.mark.parametrize("limit", [1e-30, 1e-9, 1e9, 1.7e38], ids=str)
def test_bounds_of_any_size_are_mapped_to_one(loud, limit):
    space = Box.bounded([-1.0, -limit], [1.0, limit], "float64")
    head = loud(head_of(space, WIDTH))
    low, high = map(torch.from_numpy, space.bounds())
    mode = head(draw(4, 50) * 5, segment(4, 50)).mode
    assert ((mode >= low) & (mode <= high)).all()
    assert (mode / high).std((0, 1)).min() > 0.05
    assert_close("features", action_encoder(space)(low), torch.full((2,), -1.0))
    assert_close("features", action_encoder(space)(high), torch.full((2,), 1.0))
    assert head(draw(4, 50), segment(4, 50)).loss(high.expand(4, 50, 2)).isfinite().all()


def test_bounds_move_and_convert_with_the_module(loud):
    head = copy.deepcopy(make_head((3,), loud)).double()
    mode = head(draw(2, 5).double(), segment(2, 5)).mode
    assert mode.dtype == torch.float64
    assert head.to("meta").scale.low.device.type == "meta"


def test_statistics_of_another_shape_are_refused():
    """They would broadcast, and the agent could be saved and not loaded."""
    with pytest.raises(InvalidInput, match=r"the mean of observations has shape \(1,\); expected \(3,\)"):
        StandardisedBox(Box.unbounded((3,)), np.zeros(1), np.ones(3))
    with pytest.raises(InvalidInput, match=r"the std of observations has shape \(3,\); expected \(2, 3\)"):
        StandardisedBox(Box.unbounded((2, 3)), np.zeros((2, 3)), np.ones(3))


@all_shapes
def test_actions_beyond_the_bounds_count_as_at_them(loud, shape):
    head = make_head(shape, loud)
    prediction = head(draw(2, 7), segment(2, 7))
    for bound, beyond in zip(map(torch.from_numpy, head.scale.space.bounds()), (-3e38, 3e38), strict=True):
        at = bound.expand(2, 7, *shape)
        assert_close("loss", prediction.loss(torch.full_like(at, beyond)), prediction.loss(at), rtol=1e-5, atol=1e-6)
