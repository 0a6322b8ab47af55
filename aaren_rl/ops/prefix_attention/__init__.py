"""Prefix softmax attention of one query, the operator behind Aaren, in interchangeable forms.

For scores s and values v the output at position k is ``sum_{i<=k} exp(s_i) v_i / sum_{i<=k} exp(s_i)``.
Every form computes, for each position, the prefix state (m, c, a) of "Attention as an RNN" (Feng et al. 2024,
arXiv 2405.13956, section 3): m the running maximum of the scores, c and a the sums of ``exp(s_i - m)`` and of
``exp(s_i - m) v_i``. The output is a / c. Two adjacent pieces combine associatively, so a state can be carried from
one call to the next, and a loop, blocks, a tree and a matrix all give the same numbers.

The loop, the blocks and the tree are written here for torch to differentiate. Training uses forms with a backward of
their own: `chunked_scan`, of which "matrix" is the case of one chunk, and `fused_scan`, the GPU kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.ops.prefix_attention import chunked as chunked_scan
from aaren_rl.ops.prefix_attention import fused as fused_scan

Form = Literal["auto", "recurrent", "blockwise", "parallel", "chunked", "matrix", "fused"]

BLOCK = 64
"""Positions per block in the blockwise form."""


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
            prefix scan (paper, algorithm 1); "matrix" writes out all time x time weights; "chunked" does so within
            chunks and carries a state between them; "fused" is one GPU kernel; "auto" is `choose_form`'s.

    Returns:
        Outputs (batch, heads, time, dim) in the type of the values, and the state after the last token.

    Raises:
        InvalidInput: shapes do not fit together, the form is unknown, or it cannot run here.
    """
    _check(scores, values, state, reset, valid, form)
    batch_size, heads, time, dim = values.shape
    kind = torch.promote_types(torch.promote_types(scores.dtype, values.dtype), torch.float32)
    if time == 0:
        return values, _in_kind(state or initial_state(batch_size, heads, dim, scores.device), kind)
    chosen = choose_form(time, scores.device, kind) if form == "auto" else form
    if state is not None:
        # No result depends on how a state is split into m and the rest, so in no form does m have a gradient.
        state = state._replace(m=state.m.detach())
    if reset is None:
        reset = torch.zeros(batch_size, time, dtype=torch.bool, device=scores.device)
    with torch.autocast(device_type=scores.device.type, enabled=False):
        if chosen in _DIFFERENTIATED:
            before = _in_kind(state or initial_state(batch_size, heads, dim, scores.device), kind)
            whole_scores, whole_values = _without_padding(scores.to(kind), values.to(kind), valid)
            prefixes = _DIFFERENTIATED[chosen](whole_scores, whole_values, before, reset.unsqueeze(1))
            return read_out(prefixes).to(values.dtype), _at(prefixes, -1)
        segment = reset.cumsum(1, dtype=torch.int32)
        given = (None, None, None) if state is None else (state.m.to(kind), state.c.to(kind), read_out(state).to(kind))
        outputs, m, c = _Prefixes.apply(scores, values, *given, segment, valid, kind, chosen)  # type: ignore[no-untyped-call]
        last = c[:, :, -1]
        return outputs.to(values.dtype), ScanState(m[:, :, -1], last, last.unsqueeze(-1) * outputs[:, :, -1].to(kind))


def choose_form(time: int, device: torch.device, kind: torch.dtype = torch.float32) -> Form:
    """The form that "auto" takes for a sequence of this length on this device, summed up in this type."""
    if time == 1:
        return "recurrent"
    if device.type == "cuda" and kind == torch.float32 and fused_scan.available():
        return "fused"
    return "matrix" if time <= chunked_scan.ONE_CHUNK_UP_TO else "chunked"


class _Prefixes(torch.autograd.Function):
    """The forms with a backward of their own; keeps the scores, values, outputs and log-normalisers only."""

    @staticmethod
    def forward(
        scores: Tensor,
        values: Tensor,
        m: Tensor | None,
        c: Tensor | None,
        output: Tensor | None,
        segment: Tensor,
        valid: Tensor | None,
        kind: torch.dtype,
        form: Form,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (batch, heads, time, dim), and m and c of every prefix."""
        if form == "fused":
            outputs, logs = fused_scan.forward(scores, values, segment, valid, *_log_before(m, c, output, values))
            return outputs, logs, (logs != -torch.inf).to(logs.dtype)
        scores, values = _without_padding(scores.to(kind), values.to(kind), valid)
        return chunked_scan.forward(scores, values, segment, _before(m, c, output), _chunk(scores, form))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keeps what `backward` needs."""
        *tensors, ctx.kind, ctx.form = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, _: None, d_c: Tensor | None) -> tuple[Tensor | None, ...]:
        """The reverse scan."""
        scores, values, before_m, before_c, before_output, segment, valid, outputs, m, c = ctx.saved_tensors
        if d_outputs is None:
            d_outputs = torch.zeros_like(outputs)
        d_before_c: Tensor | None
        d_output: Tensor | None
        if ctx.form == "fused":
            # There m is the log-normaliser and c the constant 1, so the gradient of c is that of m.
            d_scores, d_values, d_log, d_output = fused_scan.backward(
                scores,
                values,
                segment,
                valid,
                *_log_before(before_m, before_c, before_output, values),
                outputs,
                m,
                d_outputs,
                d_c,
            )
            d_before_c = None if before_c is None else torch.where(before_c == 0, 0.0, d_log / before_c)
        else:
            whole = _without_padding(scores.to(ctx.kind), values.to(ctx.kind), valid)
            d_scores, d_values, d_before_c, d_output = chunked_scan.backward(
                *whole,
                segment,
                _before(before_m, before_c, before_output),
                _chunk(scores, ctx.form),
                outputs,
                m,
                c,
                d_outputs,
                d_c,
            )
        d_before = (None, d_before_c, d_output) if any(ctx.needs_input_grad[3:5]) else (None, None, None)
        return d_scores.to(scores.dtype), d_values.to(values.dtype), *d_before, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Several models at once are more rows of the batch."""

        def fold(given: Any, dim: int | None) -> Any:
            if not isinstance(given, Tensor):
                return given
            copies = given.expand(info.batch_size, *given.shape) if dim is None else given.movedim(dim, 0)
            return copies.flatten(0, 1)

        outputs = _Prefixes.apply(  # type: ignore[no-untyped-call]
            *(fold(given, dim) for given, dim in zip(inputs, in_dims, strict=True))
        )
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in outputs), (0, 0, 0)


def _before(m: Tensor | None, c: Tensor | None, output: Tensor | None) -> chunked_scan.Before | None:
    return None if m is None or c is None or output is None else chunked_scan.Before(m, c, output)


def _log_before(m: Tensor | None, c: Tensor | None, output: Tensor | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """The log-normaliser and the output of the state before, those of the empty prefix where there is none."""
    if m is None or c is None or output is None:
        empty = values.new_zeros(*values.shape[:2], values.shape[-1], dtype=torch.float32)
        return torch.full_like(empty[..., 0], -torch.inf), empty
    return m + c.log(), output


def _in_kind(state: ScanState, kind: torch.dtype) -> ScanState:
    return ScanState(*(part.to(kind) for part in state))


def _chunk(scores: Tensor, form: Form) -> int:
    time = scores.shape[-1]
    return time if form == "matrix" else chunked_scan.chunk_length(time)


def _without_padding(scores: Tensor, values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Padding as the operator's identity: the score -inf, and a value that is finite."""
    if valid is None:
        return scores, values
    return (
        scores.masked_fill(~valid.unsqueeze(1), -torch.inf),
        values.masked_fill(~valid[:, None, :, None], 0.0),
    )


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


def _block_prefixes(scores: Tensor, values: Tensor, reset: Tensor) -> tuple[ScanState, Tensor]:
    """All prefix states of a block in matrix form, and where a reset lies between its start and the position."""
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
    for start in range(0, scores.shape[-1], BLOCK):
        block = slice(start, start + BLOCK)
        prefixes = _carry(state, *_block_prefixes(scores[..., block], values[..., block, :], reset[..., block]))
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


_DIFFERENTIATED: dict[str, Callable[[Tensor, Tensor, ScanState, Tensor], ScanState]] = {
    "recurrent": _recurrent,
    "blockwise": _blockwise,
    "parallel": _parallel,
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
