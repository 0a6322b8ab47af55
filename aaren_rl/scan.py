"""Prefix softmax attention of one query, the operator behind Aaren, in five interchangeable forms.

For scores s and values v the output at position k is ``sum_{i<=k} exp(s_i) v_i / sum_{i<=k} exp(s_i)``.
Every form computes, for each position, the prefix state (m, c, a) of "Attention as an RNN" (Feng et al. 2024,
arXiv 2405.13956, section 3): m the running maximum of the scores, c and a the sums of ``exp(s_i - m)`` and of
``exp(s_i - m) v_i``. The output is a / c. Two adjacent pieces combine associatively, so a state can be carried from
one call to the next, and a loop, blocks, a tree and a matrix all give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput, unknown_name

Form = Literal["auto", "recurrent", "blockwise", "parallel", "chunked", "matrix"]

CHUNK = 64
"""Positions per chunk in the blockwise and chunked forms."""

MATRIX_UP_TO = 128
"""Longest sequence for which the matrix form was the fastest (`python scripts/benchmark.py scan` prints the table)."""


class ScanState(NamedTuple):
    """What the scan carries over time, of constant size.

    Attributes:
        m: running maximum of the scores, (batch, heads); -inf for the empty prefix.
        c: sum of exp(score - m), (batch, heads).
        a: sum of exp(score - m) * value, (batch, heads, dim).

    All float32, or float64 for float64 inputs.
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


def combine(left: ScanState, right: ScanState) -> ScanState:
    """The state of two adjacent pieces, left before right (associative; paper, section 3.2)."""
    # The result of any read-out does not depend on m, so no gradient needs to flow through it.
    m = torch.maximum(left.m, right.m).detach()
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


def prefix_attention(
    scores: Tensor,
    values: Tensor,
    state: ScanState | None = None,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    form: Form = "auto",
) -> tuple[Tensor, ScanState]:
    """Attention outputs of one query over every prefix of a sequence.

    Args:
        scores: (batch, heads, time), any floating type.
        values: (batch, heads, time, dim).
        state: the state after the tokens before this sequence; None for none.
        reset: (batch, time) bool, True where a new episode starts before the token: earlier tokens, and the given
            state, are forgotten.
        valid: (batch, time) bool, False for padding, which leaves the state as it is.
        form: how to compute it. "recurrent" is a loop over time and the ground truth of the others; "blockwise" runs
            over blocks one after another in O(block) memory (paper, appendix A); "parallel" is the Hillis-Steele
            prefix scan (paper, algorithm 1); "chunked" treats all chunks at once in matrix form and scans their
            summaries; "matrix" writes out all time x time weights; "auto" takes the fastest for the length.

    Returns:
        Outputs (batch, heads, time, dim) in the type of the values, and the state after the last token.

    Raises:
        InvalidInput: shapes do not fit together, or the form is unknown.
    """
    _check(scores, values, state, reset, valid, form)
    batch_size, heads, time, dim = values.shape
    kind = torch.promote_types(torch.promote_types(scores.dtype, values.dtype), torch.float32)
    output_kind = values.dtype
    scores, values = scores.to(kind), values.to(kind)
    if state is None:
        state = initial_state(batch_size, heads, dim, scores.device)
    state = ScanState(*(part.to(kind) for part in state))
    if time == 0:
        return values.to(output_kind), state
    if valid is not None:
        scores = scores.masked_fill(~valid.unsqueeze(1), -torch.inf)
        values = values.masked_fill(~valid[:, None, :, None], 0.0)
    if reset is None:
        reset = torch.zeros(batch_size, time, dtype=torch.bool, device=scores.device)
    with torch.autocast(device_type=scores.device.type, enabled=False):
        prefixes = _FORMS[choose_form(time) if form == "auto" else form](scores, values, state, reset.unsqueeze(1))
        return read_out(prefixes).to(output_kind), _at(prefixes, -1)


def choose_form(time: int) -> Form:
    """The form that "auto" takes for a sequence of this length."""
    if time == 1:
        return "recurrent"
    return "matrix" if time <= MATRIX_UP_TO else "chunked"


def _at(states: ScanState, index: int) -> ScanState:
    return ScanState(states.m[:, :, index], states.c[:, :, index], states.a[:, :, index])


def _where(condition: Tensor, chosen: ScanState, other: ScanState) -> ScanState:
    return ScanState(
        torch.where(condition, chosen.m, other.m),
        torch.where(condition, chosen.c, other.c),
        torch.where(condition.unsqueeze(-1), chosen.a, other.a),
    )


def _tokens(scores: Tensor, values: Tensor) -> ScanState:
    """Each token as a state of its own: (s, 1, v), or the identity where the score is -inf."""
    real = (scores != -torch.inf).to(scores.dtype)
    # exp(s - m) with m = s detached has the value 1 and the derivative of exp(s).
    weight = torch.exp((scores - scores.detach()).masked_fill(real == 0, 0.0)) * real
    return ScanState(scores.detach(), weight, weight.unsqueeze(-1) * values)


def _carry(before: ScanState, local: ScanState, interrupted: Tensor) -> ScanState:
    """Puts the state before a piece in front of the piece's own prefixes, save those that start after a reset."""
    before = ScanState(before.m.unsqueeze(-1), before.c.unsqueeze(-1), before.a.unsqueeze(-2))
    return _where(interrupted.expand_as(local.m), local, combine(before, local))


def _local_prefixes(scores: Tensor, values: Tensor, reset: Tensor) -> tuple[ScanState, Tensor]:
    """All prefix states of a piece in matrix form, and where a reset lies between its start and the position."""
    segment = reset.cumsum(-1)
    time = scores.shape[-1]
    earlier = torch.ones(time, time, dtype=torch.bool, device=scores.device).tril()
    seen = earlier & (segment.unsqueeze(-1) == segment.unsqueeze(-2))
    table = scores.unsqueeze(-2).masked_fill(~seen, -torch.inf)
    m = table.detach().amax(-1)
    weights = torch.exp(table - m.masked_fill(m == -torch.inf, 0.0).unsqueeze(-1))
    return ScanState(m, weights.sum(-1), weights @ values), segment > 0


def _recurrent(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    tokens = _tokens(scores, values)
    prefixes = []
    for t in range(scores.shape[-1]):
        token = _at(tokens, t)
        state = _where(reset[:, :, t].expand_as(token.m), token, combine(state, token))
        prefixes.append(state)
    return ScanState(*(torch.stack(parts, dim=2) for parts in zip(*prefixes, strict=True)))


def _blockwise(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    blocks = []
    for start in range(0, scores.shape[-1], CHUNK):
        block = slice(start, start + CHUNK)
        prefixes = _matrix(scores[..., block], values[..., block, :], state, reset[..., block])
        blocks.append(prefixes)
        state = _at(prefixes, -1)
    return ScanState(*(torch.cat(parts, dim=2) for parts in zip(*blocks, strict=True)))


def _parallel(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    prefixes, interrupted = _hillis_steele(_tokens(scores, values), reset.expand_as(scores))
    return _carry(state, prefixes, interrupted)


def _hillis_steele(states: ScanState, interrupted: Tensor) -> tuple[ScanState, Tensor]:
    """Segmented inclusive prefix scan over dimension 2 in log2(time) rounds."""
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


def _matrix(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    return _carry(state, *_local_prefixes(scores, values, reset))


def _chunked(scores: Tensor, values: Tensor, state: ScanState, reset: Tensor) -> ScanState:
    batch_size, heads, time, dim = values.shape
    padding = -time % CHUNK
    chunks = (time + padding) // CHUNK
    # Padding at the end is the identity, so the last prefix is unchanged by it.
    scores = F.pad(scores, (0, padding), value=-torch.inf).reshape(batch_size, heads * chunks, CHUNK)
    values = F.pad(values, (0, 0, 0, padding)).reshape(batch_size, heads * chunks, CHUNK, dim)
    reset = F.pad(reset, (0, padding)).reshape(batch_size, 1, chunks, CHUNK)
    reset = reset.expand(-1, heads, -1, -1).reshape(batch_size, heads * chunks, CHUNK)
    local, interrupted = _local_prefixes(scores, values, reset)

    def per_chunk(last: Tensor) -> Tensor:
        return last.reshape(batch_size, heads, chunks, *last.shape[2:])

    summaries = ScanState(per_chunk(local.m[..., -1]), per_chunk(local.c[..., -1]), per_chunk(local.a[..., -1, :]))
    inclusive = _carry(state, *_hillis_steele(summaries, per_chunk(interrupted[..., -1])))
    before = ScanState(
        torch.cat([state.m.unsqueeze(2), inclusive.m[:, :, :-1]], 2).flatten(1, 2),
        torch.cat([state.c.unsqueeze(2), inclusive.c[:, :, :-1]], 2).flatten(1, 2),
        torch.cat([state.a.unsqueeze(2), inclusive.a[:, :, :-1]], 2).flatten(1, 2),
    )
    prefixes = _carry(before, local, interrupted)
    return ScanState(
        prefixes.m.reshape(batch_size, heads, -1)[..., :time],
        prefixes.c.reshape(batch_size, heads, -1)[..., :time],
        prefixes.a.reshape(batch_size, heads, -1, dim)[..., :time, :],
    )


_FORMS: dict[str, Callable[[Tensor, Tensor, ScanState, Tensor], ScanState]] = {
    "recurrent": _recurrent,
    "blockwise": _blockwise,
    "parallel": _parallel,
    "chunked": _chunked,
    "matrix": _matrix,
}


def _check(
    scores: Tensor,
    values: Tensor,
    state: ScanState | None,
    reset: Tensor | None,
    valid: Tensor | None,
    form: Form,
) -> None:
    if form not in get_args(Form):
        raise unknown_name("scan form", form, get_args(Form))
    if scores.ndim != 3 or values.ndim != 4 or values.shape[:3] != scores.shape:
        raise InvalidInput(
            f"scores have shape {tuple(scores.shape)} and values {tuple(values.shape)}; "
            "expected (batch, heads, time) and (batch, heads, time, dim)"
        )
    for name, mask in (("reset", reset), ("valid", valid)):
        if mask is None:
            continue
        expected = (scores.shape[0], scores.shape[2])
        if tuple(mask.shape) != expected or mask.dtype != torch.bool:
            raise InvalidInput(
                f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape {expected}"
            )
    if state is not None:
        expected_shape = (*values.shape[:2], values.shape[3])
        given = tuple(tuple(part.shape) for part in state)
        if given != (expected_shape[:2], expected_shape[:2], expected_shape):
            raise InvalidInput(
                f"the state holds m, c and a of shapes {given}; expected (batch, heads) twice and "
                f"(batch, heads, dim) = {expected_shape}"
            )
