"""Rotation of pairs of numbers by angles that grow with a token's place."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def phases(frequencies: Tensor, places: int) -> Tensor:
    """Unit complex numbers ``exp(i * frequency * place)`` for the places 0 up to `places`.

    Angles are taken modulo a turn in float64: in float32, place 10,000 would be off by some 1e-3.

    Args:
        frequencies: radians per place, any shape.
        places: the last place.

    Returns:
        Complex, (places + 1, *frequencies.shape), in the precision of the frequencies, float32 at least.
    """
    place = torch.arange(places + 1, device=frequencies.device, dtype=torch.float64)
    angles = place.view(-1, *[1] * frequencies.ndim) * frequencies.double()
    angles = angles.remainder(2 * math.pi).to(torch.promote_types(frequencies.dtype, torch.float32))
    # Not torch.polar, whose derivative costs as much again as cosine and sine.
    return torch.complex(angles.cos(), angles.sin())


def rotate(pairs: Tensor, phase: Tensor) -> Tensor:
    """Multiplies numbers, taken as pairs of a real and an imaginary part, by unit complex numbers.

    Args:
        pairs: (..., 2 * n); neighbours are a pair.
        phase: complex, (..., n).

    Returns:
        Like `pairs`, in the precision of the phases.
    """
    numbers = torch.view_as_complex(torch.unflatten(pairs.to(phase.real.dtype), -1, (-1, 2)).contiguous())
    return torch.view_as_real(numbers * phase).flatten(-2)
