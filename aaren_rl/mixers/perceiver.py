"""Perceiver: a few learned latents attend to all tokens so far, and each token to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register
from aaren_rl.ops import prefix_attention as scan

LATENTS = 4
"""Of each head: summaries to choose from, in a state that stays far smaller than a matrix of a head's width."""


@register("perceiver")
class Perceiver(Mixer):
    """Cross-attention from learned latents (Jaegle et al. 2021, "Perceiver", arXiv 2103.03206, section 3.1), causal.

    Latent l of a head is a query that is the same for all tokens, so that it is a recurrence over them ("Attention as
    an RNN", Feng et al. 2024, arXiv 2405.13956, section 3): ``z_lt = l + sum_{i<=t} softmax_i(<l, W_k x_i> /
    sqrt(head width)) W_v x_i``, for all prefixes by
    `aaren_rl.ops.prefix_attention`. Then the token asks the latents ("Perceiver IO",
    Jaegle et al. 2022, arXiv 2107.14795, section 3.2): ``o_t = W_o sum_l softmax_l(<W_q x_t, z_lt> / sqrt(head width))
    z_lt``. Memory: constant, the scan's (m, c, a) of every latent of every head.

    The source's latents attend to each other and to the tokens again, layer by layer; here they attend to the tokens
    once, since all else would have to be computed anew from each prefix. Latents are their own queries here, without a
    projection, and what they gather is added without one too; keys and values of the latents are not projected either,
    which within a head W_q and W_o can do as well.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        latents: of each head.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or there is no latent.
    """

    memory = "constant"
    capability = Capability(
        source="Jaegle et al. 2021, section 3.1; Feng et al. 2024, section 3",
        differs="one cross-attention to the prefix, none among the latents, which are their own queries; a token asks "
        "them",
        parallel="T 64 l d for l latents a head",
        step="l d^2",
    )

    def __init__(self, width: int, heads: int, latents: int = LATENTS) -> None:
        super().__init__(width, heads)
        if latents < 1:
            raise InvalidInput(f"{latents} latents of each head; expected at least 1")
        # The source's size.
        self.latents = nn.Parameter(torch.randn(heads, latents, self.head_width) * 0.02)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def initial_state(self, batch_size: int) -> scan.ScanState:
        """The empty prefix (m, c, a) of every latent of every head."""
        number = self.heads * self.latents.shape[1]
        return scan.initial_state(batch_size, number, self.head_width, self.latents.device)

    def forward(
        self,
        x: Tensor,
        state: scan.ScanState | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, scan.ScanState]:
        """See `Mixer.forward`; the state is a `scan.ScanState` of heads * latents."""
        number, scale = self.latents.shape[1], self.head_width**-0.5
        # <l, W_k x + b> = <W_k^T l, x> + <l, b>: one product of few rows instead of a projection of every token.
        asked = self.latents * scale
        rows = asked @ self.key.weight.view(self.heads, self.head_width, self.width)
        bias = (asked * self.key.bias.view(self.heads, 1, self.head_width)).sum(-1)
        scores = F.linear(x, rows.flatten(0, 1), bias.flatten()).transpose(1, 2)
        values = self._split_heads(self.value(x)).repeat_interleave(number, 1)
        summed, state = scan.prefix_attention(scores, values, state, reset, valid)
        latents = summed.view(-1, self.heads, number, *summed.shape[2:]) + self.latents.unsqueeze(2)
        queries = self._split_heads(self.query(x)) * scale
        weights = torch.einsum("bhtd,bhltd->bhlt", queries, latents).softmax(2)
        mixed = torch.einsum("bhlt,bhltd->bhtd", weights, latents)
        return self.output(self._join_heads(mixed)), state
