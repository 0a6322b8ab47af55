"""Softmax attention to the first tokens of an episode and to the last ones."""

from __future__ import annotations

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import FirstAndLast


@register("longformer")
class Longformer(FirstAndLast):
    """Sliding window and global attention (Beltagy et al. 2020, "Longformer", arXiv 2004.05150, section 3.1), causal.

    ``o_t = sum_p softmax_p(<W_q x_t, W_k x_p> / sqrt(head width)) W_v x_p`` over the last `span` tokens p of the
    episode, the current one included, and its first 4. In the source, the window lies on both sides of a token, the
    task chooses the global tokens, and these also see all others, through separate projections. Here no token sees
    ahead, so a global token sees no more than others do and needs no separate projections. All later tokens see it.
    Memory: window, keys and values of `span + 4` tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Beltagy et al. 2020, section 3.1",
        differs="the window lies before a token; the first tokens are the global ones, which see no more than others",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n} and the first 4",
    )

    def __init__(self, width: int, heads: int, span: int = 16) -> None:
        super().__init__(width, heads, span)
