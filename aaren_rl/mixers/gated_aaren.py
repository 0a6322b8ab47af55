"""Aaren that knows the order of tokens and what to forget."""

from __future__ import annotations

from aaren_rl.mixers.aaren import Aaren
from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register


@register("gated-aaren")
class GatedAaren(Aaren):
    """`Aaren` with all that orders it: rotation, forget and output gates, a lasting mean and a short convolution (ours).

    A name for ``aaren(conv=4, forget=true, gate=true, lasting=true, rotary=1)``: the same scan, and twice the state plus
    the last 3 tokens. Each of them can be turned off.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        recency: as in `Aaren`.
        forget: as in `Aaren`.
        rotary: as in `Aaren`.
        gate: as in `Aaren`.
        lasting: as in `Aaren`.

    Raises:
        InvalidInput: as `Aaren`.
    """

    conv = 4
    capability = Capability(
        source="ours, on Feng et al. 2024 (arXiv 2405.13956)",
        differs="rotated values, forget gate, output gate, a second mean that lasts, convolution",
        parallel="T d, scan",
        step="d",
    )

    def __init__(
        self,
        width: int,
        heads: int,
        recency: bool = False,
        forget: bool = True,
        rotary: float = 1.0,
        gate: bool = True,
        lasting: bool = True,
    ) -> None:
        super().__init__(width, heads, recency, forget, rotary, gate, lasting)
