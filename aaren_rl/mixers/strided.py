"""Softmax attention to every fourth of the last tokens."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.local import Local


@register("strided")
class Strided(Local):
    """Dilated sliding-window attention (Beltagy et al. 2020, "Longformer", arXiv 2004.05150, section 3.1), causal.

    ``o_t = sum_p softmax_p(<W_q x_t, W_k x_p> / sqrt(head width)) W_v x_p`` over the tokens p = t, t - g, t - 2g, ...
    among the last `span` of the episode, with dilation g = 4. It is also the strided head of Child et al. 2019,
    "Generating Long Sequences with Sparse Transformers", arXiv 1904.10509, section 4.3, cut to a window. That source
    pairs it with a local head, and Longformer dilates some heads only. Here all are dilated, so tokens whose distance
    is no multiple of g never meet, in however many blocks of this mixer; blocks of another mixer make them meet.

    `span` is the reach, as in the other windows, and not the number of tokens seen, which is a quarter of it: so the
    same span needs the same training window. Memory: window, keys and values of `span - 1` tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one and those passed over included.
    """

    capability = Capability(
        source="Beltagy et al. 2020, section 3.1",
        differs="the window lies before a token, not around it; every head is dilated",
        parallel="T (n + 128) d",
        step="n d",
        sees="every 4th of the last {n}",
    )
    dilation: ClassVar[int] = 4
    """Distance between the tokens seen: no multiple of 3, so that of three tokens a step all kinds are seen."""

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `Windowed.mix`."""
        return super().mix(x, past, seen & (self.ages(x.shape[1]) % self.dilation == 0))
