"""Softmax attention to compressed tokens, three to a key."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import Chunkwise, checked_span, latest
from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.tumbling_window import live_windows, tumbling_windows, visible_windows

TRIPLE = 3
"""Tokens that are compressed into one: kernel and stride of the source."""


class CompressedState(NamedTuple):
    """Compressed keys and values, and those of the last two tokens; the newest last.

    Attributes:
        triples: keys, then values, of the last triples, (batch, triples, 2 width).
        live: (batch, triples) bool, False before the first triple of the episode.
        recent: keys, then values, of the last tokens, (batch, 2, 2 width).
        filled: how many of `recent` belong to the unfinished triple, (batch,).
    """

    triples: Tensor
    live: Tensor
    recent: Tensor
    filled: Tensor


@register("compressed")
class Compressed(Chunkwise):
    """Memory-compressed attention (Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences", 1801.10198).

    A convolution of kernel and stride 3 compresses keys and values of three tokens into one (section 4.2.3):
    ``k'_j = b + sum_i w_i * W_k x_(3j + i)``, and the same for values. Triples are counted from the start of the
    episode. For triples of the tokens `abc`, `def` and `ghi`, token h attends to:

        abc  def  g  h

    The source attends to compressed tokens alone, which would hide the newest ones. It attends to all triples; here a
    token attends to the last ones, so the state has a fixed size. The source's kernel mixes all numbers of a key. Here
    it is depthwise, one kernel per number, which makes this mixer about as large as the others.

    Memory: window, ``span / 3`` compressed keys and values and those of two tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens that the compressed ones stand for; rounded up to whole triples. The default gives 20 keys.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    capability = Capability(
        source="Liu et al. 2018, section 4.2.3",
        differs="the last triples, not all; the triple of the token itself uncompressed; a depthwise convolution",
        parallel="T (n/3 + 128) d",
        step="n/3 d",
        sees="the last {n}, three to a key, and its triple",
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
        """No tokens yet."""
        triples = self.key.weight.new_zeros(batch_size, self.triples, 2 * self.width)
        recent = self.key.weight.new_zeros(batch_size, TRIPLE - 1, 2 * self.width)
        live = torch.zeros(triples.shape[:2], dtype=torch.bool, device=triples.device)
        return CompressedState(triples, live, recent, live.new_zeros(batch_size, dtype=torch.long))

    def mix_chunk(
        self, x: Tensor, state: CompressedState, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, CompressedState]:
        """See `Chunkwise.mix_chunk`."""
        entries = torch.cat([self.key(x), self.value(x)], -1)
        windows = tumbling_windows(state.recent, state.filled, entries, episode, count, TRIPLE)
        compressed = self.compress(windows.completed.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        triples = torch.cat([state.triples, compressed], 1)
        # Columns: triples of the state, triples of the chunk, single tokens.
        mask = torch.cat([visible_windows(windows, state.live, episode), windows.in_window], -1).unsqueeze(1)
        keys, values = (
            self._split_heads(part) for part in torch.split(torch.cat([triples, windows.entries], 1), self.width, -1)
        )
        mixed = F.scaled_dot_product_attention(self._split_heads(self.query(x)), keys, values, attn_mask=mask)
        kept = latest(triples, self.triples, windows.completed_count, compressed.shape[1])
        after = CompressedState(kept, live_windows(windows, state.live, episode), windows.recent, windows.filled)
        return self.output(self._join_heads(mixed)), after
