"""Softmax attention to the last tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import SlidingWindow
from aaren_rl.mixers.local.stepper import LocalStepper


@register("local")
class Local(SlidingWindow):
    """Sliding-window attention (Beltagy et al. 2020, "Longformer", arXiv 2004.05150, section 3.1), causal.

    ``o_t = sum_p softmax_p(<W_q x_t, W_k x_p> / sqrt(head width)) W_v x_p`` over the last `span` tokens p of the
    episode, the current one included. The source's window lies on both sides of a token; here it lies before the
    token, since an agent knows no later ones. Memory: window, keys and values of `span - 1` tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Beltagy et al. 2020, section 3.1",
        differs="the window lies before a token, not around it",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}",
    )

    dilation: ClassVar[int] = 1
    """Distance between seen tokens."""

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        super().__init__(width, heads, span, 2 * width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def remember(self, x: Tensor) -> Tensor:
        """See `SlidingWindow.remember`; an entry is a key and a value."""
        return torch.cat([self.key(x), self.value(x)], -1)

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `SlidingWindow.mix`."""
        if self.dilation > 1:
            seen = seen & (self.ages(x.shape[1]) % self.dilation == 0)
        queries = self._split_heads(self.query(x))
        keys, values = (self._split_heads(part) for part in torch.split(past, self.width, -1))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen.unsqueeze(1))
        return self.output(self._join_heads(mixed))  # type: ignore[no-any-return]

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> LocalStepper:
        """See `Mixer.stepper`."""
        return LocalStepper(self, tokens, outputs)
