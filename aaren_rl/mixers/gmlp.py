"""A gated perceptron: one half of the channels, mixed over time, gates the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.sliding_window import Windowed


@register("gmlp")
class GMLP(Windowed):
    """A gMLP block (Liu et al. 2021, "Pay Attention to MLPs", arXiv 2105.08050, section 2), causal.

    ``(u_t, v_t) = gelu(U x_t)`` in halves, ``o_t = V (u_t * (b + sum_a w_a norm(v_{t-a})))`` over the ages a < span, 0
    where the episode has no such token (biases of U and V left out). As in the source w begins near zero and b at one,
    so that no token sees another at first, and both are shared by all channels. In the source w has a row, and b a
    number, for each position of the sequence, which an agent would outlive; here tokens share one row of ages and one
    b. The source's norm and residual connection around it are those of the agent's blocks.

    Memory: window, ``norm(v)`` of `span - 1` tokens. There are no queries and keys; each half has 4/3 of the width,
    which makes it as large as attention.

    Args:
        width: size of a token.
        heads: checked as everywhere, otherwise without effect: the source has no heads.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Liu et al. 2021, section 2",
        differs="one row of weights by age, not one per position; the past only",
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
        # The newest last; as small as the model's other weights begin.
        self.spatial_weight = nn.Parameter(torch.randn(span) * 0.02)
        self.spatial_bias = nn.Parameter(torch.ones(1))
        self.output = nn.Linear(half, width)

    def remember(self, x: Tensor) -> Tensor:
        """See `Windowed.remember`: the normed half that gates."""
        return self.norm(F.gelu(self.gate(x)))  # type: ignore[no-any-return]

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """See `Windowed.mix`."""
        weights = self.along_past(self.spatial_weight.expand(x.shape[1], -1)) * seen
        gates = weights @ past + self.spatial_bias
        return self.output(F.gelu(self.gated(x)) * gates)  # type: ignore[no-any-return]
