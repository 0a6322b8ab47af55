"""Aaren: attention with one learned query per layer, which makes it a recurrence of constant size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.aaren.gated_stepper import GatedAarenStepper, GatedParts
from aaren_rl.mixers.aaren.stepper import AarenStepper
from aaren_rl.mixers.base.contract import Capability, Mixer
from aaren_rl.mixers.base.registry import register
from aaren_rl.ops import prefix_attention as scan
from aaren_rl.ops.rotation import phases, rotate

SHORTEST_PERIOD, LONGEST_PERIOD = 2.0, 256.0
"""Tokens of a whole turn, at first, of the fastest and the slowest pair of numbers."""

KEEP_BIASES = (1.0, 6.0)
"""Biases of the forget gates lie evenly between these: that of one head is 3.5, which keeps 0.97 of the past."""


@register("aaren")
class Aaren(Mixer):
    """Multi-head Aaren attention ("Attention as an RNN", Feng et al. 2024, arXiv 2405.13956, section 3.3).

    It is causal softmax attention with a learned token in place of the current one as the query:
    ``o_k = sum_{i<=k} softmax_i(<W_q q, W_k x_i> / sqrt(head width)) W_v x_i``. The query projection stays, so a layer
    has one vector of the width more than softmax attention. `aaren_rl.ops.prefix_attention` computes all prefixes.

    This mean knows neither age nor forgetting. Options add what it lacks, to the same scan. The paper's layer has none:

    - recency: a score falls by a learned slope per head with every later token. Slopes start as the fixed ones of Press
      et al. 2022 ("Train Short, Test Long", arXiv 2108.12409, section 3); learning them is ours.
    - forget: a token multiplies the weights of all earlier ones by ``sigmoid(<w, x> + b)``, per head: the forget gate
      of Lin et al. 2025 ("Forgetting Transformer", arXiv 2503.02130, section 3), here with a learned query.
    - rotary: values turn by an angle that grows with their age (ours; Su et al. 2021, "RoFormer", arXiv 2104.09864,
      turn queries and keys): ``o_k = sum_i w_ki R(theta (k - i)) v_i``. Each pair of a value's numbers is a complex
      number with a learned frequency theta. This tells what is k tokens old from what is k + 1 tokens old.
    - gate: outputs are multiplied by ``silu(W_g x)`` (Hua et al. 2022, "FLASH", arXiv 2202.10447, section 2).
    - lasting: a second learned query attends to the same values without any of these, and its output is added (ours).
      What turns or fades is of no use after thousands of tokens; this mean is, and it doubles the state.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        recency: newer tokens weigh more.
        forget: tokens choose how much of the past to keep.
        rotary: share of each head's numbers that turn with age, from 0 to 1.
        gate: tokens choose what to let through.
        lasting: a second query whose mean neither turns nor fades.

    Raises:
        InvalidInput: rotary is out of range, or turns less than one pair of a head's numbers.
    """

    memory = "constant"
    capability = Capability(source="Feng et al. 2024 (arXiv 2405.13956), section 3.3", parallel="T d, scan", step="d")

    def __init__(
        self,
        width: int,
        heads: int,
        recency: bool = False,
        forget: bool = False,
        rotary: float = 0.0,
        gate: bool = False,
        lasting: bool = False,
    ) -> None:
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
        self.keep = nn.Linear(width, heads) if forget else None
        if forget:
            # A parameter of its own: a model initialises the bias of a linear layer to 0.
            self.keep_bias = nn.Parameter(torch.linspace(*KEEP_BIASES, heads + 2)[1:-1])
        pairs = _rotating_pairs(rotary, self.head_width)
        self.log_frequency = nn.Parameter(_frequencies(heads, pairs).log()) if pairs else None
        self.gate = nn.Linear(width, width) if gate else None
        self.lasting_token = nn.Parameter(torch.randn(width) * 0.02) if lasting else None

    @property
    def slopes(self) -> Tensor:
        """How much a score falls with each later token, (heads,), positive."""
        return F.softplus(self.slope_before_softplus)

    def initial_state(self, batch_size: int) -> scan.ScanState:
        """The empty prefix (m, c, a) of every head; those of lasting means follow the others."""
        means = self.heads if self.lasting_token is None else 2 * self.heads
        return scan.initial_state(batch_size, means, self.head_width, self.query_token.device)

    def forward(
        self,
        x: Tensor,
        state: scan.ScanState | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, scan.ScanState]:
        """See `Mixer.forward`; the state is a `scan.ScanState`."""
        scores = F.linear(x, *self.score_weights()).transpose(1, 2)  # (batch, means, time)
        values = self._split_heads(self.value(x))  # (batch, heads, time, head width)
        phase = None if self.log_frequency is None else self._phases(x, valid)  # (., heads, time, head width / 2)
        turned = values if phase is None else rotate(values, phase.conj()).to(values.dtype)
        if self.lasting_token is not None:
            turned = torch.cat([turned, values], 1)  # (batch, means, time, head width)
        mixed, state = scan.prefix_attention(scores, turned, state, reset, valid, log_decay=self._log_decay(x))
        # Not slices: the derivative of each would fill both with zeros.
        mixed, *lasting = torch.split(mixed, self.heads, 1)
        if phase is not None:
            mixed = rotate(mixed, phase).to(mixed.dtype)
            a = rotate(state.a[:, : self.heads], phase[:, :, -1])
            state = state._replace(a=torch.cat([a, state.a[:, self.heads :]], 1))
        joined = self._join_heads(mixed)  # (batch, time, width)
        if self.gate is not None:
            joined = joined * F.silu(self.gate(x))
        if lasting:
            joined = joined + self._join_heads(*lasting)
        return self.output(joined), state

    def _log_decay(self, x: Tensor) -> Tensor | None:
        """Logarithm of what each token leaves of all earlier weights, (batch, means, time); None for all of it."""
        log_decay: Tensor | None = None
        if self.keep is not None:
            # Over thousands of tokens, half precision would forget by rounding.
            logits = self.keep(x).to(torch.promote_types(x.dtype, torch.float32)) + self.keep_bias
            log_decay = F.logsigmoid(logits).transpose(1, 2)
        if self.recency:
            slopes = self.slopes.unsqueeze(-1).expand(x.shape[0], -1, x.shape[1])
            log_decay = -slopes if log_decay is None else log_decay - slopes
        if log_decay is not None and self.lasting_token is not None:
            log_decay = F.pad(log_decay, (0, 0, 0, self.heads))
        return log_decay

    def _phases(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Unit complex numbers by which outputs turn forth, and values back, (1 or batch, heads, time, head width / 2).

        Only the places of tokens relative to each other matter. They count real tokens from the start of the row, so
        the state is that of place 0.
        """
        assert self.log_frequency is not None
        table = phases(self.log_frequency.exp(), x.shape[1])  # (places, heads, pairs)
        still = self.head_width // 2 - table.shape[-1]
        table = F.pad(table, (0, still), value=1.0) if still else table
        by_token = table[1:].unsqueeze(0) if valid is None else table[valid.cumsum(1)]
        return by_token.transpose(1, 2)

    def score_weights(self) -> tuple[Tensor, Tensor]:
        """Weight (means, width) and bias (means,) of the scores as a linear layer of the tokens.

        All tokens share the query, so it goes through the key projection once:
        <q, W_k x + b> = <W_k^T q, x> + <q, b>. This saves a width x width product per token.
        """
        tokens = [part for part in (self.query_token, self.lasting_token) if part is not None]
        queries = self.query(torch.stack([*tokens])).view(len(tokens), self.heads, 1, -1) * self.head_width**-0.5
        weight = queries @ self.key.weight.view(self.heads, self.head_width, self.width)  # (tokens, heads, 1, width)
        bias = (queries.squeeze(2) * self.key.bias.view(self.heads, self.head_width)).sum(-1)
        return weight.flatten(0, 2), bias.flatten()

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> AarenStepper | GatedAarenStepper:
        """See `Mixer.stepper`."""
        slopes = self.slopes if self.recency else None
        if self.keep is None and self.log_frequency is None and self.gate is None and self.lasting_token is None:
            return AarenStepper(self.score_weights(), self.value, self.output, slopes, norm, tokens, outputs)
        parts = GatedParts(
            score=self.score_weights(),
            value=self.value,
            output=self.output,
            keep=None if self.keep is None else (self.keep.weight, self.keep.bias + self.keep_bias),
            slopes=slopes,
            frequencies=None if self.log_frequency is None else self.log_frequency.exp(),
            gate=self.gate,
        )
        return GatedAarenStepper(parts, self.heads, tokens, outputs)


def _rotating_pairs(share: float, head_width: int) -> int:
    """Number of pairs of a head's numbers that turn."""
    if not 0 <= share <= 1:
        raise InvalidInput(f"rotary is {share}; expected a share of each head's numbers, from 0 to 1")
    if share and head_width % 2:
        raise InvalidInput(
            f"rotary is {share} with heads of width {head_width}; expected an even width, whose numbers form "
            "pairs: pass another number of heads, or rotary=0"
        )
    pairs = round(share * head_width / 2)
    if share and not pairs:
        raise InvalidInput(f"rotary is {share} of heads of width {head_width}, less than one pair; pass a larger share")
    return pairs


def _frequencies(heads: int, pairs: int) -> Tensor:
    """Radians per token, (heads, pairs): periods from `SHORTEST_PERIOD` to `LONGEST_PERIOD`, spaced evenly in their
    logarithm. Heads take turns, so that each spans the whole range.
    """
    place = torch.arange(pairs * heads).view(pairs, heads).t() / max(pairs * heads - 1, 1)
    return 2 * math.pi / (SHORTEST_PERIOD * (LONGEST_PERIOD / SHORTEST_PERIOD) ** place)
