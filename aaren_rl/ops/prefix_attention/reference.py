"""The forms that torch differentiates: a loop over tokens, a loop over chunks, and a tree.

The loop is the ground truth of every other form. All three return the states of all prefixes as one `ScanState`
with a time dimension: m and c (batch, heads, time), a (batch, heads, time, dim). "The paper" is "Attention as an RNN"
(Feng et al. 2024, arXiv 2405.13956).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aaren_rl.ops.prefix_attention.state import (
    ScanState,
    accumulation_dtype,
    initial_state,
    to_dtype,
    without_padding,
)

CHUNK = 64
"""Tokens per chunk in the blockwise form."""


def recurrent(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    """States of all prefixes, one token after another (paper, section 3.1).

    Token t has the score s_t and the value v_t. It changes the state (m, c, a) to::

        m_t = max(m_{t-1}, s_t)
        c_t = c_{t-1} exp(m_{t-1} - m_t) + exp(s_t - m_t)
        a_t = a_{t-1} exp(m_{t-1} - m_t) + exp(s_t - m_t) v_t

    This is `combine` of the state so far and the token's state (s_t, 1, v_t). A reset drops the state so far.

    Args:
        scores: (batch, heads, time), -inf for padding.
        values: (batch, heads, time, dim), finite.
        state: the state before the first token.
        reset: (batch, 1, time) bool, True where an episode starts.
    """
    tokens = _token_states(scores, values)
    prefixes = []
    for t in range(scores.shape[-1]):
        token = _at(tokens, t)
        state = _where(reset[:, :, t].expand_as(token.m), token, combine(state, token))
        prefixes.append(state)
    return ScanState(*(torch.stack(parts, dim=2) for parts in zip(*prefixes, strict=True)))


def combine(left: ScanState, right: ScanState) -> ScanState:
    """The state of two adjacent pieces, left before right (associative; paper, section 3.2)."""
    # No output depends on m, so no gradient needs to flow through it.
    m = torch.maximum(left.m, right.m).detach()
    # The empty prefix has m = -inf, and -inf - -inf is NaN.
    finite_m = m.masked_fill(m == -torch.inf, 0.0)
    weight_left, weight_right = torch.exp(left.m - finite_m), torch.exp(right.m - finite_m)
    return ScanState(
        m,
        left.c * weight_left + right.c * weight_right,
        left.a * weight_left.unsqueeze(-1) + right.a * weight_right.unsqueeze(-1),
    )


def read_out(state: ScanState) -> Tensor:
    """The attention output a / c of a state, zero for the empty prefix."""
    empty = state.c == 0
    return (state.a / state.c.masked_fill(empty, 1.0).unsqueeze(-1)).masked_fill(empty.unsqueeze(-1), 0.0)


def blockwise(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    """States of all prefixes, one chunk after another in O(chunk) memory (paper, appendix A; see `recurrent`)."""
    chunks = []
    for start in range(0, scores.shape[-1], CHUNK):
        chunk = slice(start, start + CHUNK)
        prefixes = _prepend(state, *_chunk_prefixes(scores[..., chunk], values[..., chunk, :], reset[..., chunk]))
        chunks.append(prefixes)
        state = _at(prefixes, -1)
    return ScanState(*(torch.cat(parts, dim=2) for parts in zip(*chunks, strict=True)))


def parallel(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    """States of all prefixes by the Hillis-Steele scan (paper, algorithm 1; see `recurrent`)."""
    prefixes, interrupted = _hillis_steele(_token_states(scores, values), reset.expand_as(scores))
    return _prepend(state, prefixes, interrupted)


FORMS: dict[str, Callable[[Tensor, Tensor, ScanState, Tensor], ScanState]] = {
    "recurrent": recurrent,
    "blockwise": blockwise,
    "parallel": parallel,
}


def attend(
    scores: Tensor, values: Tensor, state: ScanState | None, reset: Tensor, valid: Tensor | None, form: str
) -> tuple[Tensor, ScanState]:
    """Outputs and the final state by one of `FORMS`; arguments as in `prefix_attention`, time 1 or more."""
    batch_size, heads, _, dim = values.shape
    dtype = accumulation_dtype(scores, values)
    before = to_dtype(state or initial_state(batch_size, heads, dim, scores.device), dtype)
    finite_scores, finite_values = without_padding(scores.to(dtype), values.to(dtype), valid)
    prefixes = FORMS[form](finite_scores, finite_values, before, reset.unsqueeze(1))
    return read_out(prefixes).to(values.dtype), _at(prefixes, -1)


def _token_states(scores: Tensor, values: Tensor) -> ScanState:
    """The state (s, 1, v) of each token alone; the identity where the score is -inf."""
    real = (scores != -torch.inf).to(scores.dtype)
    # exp(s - m) with m = s detached has the value 1 and the derivative of exp(s).
    weight = torch.exp((scores - scores.detach()).masked_fill(real == 0, 0.0)) * real
    return ScanState(scores.detach(), weight, weight.unsqueeze(-1) * values)


def _chunk_prefixes(scores: Tensor, values: Tensor, reset: Tensor) -> tuple[ScanState, Tensor]:
    """States of a chunk's prefixes as one matrix product, and where a reset lies between its start and the token."""
    segment = reset.cumsum(-1)  # (batch, 1, chunk)
    time = scores.shape[-1]
    earlier = torch.ones(time, time, dtype=torch.bool, device=scores.device).tril()
    visible = earlier & (segment.unsqueeze(-1) == segment.unsqueeze(-2))  # (batch, 1, chunk, chunk)
    table = scores.unsqueeze(-2).masked_fill(~visible, -torch.inf)  # (batch, heads, chunk, chunk)
    m = table.detach().amax(-1)
    weights = torch.exp(table - m.masked_fill(m == -torch.inf, 0.0).unsqueeze(-1))
    return ScanState(m, weights.sum(-1), weights @ values), segment > 0


def _hillis_steele(states: ScanState, interrupted: Tensor) -> tuple[ScanState, Tensor]:
    """Inclusive prefix scan over dimension 2 in log2(time) rounds, stopped by resets.

    Each round combines every position with the one `offset` before it. Tokens that the state at t covers::

        offset   t=0   t=1   t=2   t=3
        start     0     1     2     3
        1         0    0-1   1-2   2-3
        2         0    0-1   0-2   0-3
    """
    time = interrupted.shape[-1]
    offset = 1
    while offset < time:
        left = ScanState(states.m[..., :-offset], states.c[..., :-offset], states.a[..., :-offset, :])
        right = ScanState(states.m[..., offset:], states.c[..., offset:], states.a[..., offset:, :])
        stop = interrupted[..., offset:]
        joined = _where(stop, right, combine(left, right))
        states = ScanState(
            torch.cat([states.m[..., :offset], joined.m], -1),
            torch.cat([states.c[..., :offset], joined.c], -1),
            torch.cat([states.a[..., :offset, :], joined.a], -2),
        )
        interrupted = torch.cat([interrupted[..., :offset], stop | interrupted[..., :-offset]], -1)
        offset *= 2
    return states, interrupted


def _prepend(before: ScanState, prefixes: ScanState, interrupted: Tensor) -> ScanState:
    """Puts the state before a piece in front of the piece's prefixes, except those after a reset."""
    before = ScanState(before.m.unsqueeze(-1), before.c.unsqueeze(-1), before.a.unsqueeze(-2))
    return _where(interrupted.expand_as(prefixes.m), prefixes, combine(before, prefixes))


def _at(states: ScanState, index: int) -> ScanState:
    return ScanState(states.m[:, :, index], states.c[:, :, index], states.a[:, :, index])


def _where(condition: Tensor, chosen: ScanState, other: ScanState) -> ScanState:
    return ScanState(
        torch.where(condition, chosen.m, other.m),
        torch.where(condition, chosen.c, other.c),
        torch.where(condition.unsqueeze(-1), chosen.a, other.a),
    )
