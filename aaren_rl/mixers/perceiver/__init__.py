"""Perceiver: a few learned latents attend to all tokens so far, and each token attends to the latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.perceiver.stepper import PerceiverStepper
from aaren_rl.ops import prefix_attention as scan


@register("perceiver")
class Perceiver(Mixer):
    """Cross-attention from learned latents (Jaegle et al. 2021, "Perceiver", arXiv 2103.03206, section 3.1), causal.

    Latent l of a head is one query for all tokens, which makes it a recurrence ("Attention as an RNN", Feng et al.
    2024, arXiv 2405.13956, section 3): ``z_lt = l + sum_{i<=t} softmax_i(<l, W_k x_i> / sqrt(head width)) W_v x_i``.
    `aaren_rl.ops.prefix_attention` computes all prefixes. Then the token attends to the latents ("Perceiver IO", Jaegle
    et al. 2022, arXiv 2107.14795, section 3.2):
    ``o_t = W_o sum_l softmax_l(<W_q x_t, z_lt> / sqrt(head width)) z_lt``. Memory: constant, the scan's (m, c, a) of
    every latent of every head.

    In the source, latents attend to each other and to the tokens again, layer by layer. Here they attend to the tokens
    once: anything more would start anew for every prefix. Latents are queries without a projection, and their sums are
    added without one. Their keys and values need none either, since W_q and W_o can do the same within a head.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        latents: latents of each head. The default keeps the state far smaller than a matrix of a head's width.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or there is no latent.
    """

    memory = "constant"
    capability = Capability(
        source="Jaegle et al. 2021, section 3.1; Feng et al. 2024, section 3",
        differs="one cross-attention to the prefix, none among the latents, which are queries themselves; a token "
        "attends to them",
        parallel="T 64 l d for l latents a head",
        step="l d",
    )

    def __init__(self, width: int, heads: int, latents: int = 4) -> None:
        super().__init__(width, heads)
        if latents < 1:
            raise InvalidInput(f"{latents} latents of each head; expected at least 1")
        # Scale of the source.
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
        """See `Mixer.forward`; the state is a `scan.ScanState` with heads * latents heads."""
        number = self.latents.shape[1]
        scores = F.linear(x, *self.score_weights()).transpose(1, 2)  # (batch, heads * latents, time)
        values = self._split_heads(self.value(x)).repeat_interleave(number, 1)
        summed, state = scan.prefix_attention(scores, values, state, reset, valid)
        # (batch, heads, latents, time, head width)
        latents = summed.view(-1, self.heads, number, *summed.shape[2:]) + self.latents.unsqueeze(2)
        queries = self._split_heads(self.query(x)) * self.head_width**-0.5
        weights = torch.einsum("bhtd,bhltd->bhlt", queries, latents).softmax(2)
        mixed = torch.einsum("bhlt,bhltd->bhtd", weights, latents)
        return self.output(self._join_heads(mixed)), state

    def score_weights(self) -> tuple[Tensor, Tensor]:
        """Weight (heads * latents, width) and bias (heads * latents,) of the scores as a linear layer of the tokens.

        <l, W_k x + b> = <W_k^T l, x> + <l, b>: a product with few rows replaces a projection of every token.
        """
        scaled = self.latents * self.head_width**-0.5
        weight = scaled @ self.key.weight.view(self.heads, self.head_width, self.width)
        bias = (scaled * self.key.bias.view(self.heads, 1, self.head_width)).sum(-1)
        return weight.flatten(0, 1), bias.flatten()

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> PerceiverStepper:
        """See `Mixer.stepper`."""
        layers = self.value, self.query, self.output
        return PerceiverStepper(self.latents, self.score_weights(), *layers, tokens, outputs)
