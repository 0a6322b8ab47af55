"""Aaren folded for acting, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.aaren.numpy_stepper import EMPTY, NumpyAarenStepper
from aaren_rl.mixers.base.stepper import Stepper

if TYPE_CHECKING:
    from aaren_rl.mixers.aaren import Aaren

NARROW = 60.0
"""Widest range of scores to take relative to its upper end: every exponential is then at least 1e-26."""

NOTHING = 1e-37
"""Count of a missing token where a count of 0 would divide by 0; beside 1e-26 it vanishes."""

STEEPEST = 200.0
"""Largest slope: it leaves nothing of earlier tokens in any precision, but its decay over a step is not yet 0."""


class AarenStepper(Stepper):
    """Aaren for the tokens of one step: one product before the mixing and, with several heads, one after.

    A layer norm bounds its outputs, so the scores lie in a known range (Cauchy-Schwarz). If the range is narrow, scores
    are relative to its upper end and cannot overflow: the "bounded" form. A row of state is then (a, c) of each head.
    Otherwise it is (a, c, m) with the running maximum m, -1e30 for the empty prefix: the "running" form.

    Args:
        mixer: mixer to act with.
        norm: layer norm in front of the mixer.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
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
        # The mean of projected values is the projected mean: with one head, the output projection goes first.
        self.folded = heads == 1
        project, project_bias = self._projection(mixer, weight, bias)
        self.register_buffer("project", project)
        self.register_buffer("project_bias", project_bias)
        # Divided by the count, the count itself is 1 and carries the bias of the output, in the first head.
        carried = F.pad(mixer.output.weight.view(-1, heads, dim), (0, 1))
        carried[:, 0, dim] = mixer.output.bias
        self.register_buffer("output", carried.flatten(1).t().contiguous())
        self.recency = mixer.recency
        later = self._later(mixer.slopes.clamp(max=STEEPEST) if mixer.recency else torch.zeros_like(bias))
        self.register_buffer("later", later)
        self.register_buffer("kept", later.double().exp())

    def _projection(self, mixer: Aaren, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """One linear layer for values, count and scores; rows of each head: dim values, a constant 1, the score."""
        value: Tensor = mixer.value.weight
        value_bias: Tensor = mixer.value.bias
        if self.folded:
            value_bias = mixer.output.weight @ value_bias + mixer.output.bias
            value = mixer.output.weight @ value
        parts = value.view(self.heads, self.dim, -1), torch.zeros_like(weight).unsqueeze(1), weight.unsqueeze(1)
        biases = value_bias.view(self.heads, self.dim), torch.ones_like(bias).unsqueeze(1), bias.unsqueeze(1)
        return torch.cat(parts, 1).flatten(0, 1), torch.cat(biases, 1).flatten()

    def _later(self, slopes: Tensor) -> Tensor:
        """What each output adds to the scores of the state and of all tokens, (heads, outputs, 1 + tokens).

        For a slope s, 3 tokens and 2 outputs:

                     state    0      1      2
            token 1   -2s    -s      0    EMPTY
            token 2   -3s    -2s    -s      0
        """
        position = torch.arange(self.tokens + 1, device=slopes.device)
        age = position[self.tokens - self.outputs + 1 :, None] - position
        return torch.where(age < 0, EMPTY, -slopes.view(-1, 1, 1) * age)

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        rows = F.linear(x, self.project, self.project_bias)
        sums, state = (self._bounded if self.bounded else self._running)(rows, state, live)
        count = sums[..., self.dim : self.dim + 1]
        if self.folded:
            return onto + (sums[..., : self.dim] / count).reshape(-1, self.dim).to(onto.dtype), state
        mixed = (sums / count).to(onto.dtype)
        return torch.addmm(onto, mixed.reshape(-1, len(self.output)), self.output), state

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyAarenStepper:
        """See `Stepper.to_numpy`."""
        return NumpyAarenStepper(self, norm)

    def _bounded(self, rows: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums (a, c) up to each output, (batch, outputs, [heads,] dim + 1), and the new state."""
        if self.tokens == 1:
            return self._bounded_token(rows, state)
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

    def _bounded_token(self, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """As `_bounded` for one token a step, in fewer operations."""
        if self.heads > 1:
            rows, state = rows.view(-1, self.heads, self.dim + 2), state.view(-1, self.heads, self.dim + 1)
        value, score = torch.split(rows, [self.dim + 1, 1], -1)
        if self.recency:
            state = state * self.kept[:, 0, :1]
        state = state + (value * score.exp()).double()
        return state, state if self.heads == 1 else state.flatten(1)

    def _running(self, rows: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums (a, c) up to each output, (batch, outputs, heads, dim + 1), and the new state."""
        tokens = rows.view(-1, self.tokens, self.heads, self.dim + 2)
        pieces = torch.cat([state.view(-1, 1, self.heads, self.dim + 2), tokens.double()], 1).transpose(1, 2)
        scores = pieces[..., -1]  # (batch, heads, 1 + tokens)
        if live is not None:
            scores = scores + ((1 - F.pad(live, (1, 0), value=1.0)) * EMPTY).unsqueeze(1)
        table = scores.unsqueeze(2) + self.later  # (batch, heads, outputs, 1 + tokens)
        m = table.amax(-1, keepdim=True)
        sums = torch.exp(table - m) @ pieces[..., :-1]
        after = torch.cat([sums, m], -1)[:, :, -1]
        return sums.transpose(1, 2), after.flatten(1)
