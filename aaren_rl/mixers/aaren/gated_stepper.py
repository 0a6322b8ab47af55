"""Aaren with a forget gate, rotation or output gate, folded for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.stepper import EMPTY, Stepper
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array


class GatedParts(NamedTuple):
    """What `GatedAarenStepper` folds.

    Attributes:
        score: the scores as a linear layer of the tokens, weight (means, width) and bias (means,): of every head, then
            of every head's lasting mean, if there are such.
        value: projection of the values.
        output: projection of the mixed values.
        keep: logits of the forget gates as a linear layer, weight (heads, width) and bias (heads,); None for no gates.
        slopes: how much a score falls with each later token, (heads,); None for not at all.
        frequencies: radians per token, (heads, pairs): the first numbers of each head turn; None for no rotation.
        gate: projection of the output gate; None for no gate.
    """

    score: tuple[Tensor, Tensor]
    value: nn.Linear
    output: nn.Linear
    keep: tuple[Tensor, Tensor] | None
    slopes: Tensor | None
    frequencies: Tensor | None
    gate: nn.Linear | None


class GatedAarenStepper(Stepper):
    """Aaren with gates and rotation for the tokens of one step: one product before the mixing and one after.

    A row of state is the output o of each mean, then its log-normaliser L, the logarithm of the sum of all weights. A
    token of score s and value v, which decays all weights by f and turns values by R, changes them to::

        L' = log(f exp(L) + exp(s))        o' = f exp(L - L') R o + exp(s - L') v

    The state always lies in the frame of the last token, so nothing counts steps, and nothing grows but L, the
    logarithm of their number. A lasting mean has f = 1 and R = 1.

    Columns of the first product: values, scores, logits of the forget gates, output gate.

    Args:
        parts: what is folded.
        heads: number of heads.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    project: Tensor
    project_bias: Tensor
    output: Tensor
    output_bias: Tensor
    slopes: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, parts: GatedParts, heads: int, tokens: int, outputs: int) -> None:
        weight = parts.score[0]
        means, width = weight.shape
        start = torch.tensor([0.0] * (means // heads * width) + [EMPTY] * means, dtype=torch.float64)
        super().__init__(start.to(weight.device))
        self.tokens, self.outputs, self.heads, self.means, self.width = tokens, outputs, heads, means, width
        self.forgets, self.decays = parts.keep is not None, parts.keep is not None or parts.slopes is not None
        self.turns, self.gates = parts.frequencies is not None, parts.gate is not None
        layers = [(parts.value.weight, parts.value.bias), parts.score]
        layers += [] if parts.keep is None else [parts.keep]
        layers += [] if parts.gate is None else [(parts.gate.weight, parts.gate.bias)]
        self.columns = [len(layer[0]) for layer in layers]
        self.register_buffer("project", torch.cat([layer[0] for layer in layers]))
        self.register_buffer("project_bias", torch.cat([layer[1] for layer in layers]))
        self.register_buffer("output", parts.output.weight.t().contiguous())
        self.register_buffer("output_bias", parts.output.bias.clone())
        slopes = weight.new_zeros(heads) if parts.slopes is None else parts.slopes
        self.register_buffer("slopes", F.pad(slopes.double(), (0, means - heads)))
        angles = weight.new_zeros(means, width // heads // 2, dtype=torch.float64)
        if parts.frequencies is not None:
            angles[:heads, : parts.frequencies.shape[1]] = parts.frequencies.double()
        self.register_buffer("cosine", angles.cos().flatten())
        self.register_buffer("sine", angles.sin().flatten())

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        rows = F.linear(x, self.project, self.project_bias).view(-1, self.tokens, len(self.project))
        mixed = []
        for t in range(self.tokens):
            token = torch.split(rows[:, t], self.columns, -1)
            after = self._add(token, state)
            state = after if live is None else torch.where(live[:, t : t + 1] > 0, after, state)
            if t >= self.tokens - self.outputs:
                mixed.append(self._read(token, state).to(onto.dtype))
        joined = torch.stack(mixed, 1).view(-1, self.width)  # (batch * outputs, width)
        return onto + torch.addmm(self.output_bias, joined, self.output), state

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyGatedAarenStepper:
        """See `Stepper.to_numpy`."""
        return NumpyGatedAarenStepper(self, norm)

    def _add(self, token: tuple[Tensor, ...], state: Tensor) -> Tensor:
        """The state after a token, of which the columns of the first product are given."""
        o, log = torch.split(state, [self.means // self.heads * self.width, self.means], -1)
        value, score = token[0].double(), token[1].double()
        if self.turns:
            real, imaginary = o.view(-1, len(self.cosine), 2).unbind(-1)
            turned = real * self.cosine - imaginary * self.sine, real * self.sine + imaginary * self.cosine
            o = torch.stack(turned, -1)
        if self.decays:
            log = log - self.slopes
        if self.forgets:
            log = log + F.pad(F.logsigmoid(token[2].double()), (0, self.means - self.heads))
        # Not softplus of their difference, which loses the score beside the empty prefix.
        after = torch.maximum(log, score) + torch.log1p(torch.exp(-(log - score).abs()))
        shape = (-1, self.means // self.heads, self.heads, 1)
        kept, weight = torch.exp(log - after).view(shape), torch.exp(score - after).view(shape)
        added = value.view(-1, 1, self.heads, self.width // self.heads) * weight
        o = o.view(added.shape) * kept + added  # (batch, 1 or 2, heads, head width)
        return torch.cat([o.flatten(1), after], -1)

    def _read(self, token: tuple[Tensor, ...], state: Tensor) -> Tensor:
        """What the output projection reads after a token, (batch, width)."""
        mean, *lasting = torch.split(state[:, : -self.means], self.width, -1)
        if self.gates:
            mean = mean * F.silu(token[-1]).double()
        return mean + lasting[0] if lasting else mean


class NumpyGatedAarenStepper:
    """Computes what `GatedAarenStepper` computes; see `NumpyStepper` for the contract.

    Log-normalisers of all tokens of a step come at once. With G the sum of ``log f`` since the last step, token t makes
    ``L_t - G_t = log(exp(L_{t-1} - G_{t-1}) + exp(s_t - G_t))``, which NumPy accumulates.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: GatedAarenStepper, norm: nn.LayerNorm) -> None:
        self.tokens, self.outputs = stepper.tokens, stepper.outputs
        self.heads, self.means, self.width = stepper.heads, stepper.means, stepper.width
        self.sets, self.states = self.means // self.heads, self.means // self.heads * self.width
        self.forgets, self.gates = stepper.forgets, stepper.gates
        self.project, self.project_bias = fold_norm(norm, stepper.project, stepper.project_bias)
        # Columns of the values, of scores with the forget gates behind them, and of the output gate.
        self.logs_end = self.width + self.means + self.heads * self.forgets
        # -log(sigmoid(x)) = log(exp(0) + exp(-x)), and silu(g) = h + h tanh(h) with h = g / 2, which cannot overflow.
        for part in (self.project.T, self.project_bias):
            part[self.width + self.means : self.logs_end] *= -1
            part[self.logs_end :] *= 0.5
        self.output = centre_outputs(to_array(stepper.output))
        bias = to_array(stepper.output_bias)
        self.output_bias = bias - bias.mean()
        slopes, cosine, sine = (part.detach().cpu().numpy() for part in (stepper.slopes, stepper.cosine, stepper.sine))
        self.slopes = slopes[: self.heads] if slopes.any() else None
        self.turn = (cosine + 1j * sine).reshape(self.sets, self.heads, -1) if stepper.turns else None

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        rows = (normed @ self.project + self.project_bias).reshape(-1, self.tokens, self.project.shape[1])
        kept = self._kept(rows[..., self.width : self.logs_end].astype(np.float64), before, after, live)
        kept = kept.reshape(len(rows), self.tokens, self.sets, self.heads, 1)
        values = rows[..., : self.width].reshape(len(rows), self.tokens, 1, self.heads, -1)
        means = self._means(before[:, : self.states], values * (1.0 - kept), kept, live)
        after[:, : self.states] = means[:, -1]
        if self.outputs < self.tokens:
            rows, means = rows[:, -self.outputs :], means[:, -self.outputs :]
        means = means.astype(np.float32)
        mixed = means[..., : self.width]
        if self.gates:
            half = rows[..., self.logs_end :]
            mixed *= half + half * np.tanh(half)
        if self.sets == 2:
            mixed += means[..., self.width :]
        to_stream: Array = mixed.reshape(-1, self.width) @ self.output + self.output_bias
        return to_stream

    def _kept(self, columns: Array, before: Array, after: Array, live: Array | None) -> Array:
        """Share of each mean that each token keeps, (batch, tokens, means); writes the log-normalisers after all.

        Args:
            columns: scores and forget gates, (batch, tokens, columns) float64.
            before: see `NumpyStepper.__call__`.
            after: see `NumpyStepper.__call__`.
            live: see `NumpyStepper.__call__`.
        """
        scores = columns[..., : self.means]
        if live is not None:
            scores = np.where(live[..., None] > 0, scores, EMPTY)
        logs = np.concatenate([before[:, None, self.states :], scores], 1)
        forgotten = None
        if self.forgets:
            forgotten = np.logaddexp(0.0, columns[..., self.means :])  # -log f, (batch, tokens, heads)
        if self.slopes is not None:
            forgotten = np.zeros((*columns.shape[:2], self.heads)) + (0.0 if forgotten is None else forgotten)
            forgotten += self.slopes
        if forgotten is not None:
            if live is not None:
                forgotten = forgotten * live[..., None]
            if self.tokens > 1:
                forgotten = np.add.accumulate(forgotten, 1)
            logs[:, 1:, : self.heads] += forgotten
        logs = np.logaddexp.accumulate(logs, 1)
        after[:, self.states :] = logs[:, -1]
        if forgotten is not None:
            after[:, self.states : self.states + self.heads] -= forgotten[:, -1]
        return np.exp(logs[:, :-1] - logs[:, 1:])  # type: ignore[no-any-return]

    def _means(self, mean: Array, added: Array, kept: Array, live: Array | None) -> Array:
        """Means after each token, (batch, tokens, means * head width).

        Args:
            mean: before the first token, (batch, means * head width).
            added: weighted values, (batch, tokens, 1 or 2, heads, head width); overwritten.
            kept: share of the mean that each token keeps, (batch, tokens, 1 or 2, heads, 1).
            live: see `NumpyStepper.__call__`.
        """
        numbers = added
        if self.turn is not None:
            turn = self.turn if live is None else np.where(live[..., None, None, None] > 0, self.turn, 1.0)
            mean, numbers, kept = mean.view(np.complex128), added.view(np.complex128), kept * turn
        mean = mean.reshape(len(mean), 1, *numbers.shape[2:])
        for token in range(self.tokens):
            # A step of one token spares the slicing.
            one = ... if self.tokens == 1 else np.s_[:, token : token + 1]
            numbers[one] += kept[one] * mean
            mean = numbers[one]
        return added.reshape(*added.shape[:2], -1)
