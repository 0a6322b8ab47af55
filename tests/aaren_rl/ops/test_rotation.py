import math
from fractions import Fraction

import pytest
import torch

from aaren_rl.ops.rotation import phases, rotate


@pytest.mark.parametrize("place", [0, 1, 17, 10_000, 100_000])
def test_late_places_keep_their_digits(place):
    """Against exact arithmetic: a frequency in float32 is a fraction, and so is its multiple."""
    frequencies = torch.tensor([3.0, 0.7, 0.0245], dtype=torch.float32)
    found = phases(frequencies, place)[place]
    turn = Fraction(math.pi) * 2
    for frequency, phase in zip(frequencies.tolist(), found.tolist(), strict=True):
        angle = float(Fraction(frequency) * place % turn)
        assert abs(phase - complex(math.cos(angle), math.sin(angle))) < 3e-7


def test_neighbours_turn_as_one_complex_number():
    pairs = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = rotate(pairs, torch.polar(torch.ones_like(angles), angles))
    x, y = pairs[..., ::2], pairs[..., 1::2]
    torch.testing.assert_close(turned[..., ::2], x * angles.cos() - y * angles.sin())
    torch.testing.assert_close(turned[..., 1::2], x * angles.sin() + y * angles.cos())


def test_half_precision_is_turned_in_float32():
    pairs = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    phase = phases(torch.tensor([0.5, 1.0, 2.0]), 3)[3]
    turned = rotate(pairs, phase)
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, rotate(pairs.float(), phase), rtol=0, atol=0)


def test_the_gradient_of_a_frequency_is_that_of_its_angles():
    frequencies = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    factors = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (phases(frequencies, 5).real * factors).sum().backward()
    place = torch.arange(6, dtype=torch.float64).unsqueeze(1)
    expected = (-(place * frequencies.detach()).sin() * place * factors).sum(0)
    torch.testing.assert_close(frequencies.grad, expected)
