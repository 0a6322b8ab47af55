"""Steppers of Aaren's options and of the short convolution: mixer = torch stepper = NumPy stepper."""

import numpy as np
import pytest
import torch
from torch import nn

from aaren_rl import mixers
from aaren_rl.mixers.aaren import stepper as aaren_stepper
from aaren_rl.ops.numpy_layers import normalise

WIDTH = 12

SPECS = [
    "aaren(forget=true)",
    "aaren(rotary=1)",
    "aaren(rotary=0.5, recency=true)",
    "aaren(gate=true)",
    "aaren(lasting=true, recency=true)",
    "aaren(conv=3)",
    "aaren(conv=2, recency=true)",
    "gated-aaren",
]


def make(spec, heads, loud):
    """A mixer in float64 and a layer norm before it that changes all it sees."""
    norm = loud(nn.LayerNorm(WIDTH), seed=1, std=0.6)
    return loud(mixers.build(spec, WIDTH, heads)), norm


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 1), (3, 3), (3, 1)])
def test_all_three_forms_add_the_same(loud, spec, heads, tokens, outputs):
    mixer, norm = make(spec, heads, loud)
    with torch.no_grad():
        in_torch = mixer.stepper(norm, tokens, outputs)
    in_numpy = in_torch.to_numpy(norm)
    generator = np.random.default_rng(0)
    state, states = mixer.initial_state(2), in_torch.start.repeat(2, 1)
    rows = np.tile(in_torch.start.numpy(), (2, 1))
    for step in range(40):
        x = generator.normal(size=(2 * tokens, WIDTH)).astype(np.float32)
        live = np.ones((2, tokens), np.float32)
        # Only the first step of an episode misses a token.
        live[:, 0] = tokens == 1 or step > 0
        given = torch.from_numpy(live) if tokens > 1 else None
        with torch.no_grad():
            normed = norm(torch.from_numpy(x))
            mixed, state = mixer(normed.view(2, tokens, WIDTH), state, None, None if given is None else given > 0)
            expected, states = in_torch(normed, torch.zeros(2 * outputs, WIDTH), states, given)
        seen = live[:, -outputs:].reshape(-1) > 0
        torch.testing.assert_close(expected[seen], mixed[:, -outputs:].flatten(0, 1)[seen], rtol=1e-5, atol=2e-5)
        assert expected.isfinite().all()
        centred, after = x - x.mean(1, keepdims=True), np.full_like(rows, np.nan)
        added = in_numpy(normalise(centred, norm.eps), rows, after, live if tokens > 1 else None)
        rows = after
        assert (added.dtype, added.shape) == (np.float32, (2 * outputs, WIDTH))
        expected = expected.numpy()
        np.testing.assert_allclose(added, expected - expected.mean(1, keepdims=True), rtol=0, atol=3e-5)


def test_many_steps_lose_no_digits(loud):
    """The state turns step by step; a constant token makes it the sum of a geometric series."""
    mixer, norm = make("aaren(rotary=1)", 1, loud)
    with torch.no_grad():
        in_torch = mixer.stepper(norm, 1, 1)
    in_numpy = in_torch.to_numpy(norm)
    x = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    normed = normalise(x - x.mean(), norm.eps)
    rows = in_torch.start.numpy()[None].copy()
    steps = 10_000
    for _ in range(steps):
        in_numpy(normed, rows, rows, None)
    token = (normed @ in_numpy.project + in_numpy.project_bias)[0, :WIDTH].astype(np.float64).view(np.complex128)
    angle = mixer.log_frequency.detach().exp().double().numpy()[0]
    series = (1 - np.exp(1j * angle * steps)) / (1 - np.exp(1j * angle))
    np.testing.assert_allclose(rows[0, :WIDTH].view(np.complex128), token * series / steps, rtol=1e-9, atol=1e-9)
    score = (normed @ in_numpy.project + in_numpy.project_bias)[0, WIDTH : WIDTH + 1]
    np.testing.assert_allclose(rows[0, WIDTH:], score + np.log(steps), rtol=1e-9)


@pytest.mark.parametrize("spec", ["aaren(conv=3)", "aaren(conv=3, recency=true)"])
def test_scores_behind_a_convolution_stay_in_their_bounds(loud, spec):
    """The bounded form takes scores relative to the upper end of a range that they must not leave."""
    for seed in range(20):
        norm = loud(nn.LayerNorm(WIDTH), seed=seed, std=1.0)
        mixer = loud(mixers.build(spec, WIDTH, 2), seed=seed + 100)
        with torch.no_grad():
            inner = mixer.stepper(norm, 1, 1).inner
            if not inner.bounded:
                mixer.mixer.query_token.mul_(0.01)
                mixer.mixer.query.bias.mul_(0.01)
                inner = mixer.stepper(norm, 1, 1).inner
            x = norm(torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(seed)) ** 3)
            rows = mixer._convolve(x[None], torch.zeros(1, 2, WIDTH), None, None)[0] @ inner.project.T
            scores = (rows + inner.project_bias)[..., [inner.dim + 1, 2 * inner.dim + 3]]
        assert inner.bounded
        assert scores.max() <= 1e-4
        assert scores.min() >= -aaren_stepper.NARROW
