"""Softmax attention to the last tokens whose queries fall into the same bucket of a hash."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import UNTRAINED_SEED, Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import LatestOfGroup, Tokens

BUCKETS = 8
"""Of each head; about as many tokens each as are kept, in a training window of 20 steps."""


@register("reformer")
class Reformer(LatestOfGroup):
    """Attention by locality-sensitive hashing (Kitaev et al. 2020, "Reformer", arXiv 2001.04451, section 2), causal.

    With queries ``q_t = W_q x_t`` that are also the keys, of length 1, ``o_t = sum_p softmax_p(<q_t, q_p / |q_p|>) W_v
    x_p`` over the latest tokens p of the bucket ``argmax([q_t R; -q_t R])``, R being a fixed random matrix of each
    head, the same in every block. As in the source a token attends to itself only where there is nothing else. The
    source sorts the sequence by buckets, cuts it into chunks and lets a token see those of its bucket in its chunk and
    the one before; here it sees the `span - 1` before it in its bucket, however the others lie, so that memory is
    bounded. One round of hashing: the union over several is possible, for as many times the memory. Memory: window,
    keys and values of `8 span` tokens in each head.

    A token near the border of two buckets may fall into either by rounding; only there can the parallel and the stepped
    form part ways by more than that.

    Args:
        width: size of a token.
        heads: number of heads, each with a hash of its own; must divide the width.
        span: tokens kept of each bucket, the current one included.
    """

    capability = Capability(
        source="Kitaev et al. 2020, section 2",
        differs="the latest tokens of a bucket instead of chunks of a sorted sequence; one round of hashing for all "
        "blocks",
        parallel="T (8 n + 128) d",
        step="8 n d",
        sees="the last {n} of its bucket, one of 8",
    )

    rotations: Tensor

    def __init__(self, width: int, heads: int, span: int = 8) -> None:
        super().__init__(width, heads, span, BUCKETS)
        generator = torch.Generator().manual_seed(UNTRAINED_SEED)
        rotations = torch.randn(heads, self.head_width, BUCKETS // 2, generator=generator)
        self.register_buffer("rotations", rotations)

    def project(self, x: Tensor, real: Tensor) -> Tokens:
        """See `Kept.project`."""
        queries = self._split_heads(self.query(x))
        rotated = queries @ self.rotations
        bucket = torch.cat([rotated, -rotated], -1).argmax(-1)
        return Tokens(queries, F.normalize(queries, dim=-1), self._split_heads(self.value(x)), bucket)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """See `Kept.attend`."""
        own = seen.new_ones(seen.shape[-2:]).triu(self.slots).tril(self.slots)
        others = seen & ~own
        seen = others | own & ~others.any(-1, keepdim=True)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=1.0)
