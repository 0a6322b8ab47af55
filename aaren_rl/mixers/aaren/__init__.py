"""Aaren: attention with one learned query per layer, which makes it a recurrence of constant size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.aaren.stepper import AarenStepper
from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register
from aaren_rl.ops import prefix_attention as scan


@register("aaren")
class Aaren(Mixer):
    """Multi-head Aaren attention ("Attention as an RNN", Feng et al. 2024, arXiv 2405.13956, section 3.3).

    It is causal softmax attention with a learned token in place of the current one as the query:
    ``o_k = sum_{i<=k} softmax_i(<W_q q, W_k x_i> / sqrt(head width)) W_v x_i``. The query projection stays, so a layer
    has one vector of the width more than softmax attention. `aaren_rl.ops.prefix_attention` computes all prefixes.

    With recency, a score falls by a learned slope per head with every later token. Softmax ignores a shift that all
    scores share, so this is the same scan over other scores: the state decays by exp(-slope) per token. Slopes start as
    the fixed ones of Press et al. 2022 ("Train Short, Test Long", section 3); learning them is ours.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        recency: newer tokens weigh more.
    """

    memory = "constant"
    capability = Capability(source="Feng et al. 2024 (arXiv 2405.13956), section 3.3", parallel="T d, scan", step="d")

    def __init__(self, width: int, heads: int, recency: bool = False) -> None:
        super().__init__(width, heads)
        self.query_token = nn.Parameter(torch.randn(width) * 0.02)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.recency = recency
        if recency:
            slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
            self.slope_before_softplus = nn.Parameter(slopes.expm1().log())

    @property
    def slopes(self) -> Tensor:
        """How much a score falls with each later token, (heads,), positive."""
        return F.softplus(self.slope_before_softplus)

    def initial_state(self, batch_size: int) -> scan.ScanState:
        """The empty prefix (m, c, a) of every head."""
        return scan.initial_state(batch_size, self.heads, self.head_width, self.query_token.device)

    def forward(
        self,
        x: Tensor,
        state: scan.ScanState | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, scan.ScanState]:
        """See `Mixer.forward`; the state is a `scan.ScanState`."""
        scores = F.linear(x, *self.score_weights()).transpose(1, 2)  # (batch, heads, time)
        values = self._split_heads(self.value(x))  # (batch, heads, time, head width)
        if self.recency:
            scores, state = self._decay(scores, state, valid)
        mixed, state = scan.prefix_attention(scores, values, state, reset, valid)
        return self.output(self._join_heads(mixed)), state

    def _decay(
        self, scores: Tensor, state: scan.ScanState | None, valid: Tensor | None
    ) -> tuple[Tensor, scan.ScanState | None]:
        """Lowers each score, and those in the state, by the slope times the number of later tokens.

        In float32, early ones of thousands of tokens lose digits: an output is off by some 1e-5 at 3,000 tokens.
        """
        live = torch.ones_like(scores[:, 0]) if valid is None else valid.to(scores.dtype)
        # Autocast gives scores in half precision; the sum needs float32 at least.
        seen = live.to(torch.promote_types(scores.dtype, torch.float32)).cumsum(-1)
        slopes = self.slopes.to(seen.dtype)
        scores = scores.to(seen.dtype) - slopes.view(-1, 1) * (seen[:, -1:] - seen).unsqueeze(1)
        if state is not None:
            lowered = slopes * seen[:, -1:]
            # The maximum takes the value of the decay, the sums its derivative: no form differentiates the maximum.
            ones = torch.exp(lowered.detach() - lowered)
            state = scan.ScanState(state.m - lowered.detach(), state.c * ones, state.a * ones.unsqueeze(-1))
        return scores, state

    def score_weights(self) -> tuple[Tensor, Tensor]:
        """Weight (heads, width) and bias (heads,) of the scores as a linear layer of the tokens.

        All tokens share the query, so it goes through the key projection once:
        <q, W_k x + b> = <W_k^T q, x> + <q, b>. This saves a width x width product per token.
        """
        query = self.query(self.query_token).reshape(self.heads, self.head_width) * self.head_width**-0.5
        weight = (query.unsqueeze(1) @ self.key.weight.reshape(self.heads, self.head_width, self.width)).squeeze(1)
        bias = (query * self.key.bias.reshape(self.heads, self.head_width)).sum(-1)
        return weight, bias

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> AarenStepper:
        """See `Mixer.stepper`."""
        slopes = self.slopes if self.recency else None
        return AarenStepper(self.score_weights(), self.value, self.output, slopes, norm, tokens, outputs)
