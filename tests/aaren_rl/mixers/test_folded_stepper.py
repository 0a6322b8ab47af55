"""Recurrences folded for acting, in torch and in NumPy, against the mixer's forward pass in float64."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from aaren_rl import mixers
from aaren_rl.mixers.base.folded_stepper import NUMPY, TORCH, FoldedStepper
from aaren_rl.ops.numpy_layers import normalise

WIDTH = 12
NAMES = ["gated-deltanet", "linear", "lru", "mamba2", "mlstm", "performer", "rfa", "rotary-linear"]

every = pytest.mark.parametrize("name", NAMES)


def build(name, loud, heads=3):
    mixer = loud(mixers.build(name, WIDTH, heads))
    if name == "lru":
        # Moduli near 1, so that the past counts.
        mixer.log_decay.data.sub_(2.0)
    return mixer


def draw(steps, batch, tokens):
    """Tokens, and which of them are there: none is missing from most steps, a few from the first and from one other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, steps, tokens, WIDTH, generator=generator)
    live = torch.ones(batch, steps, tokens)
    if tokens > 1:
        live[:, 0, 0] = live[0, 5, 1] = live[1, 5, 0] = 0
    return x, live


def forward(mixer, norm, x, live):
    """Mixed tokens in float64, 0 where a token is missing."""
    valid = live.flatten(1) > 0
    mixed, _ = copy.deepcopy(mixer).double()(copy.deepcopy(norm).double()(x.double()).flatten(1, 2), valid=valid)
    return mixed.masked_fill(~valid.unsqueeze(-1), 0.0).view(x.shape)


@every
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 1), (3, 3), (3, 1)])
def test_both_libraries_add_what_forward_does(loud, name, heads, tokens, outputs):
    mixer, norm = build(name, loud, heads), loud(nn.LayerNorm(WIDTH), seed=1, std=0.6)
    x, live = draw(80, 2, tokens)
    onto = torch.randn(2, 80, outputs, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward(mixer, norm, x, live)[:, :, -outputs:]
        in_torch = mixer.stepper(norm, tokens, outputs)
        assert isinstance(in_torch, FoldedStepper)
        in_numpy = in_torch.to_numpy(norm)
        states, rows = in_torch.start.repeat(2, 1), np.tile(in_torch.start.numpy(), (2, 1))
        scale = expected.std().item()
        for step in range(80):
            here = None if live[:, step].all() else live[:, step]
            there = (live[:, step, -outputs:] > 0).unsqueeze(-1)
            added, states = in_torch(norm(x[:, step]).flatten(0, 1), onto[:, step].flatten(0, 1), states, here)
            added = torch.where(there, added.view(2, outputs, WIDTH) - onto[:, step], 0.0)
            torch.testing.assert_close(added.double(), expected[:, step], rtol=0, atol=3e-4 * scale)
            token = x[:, step].flatten(0, 1).numpy()
            after = np.full_like(rows, np.nan)
            with np.errstate(all="raise", under="ignore"):
                normed = normalise(token - token.mean(1, keepdims=True), norm.eps)
                mixed = in_numpy(normed, rows, after, None if here is None else here.numpy())
            rows = after
            assert (mixed.dtype, mixed.shape) == (np.float32, (2 * outputs, WIDTH))
            np.testing.assert_allclose(mixed.mean(1), 0.0, rtol=0, atol=1e-6 + 1e-6 * scale)
            centred = expected[:, step] - expected[:, step].mean(-1, keepdim=True)
            mixed = torch.where(there, torch.from_numpy(mixed).view(2, outputs, WIDTH), 0.0)
            torch.testing.assert_close(mixed.double(), centred, rtol=0, atol=3e-4 * scale)
    np.testing.assert_allclose(rows, states, rtol=1e-3, atol=1e-3)
    assert (states.dtype, rows.dtype) == (torch.float64, np.float64)
    assert states.isfinite().all()


def test_a_million_tokens_into_an_episode_linear_still_takes_the_mean():
    """Sums of a million tokens are put in place, and 2,000 more are followed. All features are 1."""
    mixer, norm, before, more = mixers.build("linear", 8, 2), nn.LayerNorm(8), 1_000_000, 2_000
    with torch.no_grad():
        for layer in (mixer.query, mixer.key):
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in (mixer.value, mixer.output):
            layer.weight.copy_(torch.eye(8))
            layer.bias.zero_()
        stepper, zero = mixer.stepper(norm, 1, 1), torch.zeros(1, 8)
        token = torch.linspace(-1.0, 1.0, 8)[None]
        _, state = stepper(zero, zero, stepper.start[None], None)
        state = state * before
        for _ in range(more):
            mixed, state = stepper(token, zero, state, None)
    torch.testing.assert_close(mixed.double(), token.double() * more / (before + more), rtol=1e-5, atol=0)


@every
def test_later_changes_of_the_weights_do_not_count(loud, name):
    mixer, norm = build(name, loud), nn.LayerNorm(WIDTH)
    x, zero = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)), torch.zeros(2, WIDTH)
    with torch.no_grad():
        stepper = mixer.stepper(norm, 1, 1)
        before, _ = stepper(x, zero, stepper.start.repeat(2, 1), None)
        loud(mixer, seed=9)
        after, _ = stepper(x, zero, stepper.start.repeat(2, 1), None)
    assert torch.equal(before, after)
    assert not any(buffer.requires_grad for buffer in stepper.buffers())


@every
def test_a_stepper_made_with_gradients_is_copied_and_pickled_in_both_forms(loud, name):
    norm = nn.LayerNorm(WIDTH)
    stepper = copy.deepcopy(build(name, loud).stepper(norm, 1, 1))
    in_numpy = stepper.to_numpy(norm)
    x, row = np.ones((1, WIDTH), np.float32), stepper.start.numpy()[None]
    after, other = np.empty_like(row), np.empty_like(row)
    expected = in_numpy(x, row, after, None)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(in_numpy))(x, row, other, None), expected)
    np.testing.assert_array_equal(other, after)


@every
def test_huge_tokens_give_finite_states_in_numpy(loud, name):
    """Weights so large that every gate is shut or open."""
    mixer, norm = build(name, loud), nn.LayerNorm(WIDTH)
    with torch.no_grad():
        for layer in mixer.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(300.0)
        stepper = mixer.stepper(norm, 1, 1)
        in_numpy = stepper.to_numpy(norm)
    rows = np.tile(stepper.start.numpy(), (2, 1))
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(2, WIDTH)).astype(np.float32)
        after = np.empty_like(rows)
        with np.errstate(all="raise", under="ignore"):
            mixed = in_numpy(normalise(x - x.mean(1, keepdims=True), norm.eps), rows, after, None)
        rows = after
        assert np.isfinite(mixed).all()
        assert np.isfinite(rows).all()


@pytest.mark.parametrize("x", [-800.0, -40.0, -1.0, 0.0, 2.0, 40.0, 800.0])
@pytest.mark.parametrize("function", ["sigmoid", "log_sigmoid", "softplus"])
def test_activations_are_torchs_in_both_libraries(function, x):
    theirs = {"sigmoid": torch.sigmoid, "log_sigmoid": nn.functional.logsigmoid, "softplus": nn.functional.softplus}
    expected = theirs[function](torch.tensor([x], dtype=torch.float64)).numpy()
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(getattr(NUMPY, function)(np.array([x])), expected, rtol=1e-12, atol=1e-16)
    ours = getattr(TORCH, function)(torch.tensor([x], dtype=torch.float64))
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-16)
