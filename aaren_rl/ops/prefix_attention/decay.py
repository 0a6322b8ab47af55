"""Decay of earlier weights, for every form of prefix attention: scores are lowered beforehand.

Token t multiplies the weights of all earlier tokens by f_t. Let G_t be the sum of ``log f`` up to t. At token k, token
j then has the weight ``exp(s_j + G_k - G_j)``. All tokens share G_k, and softmax ignores it. So this is prefix
attention without decay, to the scores ``s_j - G_j``.

G grows along a row, and large scores have few digits. So rows are cut into pieces, with scores relative to the end of
their piece, ``s_j + G_end - G_j``. In float32 a score is off by up to 6e-8 times the sum of ``log f`` over a piece:
2e-6 where gates keep 0.97, and 2e-3 where they leave exp(-50) at every second token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aaren_rl.ops.prefix_attention.state import ScanState

PIECE = 1024
"""Tokens of a piece. Shorter pieces keep more digits and take more time."""

Attend = Callable[[Tensor, Tensor, ScanState | None, Tensor, Tensor | None], tuple[Tensor, ScanState]]


def attend_in_pieces(
    attend: Attend,
    scores: Tensor,
    values: Tensor,
    state: ScanState | None,
    reset: Tensor,
    valid: Tensor | None,
    log_decay: Tensor,
) -> tuple[Tensor, ScanState]:
    """Outputs and the final state; arguments as in `prefix_attention`, time 1 or more.

    Args:
        attend: prefix attention without decay, of scores, values, state, reset and valid.
        scores: (batch, heads, time).
        values: (batch, heads, time, dim).
        state: before the first token.
        reset: (batch, time) bool.
        valid: (batch, time) bool.
        log_decay: (batch, heads, time), at most 0.
    """
    # Autocast gives scores in half precision; the sum needs float32 at least.
    dtype = torch.promote_types(torch.promote_types(scores.dtype, log_decay.dtype), torch.float32)
    scores, log_decay = scores.to(dtype), log_decay.to(dtype)
    if valid is not None:
        log_decay = log_decay.masked_fill(~valid.unsqueeze(1), 0.0)
    outputs = []
    # Not slices: the derivative of each would fill the whole row with zeros.
    cut = [torch.split(whole, PIECE, 2) for whole in (scores, values, log_decay)]
    resets = torch.split(reset, PIECE, 1)
    reals = [None] * len(resets) if valid is None else torch.split(valid, PIECE, 1)
    for score, value, log, begins, real in zip(*cut, resets, reals, strict=True):
        total = log.cumsum(-1)
        lowered = score + (total[..., -1:] - total)
        state = None if state is None else decayed(state, total[..., -1])
        mixed, state = attend(lowered, value, state, begins, real)
        outputs.append(mixed)
    assert state is not None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2), state


def decayed(state: ScanState, log_decay: Tensor) -> ScanState:
    """The state with all weights multiplied by exp(log_decay), (batch, heads)."""
    # The maximum takes the value of the decay, the sums its derivative: no form differentiates the maximum.
    ones = torch.exp(log_decay - log_decay.detach())
    return ScanState(state.m + log_decay.detach(), state.c * ones, state.a * ones.unsqueeze(-1))
