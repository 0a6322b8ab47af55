"""The state of prefix attention, and the inputs that leave it unchanged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ScanState(NamedTuple):
    """The state (m, c, a) of a prefix, of constant size: float32, or float64 for float64 inputs.

    Attributes:
        m: running maximum of the scores, (batch, heads); -inf for the empty prefix.
        c: sum of exp(score - m), (batch, heads).
        a: sum of exp(score - m) * value, (batch, heads, dim).
    """

    m: Tensor
    c: Tensor
    a: Tensor


def initial_state(batch_size: int, heads: int, dim: int, device: torch.device | None = None) -> ScanState:
    """The state of the empty prefix: m = -inf, c = 0, a = 0."""
    return ScanState(
        torch.full((batch_size, heads), -torch.inf, device=device),
        torch.zeros(batch_size, heads, device=device),
        torch.zeros(batch_size, heads, dim, device=device),
    )


def to_dtype(state: ScanState, dtype: torch.dtype) -> ScanState:
    """The state in another dtype."""
    return ScanState(*(part.to(dtype) for part in state))


def accumulation_dtype(scores: Tensor, values: Tensor) -> torch.dtype:
    """The dtype of the state: float32, or float64 where an input is float64."""
    return torch.promote_types(torch.promote_types(scores.dtype, values.dtype), torch.float32)


def without_padding(scores: Tensor, values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Replaces padding by the operator's identity, the score -inf, and its values by zeros.

    Args:
        scores: (batch, heads, time).
        values: (batch, heads, time, dim).
        valid: (batch, time) bool, False for padding; None for no padding.
    """
    if valid is None:
        return scores, values
    return (
        scores.masked_fill(~valid.unsqueeze(1), -torch.inf),
        values.masked_fill(~valid[:, None, :, None], 0.0),
    )
