"""Softmax attention to compressed tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.buckets import group, seen, still_live
from aaren_rl.mixers.base.chunkwise import Bounded, checked_span, latest
from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register

TRIPLE = 3
"""Tokens compressed into one, the source's kernel and stride."""


class CompressedState(NamedTuple):
    """What is remembered, the newest last; keys, then values.

    Attributes:
        triples: compressed keys and values, (batch, triples, 2 width).
        live: (batch, triples) bool, False before the first triple of the episode.
        recent: keys and values of the last tokens, (batch, 2, 2 width).
        begun: how many of them are of the triple under way, (batch,).
    """

    triples: Tensor
    live: Tensor
    recent: Tensor
    begun: Tensor


@register("compressed")
class Compressed(Bounded):
    """Memory-compressed attention (Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences", 1801.10198).

    Keys and values of three tokens become one by a convolution of kernel and stride 3 (section 4.2.3):
    ``k'_j = b + sum_i w_i * W_k x_(3j + i)``, and the same for values. Triples are counted from the start of the
    episode. A token attends by softmax to the compressed triples before its own and to the tokens of its own triple up
    to itself; the source attends to compressed tokens alone, which would hide the newest ones. It attends to all of
    them; here to the last ones, so that the state has one size. The source's kernel mixes all numbers of a key; here
    each number has a kernel of its own (depthwise), so that the mixer is about as large as the others.

    Memory: window, ``span / 3`` compressed keys and values and those of two tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens that the compressed ones stand for; rounded up to whole triples. The default is 20 keys.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    capability = Capability(
        source="Liu et al. 2018, section 4.2.3",
        differs="the last triples, not all, and a token's own triple uncompressed; a depthwise convolution",
        parallel="T (n/3 + 128) d",
        step="n/3 d",
        sees="the last {n}, three to a key, and its own triple",
    )

    def __init__(self, width: int, heads: int, span: int = 60) -> None:
        super().__init__(width, heads)
        self.triples = -(-checked_span(span) // TRIPLE)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.compress = nn.Conv1d(2 * width, 2 * width, TRIPLE, stride=TRIPLE, groups=2 * width)
        self.output = nn.Linear(width, width)

    def initial_state(self, batch_size: int) -> CompressedState:
        """Nothing remembered."""
        triples = self.key.weight.new_zeros(batch_size, self.triples, 2 * self.width)
        recent = self.key.weight.new_zeros(batch_size, TRIPLE - 1, 2 * self.width)
        live = torch.zeros(triples.shape[:2], dtype=torch.bool, device=triples.device)
        return CompressedState(triples, live, recent, live.new_zeros(batch_size, dtype=torch.long))

    def run(
        self, x: Tensor, state: CompressedState, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, CompressedState]:
        """See `Bounded.run`."""
        tokens = torch.cat([self.key(x), self.value(x)], -1)
        groups = group(state.recent, state.begun, tokens, episode, count, TRIPLE)
        compressed = self.compress(groups.members.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        triples = torch.cat([state.triples, compressed], 1)
        mask = torch.cat([seen(groups, state.live, episode), groups.own], -1).unsqueeze(1)
        keys, values = (
            self._split_heads(part) for part in torch.split(torch.cat([triples, groups.tokens], 1), self.width, -1)
        )
        mixed = F.scaled_dot_product_attention(self._split_heads(self.query(x)), keys, values, attn_mask=mask)
        kept = latest(triples, self.triples, groups.complete, compressed.shape[1])
        after = CompressedState(kept, still_live(groups, state.live, episode), groups.recent, groups.begun)
        return self.output(self._join_heads(mixed)), after
