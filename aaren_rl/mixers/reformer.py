"""Softmax attention to the latest tokens whose queries have the same hash."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import UNTRAINED_SEED, Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import LatestOfBucket, Projections

BUCKETS = 8
"""Buckets of each head: a training window of 20 steps then fills each about as far as its span."""


@register("reformer")
class Reformer(LatestOfBucket):
    """Attention by locality-sensitive hashing (Kitaev et al. 2020, "Reformer", arXiv 2001.04451, section 2), causal.

    Queries ``q_t = W_q x_t`` are also the keys, then of length 1: ``o_t = sum_p softmax_p(<q_t, q_p / |q_p|>) W_v x_p``
    over the latest tokens p of the bucket ``argmax([q_t R; -q_t R])``. R is a fixed random matrix of each head, the
    same in every block. As in the source, a token attends to itself only if its bucket holds no other. The source sorts
    the sequence by buckets and cuts it into chunks; a token sees its bucket in its chunk and the one before. Here it
    sees the `span - 1` tokens before it in its bucket, wherever they lie, so memory is bounded. There is one round of
    hashing; several would multiply the memory. Memory: window, keys and values of `8 span` tokens in each head.

    Rounding may move a token near the border of two buckets. Only there can the parallel and the stepped form differ by
    more than rounding.

    Args:
        width: size of a token.
        heads: number of heads, each with its hash; must divide the width.
        span: cached tokens of each bucket, the current one included.
    """

    capability = Capability(
        source="Kitaev et al. 2020, section 2",
        differs="the latest tokens of a bucket, not chunks of a sorted sequence; one round of hashing for all blocks",
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

    def project(self, x: Tensor, real: Tensor) -> Projections:
        """See `SlotCache.project`."""
        queries = self._split_heads(self.query(x))
        rotated = queries @ self.rotations
        bucket = torch.cat([rotated, -rotated], -1).argmax(-1)
        return Projections(queries, F.normalize(queries, dim=-1), self._split_heads(self.value(x)), bucket)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """See `SlotCache.attend`."""
        # Each token among the entries, slots first. For 2 slots and 2 tokens:   . . x .
        #                                                                       . . . x
        own = seen.new_ones(seen.shape[-2:]).triu(self.slots).tril(self.slots)
        others = seen & ~own
        seen = others | own & ~others.any(-1, keepdim=True)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=1.0)
