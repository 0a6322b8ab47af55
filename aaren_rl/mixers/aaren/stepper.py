"""Aaren folded for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.stepper import EMPTY, Stepper
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array

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
        score: the scores as a linear layer of the tokens, weight (heads, width) and bias (heads,).
        value: projection of the values.
        output: projection of the mixed values.
        slopes: how much a score falls with each later token, (heads,); None for not at all.
        norm: layer norm in front of the mixer.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    project: Tensor
    project_bias: Tensor
    output: Tensor
    later: Tensor
    kept: Tensor

    def __init__(
        self,
        score: tuple[Tensor, Tensor],
        value: nn.Linear,
        output: nn.Linear,
        slopes: Tensor | None,
        norm: nn.LayerNorm,
        tokens: int,
        outputs: int,
    ) -> None:
        weight, bias = score
        heads, width = weight.shape
        dim = width // heads
        reach = width**0.5 * (weight * norm.weight).norm(dim=-1)
        bounded = bool((2 * reach <= NARROW).all())
        start = [*[0.0] * dim, NOTHING, *([] if bounded else [EMPTY])]
        super().__init__(torch.tensor(start, dtype=torch.float64, device=weight.device).repeat(heads))
        self.bounded, self.tokens, self.outputs, self.heads, self.dim = bounded, tokens, outputs, heads, dim
        if bounded:
            bias = bias - (bias + weight @ norm.bias + reach)
        # The mean of projected values is the projected mean: with one head, the output projection goes first.
        self.folded = heads == 1
        project, project_bias = self._projection(value, output, weight, bias)
        self.register_buffer("project", project)
        self.register_buffer("project_bias", project_bias)
        # Divided by the count, the count itself is 1 and carries the bias of the output, in the first head.
        carried = F.pad(output.weight.view(-1, heads, dim), (0, 1))
        carried[:, 0, dim] = output.bias
        self.register_buffer("output", carried.flatten(1).t().contiguous())
        self.recency = slopes is not None
        later = self._later(torch.zeros_like(bias) if slopes is None else slopes.clamp(max=STEEPEST))
        self.register_buffer("later", later)
        self.register_buffer("kept", later.double().exp())

    def _projection(self, value: nn.Linear, output: nn.Linear, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """One linear layer for values, count and scores; rows of each head: dim values, a constant 1, the score."""
        values: Tensor = value.weight
        value_bias: Tensor = value.bias
        if self.folded:
            value_bias = output.weight @ value_bias + output.bias
            values = output.weight @ values
        parts = values.view(self.heads, self.dim, -1), torch.zeros_like(weight).unsqueeze(1), weight.unsqueeze(1)
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
            mean = sums[..., : self.dim] / count
            # A reshape that changes nothing is still a node of an exported graph.
            return onto + (mean if mean.dim() == 2 else mean.reshape(-1, self.dim)).to(onto.dtype), state
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


class NumpyAarenStepper:
    """Computes what `AarenStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: AarenStepper, norm: nn.LayerNorm) -> None:
        self.tokens, self.outputs = stepper.tokens, stepper.outputs
        self.heads, self.dim, self.bounded = stepper.heads, stepper.dim, stepper.bounded
        self.later = to_array(stepper.later)
        # Factor by which the sums of each head shrink per token; None without recency.
        self.decay = stepper.kept[:, -1, -2, None].detach().cpu().numpy() if stepper.recency else None
        weight, bias, self.folded = stepper.project, stepper.project_bias, stepper.folded
        if self.folded:
            # Values go to the residual stream and are centred; the count and the score are not.
            weight, bias = weight.clone(), bias.clone()
            weight[: self.dim] -= weight[: self.dim].mean(0)
            bias[: self.dim] -= bias[: self.dim].mean()
        self.project = fold_norm(norm, weight, bias)
        self.output = centre_outputs(to_array(stepper.output))

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        rows = (normed @ self.project[0] + self.project[1]).reshape(-1, self.tokens, self.heads, self.dim + 2)
        sums = (self._bounded if self.bounded else self._running)(rows, before, after, live)
        count = sums[..., self.dim : self.dim + 1]
        if self.folded:
            return cast(Array, (sums[..., : self.dim] / count).reshape(-1, self.dim).astype(np.float32))
        return cast(Array, (sums / count).reshape(-1, len(self.output)).astype(np.float32) @ self.output)

    def _bounded(self, rows: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `AarenStepper._bounded`; the sums are (batch, outputs, heads, dim + 1)."""
        sums = (np.exp(rows[..., -1:]) * rows[..., :-1]).astype(np.float64)
        if live is not None:
            sums *= live[..., None, None]
        last = before.reshape(-1, self.heads, self.dim + 1)
        for token in range(self.tokens):
            sums[:, token] += last if self.decay is None else self.decay * last
            last = sums[:, token]
        after[:] = sums[:, -1].reshape(len(after), -1)
        return sums[:, -self.outputs :]

    def _running(self, rows: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `AarenStepper._running`; the sums are (batch, outputs, heads, dim + 1)."""
        state = before.reshape(-1, 1, self.heads, self.dim + 2)
        pieces = np.concatenate([state, rows], 1).swapaxes(1, 2)
        scores = pieces[..., -1]
        if live is not None:
            scores[..., 1:] += ((1 - live) * EMPTY)[:, None]
        table = scores[:, :, None] + self.later
        m = table.max(-1, keepdims=True)
        sums = np.exp(table - m) @ pieces[..., :-1]
        after[:] = np.concatenate([sums[:, :, -1], m[:, :, -1]], -1).reshape(len(after), -1)
        return cast(Array, sums.swapaxes(1, 2))
