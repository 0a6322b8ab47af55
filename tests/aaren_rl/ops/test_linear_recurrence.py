import pytest
import torch

from aaren_rl.ops.linear_recurrence import linear_recurrence


def draw(time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 3, time, 4, generator=generator, dtype=torch.float64)
    # Resets and padding are among the factors.
    return torch.where(a < 0.2, 0.0, torch.where(a > 0.8, 1.0, a)), b - 0.5


def loop(a, b):
    h, all_h = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        all_h.append(h)
    return torch.stack(all_h, 1)


@pytest.mark.parametrize("time", [*range(1, 18), 63, 64, 65, 200])
def test_values_and_gradients_are_the_loops(time):
    parts = [part.requires_grad_() for part in draw(time)]
    wanted = draw(time, seed=1)[1]
    ours, theirs = linear_recurrence(*parts), loop(*parts)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((h * wanted).sum(), parts, allow_unused=True) for h in (ours, theirs)]
    for own, expected in zip(*gradients, strict=True):
        # The first factor meets no state.
        torch.testing.assert_close(own, torch.zeros_like(own) if expected is None else expected)


def test_factors_of_one_sum_up_and_factors_of_nought_forget():
    b = draw(50)[1]
    torch.testing.assert_close(linear_recurrence(torch.ones_like(b), b), b.cumsum(1))
    assert torch.equal(linear_recurrence(torch.zeros_like(b), b), b)


def test_the_given_tensors_are_not_changed():
    parts = draw(9)
    copies = [part.clone() for part in parts]
    linear_recurrence(*parts)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))
