"""The scan in chunks of matrix products, with a backward of its own that keeps no more than the forward's results.

Within a chunk all weights are written out; between chunks one state is carried. With p_kj = exp(s_j - L_k), L_k the
log-normaliser of the prefix up to k, the outputs are o_k = sum_{j<=k} p_kj v_j, and the gradients one reverse scan:

    dv_j = sum_{k>=j} p_kj do_k          ds_j = sum_{k>=j} p_kj (<do_k, v_j> - <do_k, o_k> + dL_k)

L_k is kept as its two parts, the running maximum m_k and the sum c_k: no digits are lost where scores are large.
A state before the sequence acts as one more token, with score m + log c and value a / c.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Positions per chunk of a long sequence, about."""

ONE_CHUNK_UP_TO = 128
"""Longest sequence that is one chunk (`python scripts/benchmark.py scan` prints where the two meet)."""


_LOG2_E = math.log2(math.e)


class Before(NamedTuple):
    """The state before a sequence.

    Attributes:
        m: running maximum of the scores, (batch, heads); -inf for none.
        c: sum of exp(score - m), (batch, heads); 0 for none.
        output: attention output, (batch, heads, dim); 0 for none.
    """

    m: Tensor
    c: Tensor
    output: Tensor


def forward(
    scores: Tensor, values: Tensor, segment: Tensor, before: Before | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and log-normalisers of every prefix.

    Args:
        scores: (batch, heads, time), -inf for padding.
        values: (batch, heads, time, dim), finite.
        segment: (batch, time), the number of resets up to and including the position.
        before: the state before, seen by segment 0; None for none.
        chunk: positions per chunk.

    Returns:
        Outputs (batch, heads, time, dim), and the running maximum and the sum of every prefix, (batch, heads, time).
    """
    time = scores.shape[-1]
    scores, values, segment = _in_chunks(scores, values, segment, chunk)
    table = scores.unsqueeze(-2) + _blocked(segment, scores.dtype)
    own_m = table.amax(-1)
    weights = _exp_(table.sub_(_finite(own_m).unsqueeze(-1)))
    own_c = weights.sum(-1)
    if time <= chunk and before is None:
        outputs = weights.mul_((1 / _positive(own_c)).unsqueeze(-1)) @ values
        return outputs.flatten(2, 3)[:, :, :time], own_m.flatten(2)[..., :time], own_c.flatten(2)[..., :time]
    before = before or _nothing(values)
    before_m, before_c, seen = _normalisers_before(own_m[..., -1], own_c[..., -1], segment, before)
    m = torch.maximum(own_m, torch.where(seen, before_m, -torch.inf))
    own_share, before_share = _shares(own_m, before_m, before_c, seen, m)
    c = own_c * own_share + before_share
    own_share, before_share = own_share / _positive(c), before_share / _positive(c)
    outputs = weights.mul_(own_share.unsqueeze(-1)) @ values
    carried = _carry(before.output, before_share[..., -1], outputs[..., -1, :])
    outputs.addcmul_(before_share.unsqueeze(-1), carried[:, :, :-1].unsqueeze(-2))
    return outputs.flatten(2, 3)[:, :, :time], m.flatten(2)[..., :time], c.flatten(2)[..., :time]


def backward(
    scores: Tensor,
    values: Tensor,
    segment: Tensor,
    before: Before | None,
    chunk: int,
    outputs: Tensor,
    m: Tensor,
    c: Tensor,
    d_outputs: Tensor,
    d_c: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of the scores, the values, and the c and the output of the state before, None where there was none.

    Args:
        scores: as given to `forward`, like the next four.
        values: (batch, heads, time, dim).
        segment: (batch, time).
        before: the state before; None for none.
        chunk: positions per chunk.
        outputs: as returned by `forward`, like the next two.
        m: (batch, heads, time).
        c: (batch, heads, time).
        d_outputs: gradient of the outputs.
        d_c: gradient of c; None for none.
    """
    time = scores.shape[-1]
    delta = (d_outputs * outputs).sum(-1)
    if d_c is not None:
        delta = delta - d_c * c
    scores, values, segment = _in_chunks(scores, values, segment, chunk)
    d_outputs, delta = _padded(d_outputs, chunk), _padded(delta.unsqueeze(-1), chunk).squeeze(-1)
    m, c = _last_repeated(m, chunk), _last_repeated(c, chunk)
    weights = _exp_((scores.unsqueeze(-2) + _blocked(segment, scores.dtype)).sub_(_finite(m).unsqueeze(-1)))
    weights.mul_((1 / _positive(c)).unsqueeze(-1))
    d_values = weights.transpose(-1, -2) @ d_outputs
    d_scores = (d_outputs @ values.transpose(-1, -2)).sub_(delta.unsqueeze(-1)).mul_(weights).sum(-2)
    if time <= chunk and before is None:
        return d_scores.flatten(2)[..., :time], d_values.flatten(2, 3)[:, :, :time], None, None
    before = before or _nothing(values)
    before_m, before_c = _before_chunks(before.m, m[..., -1]), _before_chunks(before.c, c[..., -1])
    before_share = _shares(m, before_m, before_c, _sees_before(segment), m)[1] / _positive(c)
    # What later chunks pass back to the state at the end of each chunk: the gradient of its output, and sums of delta.
    passed = before_share.unsqueeze(-2) @ torch.cat([d_outputs, delta.unsqueeze(-1)], -1)
    zero = torch.zeros_like(passed[:, :, 0, 0])
    returned = _carry(zero, before_share[..., -1].flip(2), passed.squeeze(-2).flip(2)).flip(2)
    d_end, delta_end = returned[:, :, 1:, :-1], returned[:, :, 1:, -1:]
    to_end = weights[..., -1, :]
    d_values.addcmul_(to_end.unsqueeze(-1), d_end.unsqueeze(-2))
    d_scores.addcmul_(to_end, (values @ d_end.unsqueeze(-1)).squeeze(-1) - delta_end)
    d_before_output = returned[:, :, 0, :-1]
    d_before_log = (d_before_output * before.output).sum(-1) - returned[:, :, 0, -1]
    d_before_c = torch.where(before.c == 0, 0.0, d_before_log / _positive(before.c))
    return d_scores.flatten(2)[..., :time], d_values.flatten(2, 3)[:, :, :time], d_before_c, d_before_output


def _nothing(values: Tensor) -> Before:
    """The empty state before chunks of values (batch, heads, chunks, chunk, dim)."""
    empty = values.new_zeros(*values.shape[:2], values.shape[-1])
    return Before(torch.full_like(empty[..., 0], -torch.inf), empty[..., 0], empty)


def chunk_length(time: int) -> int:
    """Positions per chunk: a divisor of the length near `CHUNK`, so that nothing is padded; else `CHUNK`."""
    return min((c for c in range(CHUNK // 2, 2 * CHUNK) if time % c == 0), key=lambda c: abs(c - CHUNK), default=CHUNK)


def _in_chunks(scores: Tensor, values: Tensor, segment: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (batch, heads, chunks, chunk), values and segment (batch, 1, chunks, chunk) alike."""
    # The end is padded with the operator's identity, in the last segment.
    scores = F.pad(scores, (0, -scores.shape[-1] % chunk), value=-torch.inf)
    return torch.unflatten(scores, 2, (-1, chunk)), _padded(values, chunk), _last_repeated(segment, chunk)[:, None]


def _padded(x: Tensor, chunk: int) -> Tensor:
    """(batch, heads, time, dim) in chunks, with zeros at the end."""
    padding = -x.shape[2] % chunk
    return torch.unflatten(F.pad(x, (0, 0, 0, padding)) if padding else x, 2, (-1, chunk))


def _last_repeated(x: Tensor, chunk: int) -> Tensor:
    """(..., time) in chunks, with the last position repeated at the end."""
    padding = -x.shape[-1] % chunk
    whole = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], padding)], -1) if padding else x
    return torch.unflatten(whole, -1, (-1, chunk))


def _before_chunks(first: Tensor, ends: Tensor) -> Tensor:
    """What stands before each chunk, (batch, heads, chunks, 1): the first, then the ends of the chunks but the last."""
    return torch.cat([first.unsqueeze(-1), ends[..., :-1]], -1).unsqueeze(-1)


def _blocked(segment: Tensor, kind: torch.dtype) -> Tensor:
    """0 where a position (row) sees another (column) of its chunk, -inf where it does not; added to scores."""
    chunk = segment.shape[-1]
    earlier = torch.ones(chunk, chunk, dtype=torch.bool, device=segment.device).tril()
    seen = earlier & (segment.unsqueeze(-1) == segment.unsqueeze(-2))
    return torch.zeros(seen.shape, dtype=kind, device=segment.device).masked_fill_(~seen, -torch.inf)


def _sees_before(segment: Tensor) -> Tensor:
    """Where no reset lies between the start of the chunk and the position."""
    ends = F.pad(segment[..., :-1, -1], (1, 0))
    return segment == ends.unsqueeze(-1)


def _normalisers_before(end_m: Tensor, end_c: Tensor, segment: Tensor, before: Before) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum and sum, (batch, heads, chunks, 1), of all before each chunk, and where a position sees it.

    The chunks' own ends are scanned as if they were tokens, each of the weight of its chunk.
    """
    end_segment = segment[..., 0, :, -1]
    chunks = end_m.shape[-1]
    size = chunks if chunks <= ONE_CHUNK_UP_TO else chunk_length(chunks)
    padding = -chunks % size
    m = torch.unflatten(F.pad(end_m, (0, padding), value=-torch.inf), 2, (-1, size))
    c = torch.unflatten(F.pad(end_c, (0, padding)), 2, (-1, size))
    ends = _last_repeated(end_segment, size)[:, None]
    table = m.unsqueeze(-2) + _blocked(ends, m.dtype)
    inner_m = table.amax(-1)
    inner_c = (_exp_(table.sub_(_finite(inner_m).unsqueeze(-1))) @ c.unsqueeze(-1)).squeeze(-1)
    if inner_m.shape[2] == 1:
        outer_m, outer_c = before.m[..., None, None], before.c[..., None, None]
        seen = ends == 0
    else:
        outer_m, outer_c, seen = _normalisers_before(inner_m[..., -1], inner_c[..., -1], ends, before)
    m = torch.maximum(inner_m, torch.where(seen, outer_m, -torch.inf))
    inner_share, outer_share = _shares(inner_m, outer_m, outer_c, seen, m)
    m, c = m.flatten(2)[..., :chunks], (inner_c * inner_share + outer_share).flatten(2)[..., :chunks]
    return _before_chunks(before.m, m), _before_chunks(before.c, c), _sees_before(segment)


def _shares(own_m: Tensor, before_m: Tensor, before_c: Tensor, seen: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """What a chunk's own sum is multiplied by, and what the state before adds to it, at the common maximum m."""
    finite = _finite(m)
    return torch.exp(own_m - finite), torch.exp(torch.where(seen, before_m, -torch.inf) - finite) * before_c


def _exp_(x: Tensor) -> Tensor:
    """Exponentiates in place; torch's exp on CPUs is far slower where it meets -inf, its exp2 is not."""
    return x.mul_(_LOG2_E).exp2_()


def _carry(first: Tensor, shares: Tensor, added: Tensor) -> Tensor:
    """x_0 = first, x_{n+1} = shares_n x_n + added_n, over the chunks: (batch, heads, chunks + 1, dim)."""
    carried = first.new_empty(*first.shape[:2], shares.shape[2] + 1, first.shape[2])
    carried[:, :, 0] = first
    for n in range(shares.shape[2]):
        torch.addcmul(added[:, :, n], shares[:, :, n, None], carried[:, :, n], out=carried[:, :, n + 1])
    return carried


def _finite(m: Tensor) -> Tensor:
    return m.masked_fill(m == -torch.inf, 0.0)


def _positive(c: Tensor) -> Tensor:
    return c.masked_fill(c == 0, 1.0)
