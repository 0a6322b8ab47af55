"""Aaren: attention whose query is learned per layer, so that it is a recurrence of constant size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability, Mixer, Stepper
from aaren_rl.mixers.base.registry import register
from aaren_rl.ops import prefix_attention as scan

EMPTY = -1e30
"""Score of no token where infinities are not wanted; exponentiates to 0 beside any other."""

NARROW = 60.0
"""Widest range of scores to take relative to their largest: every exponential is then at least 1e-26."""

NOTHING = 1e-37
"""Count of no token where it must not be 0, so that what is missing divides 0 by something; next to 1e-26 none."""


@register("aaren")
class Aaren(Mixer):
    """Multi-head Aaren attention ("Attention as an RNN", Feng et al. 2024, arXiv 2405.13956, section 3.3).

    Like causal softmax attention, with one learned token in place of the current one as the query:
    ``o_k = sum_{i<=k} softmax_i(<W_q q, W_k x_i> / sqrt(head width)) W_v x_i``. The query projection stays, so a layer
    has one vector of the size of a token more than softmax attention. All prefixes are computed by
    `aaren_rl.ops.prefix_attention`.

    With recency a token's score falls by a learned slope per head with every token after it. The shift that all scores
    share cancels, so this is the same scan over other scores, and a state that decays by exp(-slope) a token. The
    slopes begin as the fixed ones of Press et al. 2022 ("Train Short, Test Long", section 3); learning them is ours.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        recency: whether newer tokens weigh more.
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
        scores = F.linear(x, *self.score_weights()).transpose(1, 2)
        values = self._split_heads(self.value(x))
        if self.recency:
            scores, state = self._aged(scores, state, valid)
        mixed, state = scan.prefix_attention(scores, values, state, reset, valid)
        return self.output(self._join_heads(mixed)), state

    def _aged(
        self, scores: Tensor, state: scan.ScanState | None, valid: Tensor | None
    ) -> tuple[Tensor, scan.ScanState | None]:
        """Scores and state as they are after the last token, each lowered by the slope times the tokens since.

        In float32 the first of thousands of tokens lose digits: some 1e-5 of an output at 3,000 tokens.
        """
        live = torch.ones_like(scores[:, 0]) if valid is None else valid.to(scores.dtype)
        # At least float32, since products under autocast come in less.
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
        """The scores as a linear layer of the tokens: its weight (heads, width) and bias (heads,).

        The query is the same for all tokens, so it is taken through the key projection once:
        <q, W_k x + b> = <W_k^T q, x> + <q, b>. This saves a width x width product per token.
        """
        query = self.query(self.query_token).reshape(self.heads, self.head_width) * self.head_width**-0.5
        weight = (query.unsqueeze(1) @ self.key.weight.reshape(self.heads, self.head_width, self.width)).squeeze(1)
        bias = (query * self.key.bias.reshape(self.heads, self.head_width)).sum(-1)
        return weight, bias

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> AarenStep:
        """See `Mixer.stepper`."""
        return AarenStep(self, norm, tokens, outputs)


class AarenStep(Stepper):
    """Aaren for the tokens of one step, with one product before the mixing and, for several heads, one after.

    A layer norm bounds its outputs, so the scores of a layer lie in a known range (Cauchy-Schwarz). Where it is narrow
    enough, all are taken relative to its upper end: nothing can overflow, and a row of state is (a, c) of each head.
    Else it is (a, c, m) with the running maximum m, -1e30 for the empty prefix.

    Args:
        mixer: to act with.
        norm: the layer norm whose outputs it mixes.
        tokens: how many a step has.
        outputs: for how many of them, the last ones, the mixed token is wanted.
    """

    project: Tensor
    project_bias: Tensor
    output: Tensor
    later: Tensor
    kept: Tensor

    def __init__(self, mixer: Aaren, norm: nn.LayerNorm, tokens: int, outputs: int) -> None:
        weight, bias = mixer.score_weights()
        reach = mixer.width**0.5 * (weight * norm.weight).norm(dim=-1)
        heads, dim = mixer.heads, mixer.head_width
        bounded = bool((2 * reach <= NARROW).all())
        start = [*[0.0] * dim, NOTHING, *([] if bounded else [EMPTY])]
        super().__init__(torch.tensor(start, dtype=torch.float64, device=weight.device).repeat(heads))
        self.bounded, self.tokens, self.outputs, self.heads, self.dim = bounded, tokens, outputs, heads, dim
        if bounded:
            bias = bias - (bias + weight @ norm.bias + reach)
        value: Tensor = mixer.value.weight
        value_bias: Tensor = mixer.value.bias
        self.folded = heads == 1
        if self.folded:
            # The mean of projected values is their projected mean: with one head the output projection goes first.
            value_bias = mixer.output.weight @ value_bias + mixer.output.bias
            value = mixer.output.weight @ value
        # Each head's rows are its values, a constant 1 that counts the tokens, and its score.
        parts = value.view(heads, dim, -1), torch.zeros_like(weight).unsqueeze(1), weight.unsqueeze(1)
        biases = value_bias.view(heads, dim), torch.ones_like(bias).unsqueeze(1), bias.unsqueeze(1)
        self.register_buffer("project", torch.cat(parts, 1).flatten(0, 1))
        self.register_buffer("project_bias", torch.cat(biases, 1).flatten())
        # Divided by the count, the count is 1 again and carries the bias of the output; of all heads the first one's.
        carried = F.pad(mixer.output.weight.view(-1, heads, dim), (0, 1))
        carried[:, 0, dim] = mixer.output.bias
        self.register_buffer("output", carried.flatten(1).t().contiguous())
        # Row k: what the scores of the state and of all tokens get added for the k-th output: EMPTY those after it,
        # and those before it what they lose by their age.
        place = torch.arange(tokens + 1, device=weight.device)
        age = place[tokens - outputs + 1 :, None] - place
        # Beyond 200 a step leaves nothing in any precision, and its square would be 0.
        slopes = mixer.slopes.clamp(max=200.0) if mixer.recency else torch.zeros_like(bias)
        later = torch.where(age < 0, EMPTY, -slopes.view(-1, 1, 1) * age)
        self.register_buffer("later", later)
        self.recency = mixer.recency
        self.register_buffer("kept", later.double().exp())

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        rows = F.linear(x, self.project, self.project_bias)
        sums, state = (self._bounded if self.bounded else self._running)(rows, state, live)
        count = sums[..., self.dim : self.dim + 1]
        if self.folded:
            return onto + (sums[..., : self.dim] / count).reshape(-1, self.dim).to(onto.dtype), state
        mixed = (sums / count).to(onto.dtype)
        return torch.addmm(onto, mixed.reshape(-1, len(self.output)), self.output), state

    def _bounded(self, rows: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums (a, c) up to each output, (batch, outputs, [heads,] dim + 1), and the new state."""
        if self.tokens == 1:
            if self.heads > 1:
                rows, state = rows.view(-1, self.heads, self.dim + 2), state.view(-1, self.heads, self.dim + 1)
            value, score = torch.split(rows, [self.dim + 1, 1], -1)
            if self.recency:
                state = state * self.kept[:, 0, :1]
            state = state + (value * score.exp()).double()
            return state, state if self.heads == 1 else state.flatten(1)
        shape = (self.tokens,) if self.heads == 1 else (self.tokens, self.heads)
        value, score = torch.split(rows.view(-1, *shape, self.dim + 2), [self.dim + 1, 1], -1)
        weight = score.exp()
        if live is not None:
            weight = weight * (live.unsqueeze(-1) if self.heads == 1 else live[..., None, None])
        added = (value * weight).double()
        before = state.view(-1, 1, *shape[1:], self.dim + 1)
        if self.recency:
            pieces = torch.cat([before, added], 1)
            sums = self.kept[0] @ pieces if self.heads == 1 else (self.kept @ pieces.transpose(1, 2)).transpose(1, 2)
            return sums, sums[:, -1].flatten(1)
        sums = before + (added.sum(1, keepdim=True) if self.outputs == 1 else added.cumsum(1)[:, -self.outputs :])
        return sums, sums[:, -1].flatten(1)

    def _running(self, rows: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums (a, c) up to each output, (batch, outputs, heads, dim + 1), and the new state."""
        tokens = rows.view(-1, self.tokens, self.heads, self.dim + 2)
        pieces = torch.cat([state.view(-1, 1, self.heads, self.dim + 2), tokens.double()], 1).transpose(1, 2)
        scores = pieces[..., -1]
        if live is not None:
            scores = scores + ((1 - F.pad(live, (1, 0), value=1.0)) * EMPTY).unsqueeze(1)
        table = scores.unsqueeze(2) + self.later
        m = table.amax(-1, keepdim=True)
        sums = torch.exp(table - m) @ pieces[..., :-1]
        after = torch.cat([sums, m], -1)[:, :, -1]
        return sums.transpose(1, 2), after.flatten(1)
