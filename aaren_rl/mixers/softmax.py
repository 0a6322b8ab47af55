"""Causal softmax attention with a key-value cache: the mixer of the Decision Transformer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register


class SoftmaxState(NamedTuple):
    """The key-value cache, one entry per token so far.

    Attributes:
        keys: (batch, heads, time, head width).
        values: (batch, heads, time, head width).
        live: (batch, time) bool, False for padding and for tokens of earlier episodes.
    """

    keys: Tensor
    values: Tensor
    live: Tensor


@register("softmax")
class Softmax(Mixer):
    """Multi-head causal softmax attention ("Attention Is All You Need", Vaswani et al. 2017, section 3.2).

    Acting appends every token to a key-value cache, so the state and the time of a step grow with the episode.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    memory = "growing"
    capability = Capability(source="Vaswani et al. 2017 (arXiv 1706.03762), section 3.2", parallel="T^2 d", step="t d")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def initial_state(self, batch_size: int) -> SoftmaxState:
        """An empty cache."""
        empty = self.key.weight.new_zeros(batch_size, self.heads, 0, self.head_width)
        return SoftmaxState(empty, empty, torch.zeros(batch_size, 0, dtype=torch.bool, device=empty.device))

    def forward(
        self,
        x: Tensor,
        state: SoftmaxState | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, SoftmaxState]:
        """See `Mixer.forward`; the state is a `SoftmaxState`."""
        batch_size, time, _ = x.shape
        queries, keys, values = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        if state is None:
            state = self.initial_state(batch_size)
        valid = torch.ones(batch_size, time, dtype=torch.bool, device=x.device) if valid is None else valid
        reset = torch.zeros_like(valid) if reset is None else reset
        values = values.masked_fill(~valid[:, None, :, None], 0.0)
        keys = keys.masked_fill(~valid[:, None, :, None], 0.0)
        episode = reset.cumsum(1)
        cached = state.live.shape[1]
        keys = torch.cat([state.keys.to(keys.dtype), keys], dim=2)
        values = torch.cat([state.values.to(values.dtype), values], dim=2)
        live = torch.cat([state.live, valid], dim=1)
        key_episode = F.pad(episode, (cached, 0))
        # Rows are queries, columns keys. For 1 cached key and 2 tokens:   x x .
        #                                                                  x x x
        causal = torch.ones(time, cached + time, dtype=torch.bool, device=x.device).tril(cached)
        seen = causal & live.unsqueeze(1) & (episode.unsqueeze(2) == key_episode.unsqueeze(1))
        # A padded query sees itself: no row of the mask is empty, and no NaN arises. Its output has no meaning.
        own = torch.zeros_like(causal).diagonal_scatter(torch.ones_like(causal[:, 0]), cached)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=(seen | own).unsqueeze(1))
        return self.output(self._join_heads(mixed)), SoftmaxState(keys, values, live & (key_episode == episode[:, -1:]))

    def reset_state(self, state: SoftmaxState, rows: Tensor) -> SoftmaxState:
        """Marks the tokens of `rows` as dead and drops the oldest entries that are dead in every row."""
        live = state.live & ~rows.unsqueeze(1)
        needed = live.any(0)
        first = int(needed.float().argmax()) if bool(needed.any()) else live.shape[1]
        return SoftmaxState(state.keys[:, :, first:], state.values[:, :, first:], live[:, first:])
