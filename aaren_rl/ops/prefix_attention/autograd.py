"""The forms with a backward pass that we derive, "chunked", "matrix" and "fused", as one autograd function.

Backward keeps the inputs, the outputs and the normalisers m and c only, and computes the weights again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aaren_rl.ops.prefix_attention import chunked, fused
from aaren_rl.ops.prefix_attention.reference import read_out
from aaren_rl.ops.prefix_attention.state import ScanState, accumulation_dtype, without_padding


class _Inputs(NamedTuple):
    """Arguments of the autograd function, which takes tensors one by one.

    Attributes:
        scores: (batch, heads, time).
        values: (batch, heads, time, dim).
        m_before: m of the state before, (batch, heads); None without one, like the next two.
        c_before: c of the state before, (batch, heads).
        output_before: a / c of the state before, (batch, heads, dim).
        segment: (batch, time) int32, the number of resets up to and including the token.
        valid: (batch, time) bool, False for padding; None for no padding.
        dtype: dtype of the state.
        form: "chunked", "matrix" or "fused".
    """

    scores: Tensor
    values: Tensor
    m_before: Tensor | None
    c_before: Tensor | None
    output_before: Tensor | None
    segment: Tensor
    valid: Tensor | None
    dtype: torch.dtype
    form: str


def attend(
    scores: Tensor, values: Tensor, state: ScanState | None, reset: Tensor, valid: Tensor | None, form: str
) -> tuple[Tensor, ScanState]:
    """Outputs and the final state; arguments as in `prefix_attention`, time 1 or more."""
    dtype = accumulation_dtype(scores, values)
    before: tuple[Tensor | None, Tensor | None, Tensor | None] = None, None, None
    if state is not None:
        before = state.m.to(dtype), state.c.to(dtype), read_out(state).to(dtype)
    inputs = _Inputs(scores, values, *before, reset.cumsum(1, dtype=torch.int32), valid, dtype, form)
    outputs, m, c = _PrefixAttention.apply(*inputs)  # type: ignore[no-untyped-call]
    last = c[:, :, -1]
    return outputs.to(values.dtype), ScanState(m[:, :, -1], last, last.unsqueeze(-1) * outputs[:, :, -1].to(dtype))


class _PrefixAttention(torch.autograd.Function):
    """Outputs (batch, heads, time, dim), and m and c (batch, heads, time) of every prefix, from `_Inputs`."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See the class. The fused form returns the log-normaliser as m, and c = 1 (0 for the empty prefix)."""
        inputs = _Inputs(*arguments)
        if inputs.form == "fused":
            outputs, logs = fused.forward(_for_fused(inputs))
            return outputs, logs, (logs != -torch.inf).to(logs.dtype)
        outputs, m, c = chunked.forward(_for_chunked(inputs))
        return outputs, m, c

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keeps what `backward` needs."""
        *tensors, ctx.dtype, ctx.form = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, _: None, d_c: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the scores, the values, and c and the output of the state before."""
        *tensors, outputs, m, c = ctx.saved_tensors
        inputs = _Inputs(*(*tensors, ctx.dtype, ctx.form))
        if d_outputs is None:
            d_outputs = torch.zeros_like(outputs)
        d_c_before: Tensor | None
        d_output_before: Tensor | None
        if inputs.form == "fused":
            # m is the log-normaliser and c the constant 1: the gradient of c is that of m.
            results = fused.Results(outputs, m, d_outputs, d_c)
            d_scores, d_values, d_log, d_output_before = fused.backward(_for_fused(inputs), results)
            c_before = inputs.c_before
            d_c_before = None if c_before is None else torch.where(c_before == 0, 0.0, d_log / c_before)
        else:
            d_scores, d_values, d_c_before, d_output_before = chunked.backward(
                _for_chunked(inputs), chunked.Results(outputs, m, c), d_outputs, d_c
            )
        d_before = (None, d_c_before, d_output_before) if any(ctx.needs_input_grad[3:5]) else (None, None, None)
        no_gradients = (None, None, None, None)  # of segment, valid, dtype and form
        return d_scores.to(inputs.scores.dtype), d_values.to(inputs.values.dtype), *d_before, *no_gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Joins the mapped dimension with the batch."""

        def fold(given: Any, dim: int | None) -> Any:
            if not isinstance(given, Tensor):
                return given
            copies = given.expand(info.batch_size, *given.shape) if dim is None else given.movedim(dim, 0)
            return copies.flatten(0, 1)

        results = _PrefixAttention.apply(  # type: ignore[no-untyped-call]
            *(fold(given, dim) for given, dim in zip(inputs, in_dims, strict=True))
        )
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in results), (0, 0, 0)


def _for_chunked(inputs: _Inputs) -> chunked.Inputs:
    scores, values = without_padding(inputs.scores.to(inputs.dtype), inputs.values.to(inputs.dtype), inputs.valid)
    m, c, output = inputs.m_before, inputs.c_before, inputs.output_before
    before = None if m is None or c is None or output is None else chunked.StateBefore(m, c, output)
    time = scores.shape[-1]
    chunk = time if inputs.form == "matrix" else chunked.chunk_length(time)
    return chunked.Inputs(scores, values, inputs.segment, before, chunk)


def _for_fused(inputs: _Inputs) -> fused.Inputs:
    scores, values, m, c, output, segment, valid, *_ = inputs
    if m is None or c is None or output is None:
        output = values.new_zeros(*values.shape[:2], values.shape[-1], dtype=torch.float32)
        return fused.Inputs(scores, values, segment, valid, torch.full_like(output[..., 0], -torch.inf), output)
    return fused.Inputs(scores, values, segment, valid, m + c.log(), output)
