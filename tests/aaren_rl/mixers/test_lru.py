"""The linear recurrent unit against its formula, in real numbers, token by token."""

import math

import pytest
import torch
from helpers import draw_segment

from aaren_rl.mixers import LRU

WIDTH = 6


def formula(mixer, x, reset, valid):
    """Outputs by (row, token); real and imaginary parts apart."""
    radius = torch.exp(-torch.exp(mixer.log_decay))
    cos, sin = torch.cos(torch.exp(mixer.log_phase)), torch.sin(torch.exp(mixer.log_phase))
    outputs = {}
    for row in range(x.shape[0]):
        real = imaginary = torch.zeros(WIDTH, dtype=x.dtype)
        for t in range(x.shape[1]):
            if reset[row, t]:
                real = imaginary = torch.zeros(WIDTH, dtype=x.dtype)
            if not valid[row, t]:
                continue
            added = (mixer.input.weight @ x[row, t]).view(2, WIDTH) * torch.exp(mixer.log_scale)
            real, imaginary = (
                radius * (cos * real - sin * imaginary) + added[0],
                radius * (sin * real + cos * imaginary) + added[1],
            )
            read = mixer.output.weight @ torch.cat([real, imaginary]) + mixer.output.bias
            outputs[row, t] = read + mixer.skip * x[row, t]
    return outputs


def draw(time, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)


def test_outputs_and_gradients_are_the_formula(loud, assert_is_formula):
    mixer, generator = loud(LRU(WIDTH, 1)).double(), torch.Generator().manual_seed(4)
    reset, valid = (torch.rand(2, 90, generator=generator) < share for share in (0.03, 0.85))
    assert_is_formula(mixer, lambda x: formula(mixer, x, reset, valid), draw(90), reset, valid)


def test_eigenvalues_begin_on_the_ring_of_the_source():
    torch.manual_seed(0)
    eigenvalues = LRU(4000, 1).eigenvalues.detach()
    radius = eigenvalues.abs()
    assert 0.9 <= radius.min() < 0.901
    assert 0.998 < radius.max() <= 0.9991
    # Uniform by area, so in the squared radius, and in all directions.
    share = (radius.square() - 0.81) / (0.999**2 - 0.81)
    assert abs(share.mean() - 0.5) < 5 / math.sqrt(12 * 4000)
    assert abs(eigenvalues.mean()) < 5 / math.sqrt(4000)


def test_the_state_begins_as_large_as_its_input():
    """White noise of unit variance keeps it, by sum |l|^(2 k) g^2 = 1."""
    torch.manual_seed(0)
    mixer = LRU(64, 1)
    with torch.no_grad():
        mixer.input.weight.copy_(torch.eye(64).repeat(2, 1) * 0.5**0.5)
        _, h = mixer(torch.randn(200, 2000, 64))
    squared = h.view(200, 2, 64).square().sum(1).mean(0)
    # Means of 200 numbers of mean 1 and variance 2 at most: 5 standard errors.
    assert abs(squared.mean() - 1) < 0.07
    assert 0.5 < squared.min() < squared.max() < 1.5


def test_float32_stays_right_over_thousands_of_tokens():
    torch.manual_seed(0)
    mixer, x = LRU(WIDTH, 1).double(), draw(3000)
    with torch.no_grad():
        expected, _ = mixer(x)
        outputs, state = mixer.float()(x.float())
    assert state.dtype == torch.float32
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=2e-5)


def test_under_autocast_the_state_keeps_full_precision(loud):
    mixer, x = loud(LRU(WIDTH, 1)), draw(40).float()
    expected, expected_after = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, after = mixer(x)
        stepped, stepped_after = mixer.step(x[:, 0], mixer.initial_state(2))
    assert (after.dtype, stepped_after.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(after, expected_after, rtol=0, atol=0.05)
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(stepped.float(), outputs[:, 0].float(), rtol=0, atol=0.1)


@pytest.mark.slow
def test_it_is_trained_where_the_loss_is_compiled(make_model):
    model, segment, gradients = make_model(mixer="lru", blocks=1), draw_segment(6, batch=3), []
    for loss in (torch.compile(model.loss, backend="aot_eager"), model.loss):
        model.zero_grad()
        loss(segment)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for compiled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
