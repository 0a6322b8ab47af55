"""Softmax attention to every fourth of the last tokens."""

from __future__ import annotations

from typing import ClassVar

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.local import Local


@register("strided")
class Strided(Local):
    """Dilated sliding-window attention (Beltagy et al. 2020, "Longformer", arXiv 2004.05150, section 3.1), causal.

    ``o_t = sum_p softmax_p(<W_q x_t, W_k x_p> / sqrt(head width)) W_v x_p`` over the tokens p = t, t - g, t - 2g, ...
    among the last `span` of the episode, with dilation g = 4. Cut to a window, this is also the strided head of Child
    et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv 1904.10509, section 4.3. That source pairs
    it with a local head, and Longformer dilates only some heads. Here all are dilated: tokens whose distance is no
    multiple of g never meet, in however many blocks. Blocks with another mixer make them meet.

    `span` is the reach, as in other windows; a quarter of these tokens is seen. So the same span needs the same
    training window. Memory: window, keys and values of `span - 1` tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one and the skipped ones included.
    """

    capability = Capability(
        source="Beltagy et al. 2020, section 3.1",
        differs="the window lies before a token, not around it; every head is dilated",
        parallel="T (n + 128) d",
        step="n d",
        sees="every 4th of the last {n}",
    )
    dilation: ClassVar[int] = 4
    """No multiple of 3, so that all three tokens of an interleaved step are seen."""
