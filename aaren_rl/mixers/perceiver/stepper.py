"""The Perceiver folded for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.stepper import EMPTY, Stepper
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array


class PerceiverStepper(Stepper):
    """The Perceiver for the tokens of one step: one product before the mixing and one after.

    A row of state is (a, c, m) of each latent of each head: sum of values, count and maximum of the scores, as in
    `aaren_rl.ops.prefix_attention`. The empty prefix is one token of value 0 and score -1e30, which vanishes beside any
    other.

    Divided by the count, a latent has a last component of 1. No query reads it; it carries the bias of the output.

    Args:
        latents: (heads, latents, head width).
        score: the scores as a linear layer of the tokens, weight (heads * latents, width) and bias (heads * latents,).
        value: projection of the values.
        query: projection of the queries that read the latents.
        output: projection of what they read.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    latents: Tensor
    project: Tensor
    project_bias: Tensor
    output: Tensor
    hidden: Tensor

    def __init__(
        self,
        latents: Tensor,
        score: tuple[Tensor, Tensor],
        value: nn.Linear,
        query: nn.Linear,
        output: nn.Linear,
        tokens: int,
        outputs: int,
    ) -> None:
        heads, number, dim = latents.shape
        start = torch.tensor([*[0.0] * dim, 1.0, EMPTY], dtype=torch.float64, device=latents.device)
        super().__init__(start.repeat(heads * number))
        self.heads, self.number, self.dim, self.tokens, self.outputs = heads, number, dim, tokens, outputs
        self.register_buffer("latents", F.pad(latents, (0, 1)).unsqueeze(1))  # (heads, 1, latents, dim + 1)
        # Columns: values and a 1 of each head, queries and a 0 of each head, scores.
        weights = [F.pad(part.weight.view(heads, dim, -1), (0, 0, 0, 1)).flatten(0, 1) for part in (value, query)]
        biases = [value.bias.view(heads, dim), query.bias.view(heads, dim)]
        biases = [F.pad(bias, (0, 1), value=one).flatten() for bias, one in zip(biases, (1.0, 0.0), strict=True)]
        scale = dim**-0.5
        project = torch.cat([weights[0], weights[1] * scale, score[0]])
        self.register_buffer("project", project)
        self.register_buffer("project_bias", torch.cat([biases[0], biases[1] * scale, score[1]]))
        # The weights of the latents sum to 1, and so does the last component of what is read.
        carried = F.pad(output.weight.view(-1, heads, dim), (0, 1))
        carried[:, 0, dim] = output.bias
        self.register_buffer("output", carried.flatten(1).t().contiguous())
        # Added to the scores of the state and of all tokens: tokens after an output are hidden.
        position = torch.arange(tokens + 1, device=latents.device)
        hidden = (position > position[tokens - outputs + 1 :, None]).double() * EMPTY
        self.register_buffer("hidden", hidden.unsqueeze(1))  # (outputs, 1, 1 + tokens)

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        rows = F.linear(x, self.project, self.project_bias)
        rows, size = rows.view(-1, self.tokens, rows.shape[-1]), self.heads * (self.dim + 1)
        values = rows[..., :size].reshape(-1, self.tokens, self.heads, self.dim + 1).transpose(1, 2).unsqueeze(2)
        queries = rows[:, -self.outputs :, size : 2 * size].reshape(-1, self.outputs, self.heads, self.dim + 1)
        scores = rows[..., 2 * size :].double().transpose(1, 2)  # (batch, heads * latents, tokens)
        if live is not None:
            scores = scores + ((1 - live) * EMPTY).unsqueeze(1)
        before = state.view(-1, self.heads, 1, self.number, self.dim + 2)
        table = torch.cat([before[..., -1:], scores.view(-1, self.heads, 1, self.number, self.tokens)], -1)
        table = table + self.hidden
        m = table.amax(-1, keepdim=True)
        weights = torch.exp(table - m)  # (batch, heads, outputs, latents, 1 + tokens)
        sums = weights[..., :1] * before[..., :-1] + weights[..., 1:] @ values.double()
        latents = (sums / sums[..., -1:]).to(x.dtype) + self.latents  # (batch, heads, outputs, latents, dim + 1)
        read = (latents @ queries.transpose(1, 2).unsqueeze(-1)).softmax(-2)
        mixed = (read.transpose(-1, -2) @ latents).squeeze(-2).transpose(1, 2)  # (batch, outputs, heads, dim + 1)
        after = torch.cat([sums, m], -1)[:, :, -1]
        return torch.addmm(onto, mixed.reshape(-1, len(self.output)), self.output), after.flatten(1)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyPerceiverStepper:
        """See `Stepper.to_numpy`."""
        return NumpyPerceiverStepper(self, norm)


class NumpyPerceiverStepper:
    """Computes what `PerceiverStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: PerceiverStepper, norm: nn.LayerNorm) -> None:
        self.heads, self.number, self.dim = stepper.heads, stepper.number, stepper.dim
        self.tokens, self.outputs = stepper.tokens, stepper.outputs
        self.latents, self.hidden = to_array(stepper.latents), to_array(stepper.hidden)
        self.weight, self.bias = fold_norm(norm, stepper.project, stepper.project_bias)
        self.output = centre_outputs(to_array(stepper.output))

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        batch, size = len(before), self.heads * (self.dim + 1)
        rows = (normed @ self.weight + self.bias).reshape(batch, self.tokens, -1)
        values = rows[..., :size].reshape(batch, self.tokens, self.heads, -1).swapaxes(1, 2)[:, :, None]
        queries = rows[:, -self.outputs :, size : 2 * size].reshape(batch, self.outputs, self.heads, -1).swapaxes(1, 2)
        scores = rows[..., 2 * size :].swapaxes(1, 2)  # (batch, heads * latents, tokens)
        if live is not None:
            scores = scores + ((1 - live) * EMPTY)[:, None]
        state = before.reshape(batch, self.heads, 1, self.number, self.dim + 2)
        scores = scores.reshape(batch, self.heads, 1, self.number, self.tokens)
        table = np.concatenate([state[..., -1:], scores], -1) + self.hidden
        m = table.max(-1, keepdims=True)
        weights = np.exp(table - m)  # (batch, heads, outputs, latents, 1 + tokens)
        sums = weights[..., :1] * state[..., :-1] + weights[..., 1:] @ values
        after[:] = np.concatenate([sums[:, :, -1], m[:, :, -1]], -1).reshape(batch, -1)
        latents = (sums / sums[..., -1:]).astype(np.float32) + self.latents
        read = latents @ queries[..., None]  # (batch, heads, outputs, latents, 1)
        read = np.exp(read - read.max(-2, keepdims=True))
        read /= read.sum(-2, keepdims=True)
        mixed = (read.swapaxes(-1, -2) @ latents)[..., 0, :].swapaxes(1, 2)  # (batch, outputs, heads, dim + 1)
        return cast(Array, mixed.reshape(-1, len(self.output)) @ self.output)
