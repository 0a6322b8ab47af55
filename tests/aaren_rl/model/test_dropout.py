import math

import pytest
import torch

from aaren_rl.model.dropout import Dropout

PROBABILITIES = [0.1, 0.25, 0.5, 0.9]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws its own numbers and leaves those of the others alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_the_right_share_is_dropped_and_the_mean_is_kept(probability):
    n = 1_000_000
    kept = Dropout(probability)(torch.ones(n))
    dropped = int((kept == 0).sum())
    # Five standard deviations of a binomial distribution.
    assert abs(dropped - n * probability) < 5 * math.sqrt(n * probability * (1 - probability))
    assert kept.double().mean() == pytest.approx(1.0, abs=5 * math.sqrt(probability / (1 - probability) / n))


@pytest.mark.parametrize("probability", PROBABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_scaled_by_one_over_the_share_kept(probability, dtype):
    x = torch.randn(40, 25).to(dtype)
    y = Dropout(probability)(x)
    assert y.dtype == dtype
    kept = y != 0
    precision = {torch.float32: 1e-6, torch.float64: 1e-15, torch.bfloat16: 1e-2}[dtype]
    # The probability is a multiple of 2^-16.
    exact = round(probability * 2**16) / 2**16
    torch.testing.assert_close(y[kept], x[kept] / (1 - exact), rtol=precision, atol=0)
    assert 0 < kept.sum() < x.numel()


def test_neighbours_are_dropped_independently():
    """Each of the four that share one random number, and any two up to eight apart."""
    n = 400_000
    dropped = (Dropout(0.5)(torch.ones(n)) == 0).double() * 2 - 1
    for lag in range(1, 9):
        assert abs(float((dropped[lag:] * dropped[:-lag]).sum())) < 5 * math.sqrt(n)
    for lane in range(4):
        assert abs(float(dropped[lane::4].sum())) < 5 * math.sqrt(n / 4)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5,), (7, 1), (3, 3, 3), (1, 1001)])
def test_each_element_of_any_shape_can_be_dropped(shape):
    dropout, share = Dropout(0.5), torch.zeros(shape)
    for _ in range(200):
        share += dropout(torch.ones(shape)) == 0
    assert ((share > 50) & (share < 150)).all()


def test_no_elements_are_served_too():
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_onto", [False, True])
def test_the_gradient_is_the_mask_of_the_forward(dtype, with_onto):
    x = torch.rand(37, 9).add(0.5).to(dtype).requires_grad_()
    onto = torch.randn(37, 9).to(dtype).requires_grad_() if with_onto else None
    random = torch.get_rng_state()
    y = Dropout(0.3)(x, onto)
    torch.set_rng_state(random)
    mask = (Dropout(0.3)(torch.ones(37, 9, dtype=dtype))).detach()
    upstream = torch.randn(37, 9).to(dtype)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream * mask, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert 0.2 < (mask == 0).double().mean() < 0.4
    if with_onto:
        assert torch.equal(onto.grad, upstream)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_added_onto_another(dtype):
    x, onto = torch.randn(37, 9).to(dtype), torch.randn(37, 9).to(dtype)
    torch.manual_seed(4)
    expected = onto.double() + Dropout(0.3)(x).double()
    torch.manual_seed(4)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    added = Dropout(0.3)(x, onto=onto)
    assert added.dtype == dtype
    torch.testing.assert_close(added.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_evaluation_nothing_is_dropped_and_nothing_drawn(dtype):
    x, onto = torch.randn(33).to(dtype), torch.randn(33).to(dtype)
    dropout, random = Dropout(0.9).eval(), torch.get_rng_state()
    assert torch.equal(dropout(x), x)
    assert torch.equal(dropout(x, onto=onto), onto + x)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_probability_of_zero_drops_nothing_in_training():
    x, onto = torch.randn(33), torch.randn(33)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.0)(x, onto=onto), onto + x)


def test_torchs_seed_and_state_decide():
    dropout, x = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    state = torch.get_rng_state()
    third = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), third)
    torch.manual_seed(2)
    assert not torch.equal(dropout(x), first)


def test_arguments_of_any_strides_stay_as_they_are():
    x, onto = torch.randn(30, 20).t(), torch.randn(30, 20).t()
    before, onto_before = x.clone(), onto.clone()
    y = Dropout(0.5)(x, onto) - onto
    assert torch.equal(x, before)
    assert torch.equal(onto, onto_before)
    kept = (y.abs() > 1e-6).float()
    torch.testing.assert_close(y, kept * 2 * x, rtol=1e-4, atol=1e-5)


def test_a_probability_next_to_one_drops_everything_or_nearly():
    """ModelConfig takes any probability below 1."""
    assert (Dropout(0.999999)(torch.ones(1000)) == 0).float().mean() > 0.99
