import pytest
import torch
from helpers import assert_close, assert_same

from aaren_rl.ops.linear_recurrence import linear_recurrence


def draw(time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 3, time, 4, generator=generator, dtype=torch.float64)
    # A factor of 0 is a reset, one of 1 is padding.
    return torch.where(a < 0.2, 0.0, torch.where(a > 0.8, 1.0, a)), b - 0.5


def draw_complex(time, seed=0):
    """Factors of modulus 1 at most; resets and padding as above."""
    (radius, real), (_, imaginary) = draw(time, seed), draw(time, seed + 10)
    turned = torch.polar(radius, 7 * imaginary)
    return torch.where(radius == 1, 1.0, turned), torch.complex(real, imaginary)


def loop(a, b):
    h, all_h = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        all_h.append(h)
    return torch.stack(all_h, 1)


@pytest.mark.parametrize("draw", [draw, draw_complex])
@pytest.mark.parametrize("time", [*range(1, 18), 63, 64, 65, 200])
def test_values_and_gradients_equal_the_loop(time, draw):
    parts = [part.requires_grad_() for part in draw(time)]
    wanted = draw(time, seed=1)[1]
    ours, theirs = linear_recurrence(*parts), loop(*parts)
    assert_close("h", ours, theirs)
    # The loss is real, so that both parts of a complex number count.
    losses = [(h * wanted).sum() for h in (ours, theirs)]
    losses = [loss.real + 2 * loss.imag if loss.is_complex() else loss for loss in losses]
    gradients = [torch.autograd.grad(loss, parts, allow_unused=True) for loss in losses]
    for name, computed, expected in zip("ab", *gradients, strict=True):
        # The first factor multiplies no state, so for one token the loop's gradient by a is None.
        assert_close(f"d_{name}", computed, torch.zeros_like(computed) if expected is None else expected)


def test_factors_of_one_sum_up_and_factors_of_zero_forget():
    b = draw(50)[1]
    assert_close("sums", linear_recurrence(torch.ones_like(b), b), b.cumsum(1))
    assert_same("last tokens", linear_recurrence(torch.zeros_like(b), b), b)


def test_arguments_are_not_changed():
    parts = draw(9)
    copies = [part.clone() for part in parts]
    linear_recurrence(*parts)
    for name, part, copy in zip("ab", parts, copies, strict=True):
        assert_same(name, part, copy)
