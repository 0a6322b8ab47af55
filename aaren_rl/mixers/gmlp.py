"""A gated perceptron: one half of the channels, mixed over time, gates the other half."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import SlidingWindow


@register("gmlp")
class GMLP(SlidingWindow):
    """A gMLP block (Liu et al. 2021, "Pay Attention to MLPs", arXiv 2105.08050, section 2), causal.

    ``(u_t, v_t) = gelu(U x_t)`` in halves, ``o_t = V (u_t * (b + sum_a w_a norm(v_{t-a})))`` over the ages a < span, 0
    where the episode has no such token (biases of U and V left out). All channels share w and b. As in the source, w
    starts near zero and b at one, so at first no token sees another. The source learns a row of w and a number of b per
    position of the sequence; here all tokens share one row, by distance into the past, and one b. The agent's blocks
    supply the norm and the residual connection around it.

    Memory: window, ``norm(v)`` of `span - 1` tokens. A half is 4/3 of the width, which makes this mixer as large as
    attention.

    Args:
        width: size of a token.
        heads: checked, otherwise without effect: the source has no heads.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Liu et al. 2021, section 2",
        differs="one row of weights by age, not one per position; past tokens only",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}",
    )

    def __init__(self, width: int, heads: int, span: int = 20) -> None:
        half = 4 * width // 3
        super().__init__(width, heads, span, half)
        self.gated = nn.Linear(width, half)
        self.gate = nn.Linear(width, half)
        self.norm = nn.LayerNorm(half)
        # The newest token last; as small as the initial weights of the model.
        self.spatial_weight = nn.Parameter(torch.randn(span) * 0.02)
        self.spatial_bias = nn.Parameter(torch.ones(1))
        self.output = nn.Linear(half, width)

    def remember(self, x: Tensor) -> Tensor:
        """See `SlidingWindow.remember`; an entry is the normed half that gates."""
        return self.norm(F.gelu(self.gate(x)))  # type: ignore[no-any-return]

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `SlidingWindow.mix`."""
        weights = self.along_past(self.spatial_weight.expand(x.shape[1], -1)) * seen
        gates = weights @ past + self.spatial_bias
        return self.output(F.gelu(self.gated(x)) * gates)  # type: ignore[no-any-return]
