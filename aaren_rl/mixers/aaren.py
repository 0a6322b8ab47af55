"""Aaren: attention whose query is learned per layer, so that it is a recurrence of constant size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aaren_rl import scan
from aaren_rl.mixers.base import Mixer
from aaren_rl.mixers.registry import register


@register("aaren")
class Aaren(Mixer):
    """Multi-head Aaren attention ("Attention as an RNN", Feng et al. 2024, arXiv 2405.13956, section 3.3).

    Like causal softmax attention, with one learned token in place of the current one as the query:
    ``o_k = sum_{i<=k} softmax_i(<W_q q, W_k x_i> / sqrt(head width)) W_v x_i``. The query projection stays, so a layer
    has one vector of the size of a token more than softmax attention. All prefixes are computed by `aaren_rl.scan`.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    memory = "constant"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.query_token = nn.Parameter(torch.randn(width) * 0.02)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

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
        scores = self._scores(x).transpose(1, 2)
        values = self._split_heads(self.value(x))
        mixed, state = scan.prefix_attention(scores, values, state, reset, valid)
        return self.output(self._join_heads(mixed)), state

    def _scores(self, x: Tensor) -> Tensor:
        """Scores of all tokens, (batch, time, heads).

        The query is the same for all tokens, so it is taken through the key projection once:
        <q, W_k x + b> = <W_k^T q, x> + <q, b>. This saves a width x width product per token.
        """
        query = self.query(self.query_token).reshape(self.heads, self.head_width) * self.head_width**-0.5
        weight = torch.einsum("hd,hdw->hw", query, self.key.weight.reshape(self.heads, self.head_width, self.width))
        bias = (query * self.key.bias.reshape(self.heads, self.head_width)).sum(-1)
        return nn.functional.linear(x, weight, bias)
