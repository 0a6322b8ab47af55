"""Prefix attention in chunks of matrix products, with a backward pass that we derive.

Within a chunk all weights are written out; from chunk to chunk one state is carried. With the weights
p_kj = exp(s_j - L_k), L_k the log-normaliser of the prefix up to k, the outputs are o_k = sum_{j<=k} p_kj v_j. The
gradients are one scan in reverse::

    dv_j = sum_{k>=j} p_kj do_k          ds_j = sum_{k>=j} p_kj (<do_k, v_j> - <do_k, o_k> + dL_k)

L_k is kept as two parts, the running maximum m_k and the sum c_k: no digits are lost where scores are large.
A state before the sequence acts as one more token, with score m + log c and value a / c.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Approximate number of tokens per chunk of a long sequence."""

ONE_CHUNK_UP_TO = 128
"""Longest sequence that is one chunk (`python benchmarks/benchmark.py scan` prints where the two meet)."""

_LOG2_E = math.log2(math.e)


class StateBefore(NamedTuple):
    """The state before a sequence.

    Attributes:
        m: running maximum of the scores, (batch, heads); -inf for the empty prefix.
        c: sum of exp(score - m), (batch, heads); 0 for the empty prefix.
        output: attention output, (batch, heads, dim); 0 for the empty prefix.
    """

    m: Tensor
    c: Tensor
    output: Tensor


class Inputs(NamedTuple):
    """Arguments of `forward`, which `backward` needs again.

    Attributes:
        scores: (batch, heads, time), -inf for padding.
        values: (batch, heads, time, dim), finite.
        segment: (batch, time), the number of resets up to and including the token.
        before: the state before, visible in segment 0; None for no state.
        chunk: tokens per chunk.
    """

    scores: Tensor
    values: Tensor
    segment: Tensor
    before: StateBefore | None
    chunk: int


class Results(NamedTuple):
    """Outputs and normalisers of every prefix.

    Attributes:
        outputs: (batch, heads, time, dim).
        m: running maximum of the scores, (batch, heads, time).
        c: sum of exp(score - m), (batch, heads, time).
    """

    outputs: Tensor
    m: Tensor
    c: Tensor


def forward(inputs: Inputs) -> Results:
    """Outputs and normalisers of every prefix.

    1. Each chunk alone: weights, maximum and sum of every position.
    2. The chunks' ends, scanned as if they were tokens, give the maximum and sum before each chunk.
    3. Both together give the shares of the chunk and of the state before it in each output.
    4. The outputs at the chunks' ends are carried from chunk to chunk.
    """
    before, chunk, time = inputs.before, inputs.chunk, inputs.scores.shape[-1]
    scores, values, segment = _in_chunks(inputs)
    table = scores.unsqueeze(-2) + _mask(segment, scores.dtype)  # (batch, heads, chunks, chunk, chunk)
    chunk_m = table.amax(-1)
    weights = _exp_(table.sub_(_finite(chunk_m).unsqueeze(-1)))
    chunk_c = weights.sum(-1)
    if time <= chunk and before is None:
        outputs = weights.mul_((1 / _positive(chunk_c)).unsqueeze(-1)) @ values
        return _joined(outputs, chunk_m, chunk_c, time)
    before = before or _empty_state(values)
    before_m, before_c, visible = _normalisers_before(chunk_m[..., -1], chunk_c[..., -1], segment, before)
    m = torch.maximum(chunk_m, torch.where(visible, before_m, -torch.inf))
    chunk_share, before_share = _shares(chunk_m, before_m, before_c, visible, m)
    c = chunk_c * chunk_share + before_share
    chunk_share, before_share = chunk_share / _positive(c), before_share / _positive(c)
    outputs = weights.mul_(chunk_share.unsqueeze(-1)) @ values
    carried = _carry(before.output, before_share[..., -1], outputs[..., -1, :])
    outputs.addcmul_(before_share.unsqueeze(-1), carried[:, :, :-1].unsqueeze(-2))
    return _joined(outputs, m, c, time)


def backward(
    inputs: Inputs, results: Results, d_outputs: Tensor, d_c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of the scores, the values, and c and the output of the state before (None without such a state).

    Args:
        inputs: as given to `forward`.
        results: as returned by `forward`.
        d_outputs: gradient of the outputs.
        d_c: gradient of c; None for none.
    """
    before, chunk, time = inputs.before, inputs.chunk, inputs.scores.shape[-1]
    delta = (d_outputs * results.outputs).sum(-1)
    if d_c is not None:
        delta = delta - d_c * results.c
    scores, values, segment = _in_chunks(inputs)
    d_outputs, delta = _padded(d_outputs, chunk), _padded(delta.unsqueeze(-1), chunk).squeeze(-1)
    m, c = _last_repeated(results.m, chunk), _last_repeated(results.c, chunk)
    weights = _exp_((scores.unsqueeze(-2) + _mask(segment, scores.dtype)).sub_(_finite(m).unsqueeze(-1)))
    weights.mul_((1 / _positive(c)).unsqueeze(-1))
    d_values = weights.transpose(-1, -2) @ d_outputs
    d_scores = (d_outputs @ values.transpose(-1, -2)).sub_(delta.unsqueeze(-1)).mul_(weights).sum(-2)
    if time <= chunk and before is None:
        return d_scores.flatten(2)[..., :time], d_values.flatten(2, 3)[:, :, :time], None, None
    before = before or _empty_state(values)
    before_m, before_c = _before_chunks(before.m, m[..., -1]), _before_chunks(before.c, c[..., -1])
    before_share = _shares(m, before_m, before_c, _sees_before(segment), m)[1] / _positive(c)
    returned = _carry_back(before_share, d_outputs, delta)
    d_end, delta_end = returned[:, :, 1:, :-1], returned[:, :, 1:, -1:]
    to_end = weights[..., -1, :]
    d_values.addcmul_(to_end.unsqueeze(-1), d_end.unsqueeze(-2))
    d_scores.addcmul_(to_end, (values @ d_end.unsqueeze(-1)).squeeze(-1) - delta_end)
    d_before_output = returned[:, :, 0, :-1]
    d_before_log = (d_before_output * before.output).sum(-1) - returned[:, :, 0, -1]
    d_before_c = torch.where(before.c == 0, 0.0, d_before_log / _positive(before.c))
    return d_scores.flatten(2)[..., :time], d_values.flatten(2, 3)[:, :, :time], d_before_c, d_before_output


def chunk_length(time: int) -> int:
    """Tokens per chunk: the divisor of the length nearest to `CHUNK`, which needs no padding; else `CHUNK`."""
    return min((c for c in range(CHUNK // 2, 2 * CHUNK) if time % c == 0), key=lambda c: abs(c - CHUNK), default=CHUNK)


def _in_chunks(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (batch, heads, chunks, chunk), values (..., dim) and segment (batch, 1, chunks, chunk)."""
    chunk = inputs.chunk
    # The end is padded with the operator's identity, in the last segment.
    scores = F.pad(inputs.scores, (0, -inputs.scores.shape[-1] % chunk), value=-torch.inf)
    segment = _last_repeated(inputs.segment, chunk)[:, None]
    return torch.unflatten(scores, 2, (-1, chunk)), _padded(inputs.values, chunk), segment


def _joined(outputs: Tensor, m: Tensor, c: Tensor, time: int) -> Results:
    """The chunks in a row, without the padding at the end."""
    return Results(outputs.flatten(2, 3)[:, :, :time], m.flatten(2)[..., :time], c.flatten(2)[..., :time])


def _padded(x: Tensor, chunk: int) -> Tensor:
    """Cuts (batch, heads, time, dim) into chunks, with zeros at the end."""
    padding = -x.shape[2] % chunk
    return torch.unflatten(F.pad(x, (0, 0, 0, padding)) if padding else x, 2, (-1, chunk))


def _last_repeated(x: Tensor, chunk: int) -> Tensor:
    """Cuts (..., time) into chunks, with the last position repeated at the end."""
    padding = -x.shape[-1] % chunk
    whole = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], padding)], -1) if padding else x
    return torch.unflatten(whole, -1, (-1, chunk))


def _empty_state(values: Tensor) -> StateBefore:
    """The state of the empty prefix, for values (batch, heads, chunks, chunk, dim)."""
    empty = values.new_zeros(*values.shape[:2], values.shape[-1])
    return StateBefore(torch.full_like(empty[..., 0], -torch.inf), empty[..., 0], empty)


def _mask(segment: Tensor, dtype: torch.dtype) -> Tensor:
    """A summand of the scores: 0 where a position (row) sees another (column) of its chunk, else -inf.

    A chunk of four tokens with a reset at the third::

        0    -inf -inf -inf
        0    0    -inf -inf
        -inf -inf 0    -inf
        -inf -inf 0    0
    """
    chunk = segment.shape[-1]
    earlier = torch.ones(chunk, chunk, dtype=torch.bool, device=segment.device).tril()
    visible = earlier & (segment.unsqueeze(-1) == segment.unsqueeze(-2))
    return torch.zeros(visible.shape, dtype=dtype, device=segment.device).masked_fill_(~visible, -torch.inf)


def _before_chunks(first: Tensor, ends: Tensor) -> Tensor:
    """The value before each chunk, (batch, heads, chunks, 1): `first`, then the ends of all chunks but the last."""
    return torch.cat([first.unsqueeze(-1), ends[..., :-1]], -1).unsqueeze(-1)


def _sees_before(segment: Tensor) -> Tensor:
    """True where no reset lies between the start of the chunk and the position."""
    ends = F.pad(segment[..., :-1, -1], (1, 0))
    return segment == ends.unsqueeze(-1)


def _normalisers_before(
    end_m: Tensor, end_c: Tensor, segment: Tensor, before: StateBefore
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum and sum of all before each chunk, (batch, heads, chunks, 1), and where a position sees them.

    Scans the chunks' ends as if they were tokens, each with the weight of its chunk. Where they are many, they form
    chunks in turn, and the function calls itself on the ends of those.
    """
    end_segment = segment[..., 0, :, -1]
    chunks = end_m.shape[-1]
    size = chunks if chunks <= ONE_CHUNK_UP_TO else chunk_length(chunks)
    padding = -chunks % size
    m = torch.unflatten(F.pad(end_m, (0, padding), value=-torch.inf), 2, (-1, size))
    c = torch.unflatten(F.pad(end_c, (0, padding)), 2, (-1, size))
    ends = _last_repeated(end_segment, size)[:, None]
    table = m.unsqueeze(-2) + _mask(ends, m.dtype)
    inner_m = table.amax(-1)
    inner_c = (_exp_(table.sub_(_finite(inner_m).unsqueeze(-1))) @ c.unsqueeze(-1)).squeeze(-1)
    if inner_m.shape[2] == 1:
        outer_m, outer_c = before.m[..., None, None], before.c[..., None, None]
        visible = ends == 0
    else:
        outer_m, outer_c, visible = _normalisers_before(inner_m[..., -1], inner_c[..., -1], ends, before)
    m = torch.maximum(inner_m, torch.where(visible, outer_m, -torch.inf))
    inner_share, outer_share = _shares(inner_m, outer_m, outer_c, visible, m)
    m, c = m.flatten(2)[..., :chunks], (inner_c * inner_share + outer_share).flatten(2)[..., :chunks]
    return _before_chunks(before.m, m), _before_chunks(before.c, c), _sees_before(segment)


def _shares(chunk_m: Tensor, before_m: Tensor, before_c: Tensor, visible: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of a chunk's sum, and the summand of the state before, at their common maximum m."""
    finite = _finite(m)
    return torch.exp(chunk_m - finite), torch.exp(torch.where(visible, before_m, -torch.inf) - finite) * before_c


def _carry(first: Tensor, shares: Tensor, added: Tensor) -> Tensor:
    """x_0 = first, x_{n+1} = shares_n x_n + added_n, over the chunks: (batch, heads, chunks + 1, dim)."""
    carried = first.new_empty(*first.shape[:2], shares.shape[2] + 1, first.shape[2])
    carried[:, :, 0] = first
    for n in range(shares.shape[2]):
        torch.addcmul(added[:, :, n], shares[:, :, n, None], carried[:, :, n], out=carried[:, :, n + 1])
    return carried


def _carry_back(before_share: Tensor, d_outputs: Tensor, delta: Tensor) -> Tensor:
    """What later chunks return to the state before each chunk, (batch, heads, chunks + 1, dim + 1).

    Its columns are the gradient of the state's output, and last the sum of delta.
    """
    added = before_share.unsqueeze(-2) @ torch.cat([d_outputs, delta.unsqueeze(-1)], -1)  # (batch, heads, chunks, 1, .)
    zero = torch.zeros_like(added[:, :, 0, 0])
    return _carry(zero, before_share[..., -1].flip(2), added.squeeze(-2).flip(2)).flip(2)


def _exp_(x: Tensor) -> Tensor:
    """Exponentiates in place; torch's exp on CPUs is far slower where it meets -inf, but not its exp2."""
    return x.mul_(_LOG2_E).exp2_()


def _finite(m: Tensor) -> Tensor:
    return m.masked_fill(m == -torch.inf, 0.0)


def _positive(c: Tensor) -> Tensor:
    return c.masked_fill(c == 0, 1.0)
