"""Softmax attention to a few learned sums of the last tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import SlidingWindow


@register("linformer")
class Linformer(SlidingWindow):
    """Linear attention by projection (Wang et al. 2020, "Linformer", arXiv 2006.04768, section 4), causal.

    ``o_t = softmax(q_t (E K)^T / sqrt(head width)) F V`` with the keys K and values V of the last `span` tokens of the
    episode, (span, head width). The heads of a layer share the learned E and F, (rank, span), the source's headwise
    sharing. The source projects a whole sequence, so its keys contain the future. Here each token projects
    its window; for a full window this is the source's formula. Before that, missing tokens have keys and values of
    zero: projections sum fewer tokens, and the softmax still runs over all projections.

    No token needs a tensor of size (rank, width): with ``s = q K^T`` and ``p = softmax(E s)``, the output is
    ``(p F) V``. Memory: window, keys and values of `span - 1` tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Wang et al. 2020, section 4",
        differs="projects the window of each token, not the whole sequence",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}",
    )
    rank: ClassVar[int] = 5
    """Number of projected keys: a quarter of the usual window, as in the source, where 128 of 512 lose little."""

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span, 2 * width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        # E and F, the newest token last, scaled so that a projected key is as large as a key.
        self.project_keys = nn.Parameter(torch.randn(self.rank, span) / span**0.5)
        self.project_values = nn.Parameter(torch.randn(self.rank, span) / span**0.5)
        self.output = nn.Linear(width, width)

    def remember(self, x: Tensor) -> Tensor:
        """See `SlidingWindow.remember`; an entry is a key and a value."""
        return torch.cat([self.key(x), self.value(x)], -1)

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `SlidingWindow.mix`."""
        queries = self._split_heads(self.query(x)) * self.head_width**-0.5
        keys, values = (self._split_heads(part) for part in past.chunk(2, -1))
        unseen = ~seen.unsqueeze(1)
        scores = self.along_window((queries @ keys.transpose(2, 3)).masked_fill(unseen, 0.0)) @ self.project_keys.mT
        weights = self.along_past(scores.softmax(-1) @ self.project_values).masked_fill(unseen, 0.0)
        return self.output(self._join_heads(weights @ values))  # type: ignore[no-any-return]
