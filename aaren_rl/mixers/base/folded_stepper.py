"""Recurrences folded for acting: one product before them, one after, and equations written once for torch and NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.stepper import Stepper
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array, transpose

Affine: TypeAlias = tuple[Tensor, Tensor]
"""Weight (outputs, inputs) and bias (outputs,) of a linear layer."""


class Recurrence:
    """One token of a recurrence as a function of arrays.

    `mix` is written once: torch and NumPy have the same names for what it calls. It gets the library as `xp`.

    Args:
        project: all that a token contributes, as one linear layer of the token.
        output: projection of what `mix` returns.
        start: row of state before the first token, (size,).
        constants: further tensors that `mix` reads, by name.
    """

    def __init__(self, project: Affine, output: Affine, start: Tensor, constants: Mapping[str, Tensor]) -> None:
        self.project, self.output, self.start, self.constants = project, output, start, constants

    def mix(self, xp: Any, constants: Mapping[str, Any], rows: Any, state: Any) -> tuple[Any, Any]:
        """Mixes a token into the state. All arrays are float64.

        Args:
            xp: torch or numpy.
            constants: as given, as arrays of the library.
            rows: what the tokens contribute, (batch, columns).
            state: rows of state, (batch, size).

        Returns:
            What the output projects, (batch, mixed), and the new state.
        """
        raise NotImplementedError


class FoldedStepper(Stepper):
    """A recurrence for the tokens of one step.

    Args:
        recurrence: what to compute.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    project: Tensor
    project_bias: Tensor
    output: Tensor
    output_bias: Tensor

    def __init__(self, recurrence: Recurrence, tokens: int, outputs: int) -> None:
        super().__init__(recurrence.start.detach().double())
        self.recurrence, self.tokens, self.outputs = recurrence, tokens, outputs
        # Copies, since the mixer's weights may change.
        for name, layer in (("project", recurrence.project), ("output", recurrence.output)):
            self.register_buffer(name, layer[0].detach().clone())
            self.register_buffer(f"{name}_bias", layer[1].detach().clone())
        for name, tensor in recurrence.constants.items():
            self.register_buffer(f"constant_{name}", tensor.detach().double())

    def constants(self) -> dict[str, Tensor]:
        """Constants of the recurrence, by name."""
        return {name: getattr(self, f"constant_{name}") for name in self.recurrence.constants}

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        rows = F.linear(x, self.project, self.project_bias).double()
        rows = rows.view(-1, self.tokens, rows.shape[-1])
        leaving, constants = [], self.constants()
        for token in range(self.tokens):
            mixed, after = self.recurrence.mix(torch, constants, rows[:, token], state)
            state = after if live is None else torch.where(live[:, token : token + 1] > 0, after, state)
            leaving.append(mixed)
        rows = torch.stack(leaving[-self.outputs :], 1).flatten(0, 1).to(onto.dtype)  # (batch * outputs, mixed)
        return onto + F.linear(rows, self.output, self.output_bias), state

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyFoldedStepper:
        """See `Stepper.to_numpy`."""
        return NumpyFoldedStepper(self, norm)


class NumpyFoldedStepper:
    """Computes what `FoldedStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: FoldedStepper, norm: nn.LayerNorm) -> None:
        self.recurrence, self.tokens, self.outputs = stepper.recurrence, stepper.tokens, stepper.outputs
        self.constants = {name: tensor.cpu().numpy() for name, tensor in stepper.constants().items()}
        self.project, self.project_bias = fold_norm(norm, stepper.project, stepper.project_bias)
        self.output = centre_outputs(transpose(stepper.output))
        self.output_bias = to_array(stepper.output_bias - stepper.output_bias.mean())

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        rows = (normed @ self.project + self.project_bias).astype(np.float64)
        rows = rows.reshape(len(before), self.tokens, -1)
        state, leaving = before, []
        for token in range(self.tokens):
            mixed, new = self.recurrence.mix(np, self.constants, rows[:, token], state)
            state = new if live is None else np.where(live[:, token, None] > 0, new, state)
            leaving.append(mixed)
        after[:] = state
        mixed = np.stack(leaving[-self.outputs :], 1).reshape(-1, len(self.output)).astype(np.float32)
        added: Array = mixed @ self.output + self.output_bias
        return added


def affine(layer: nn.Linear, offset: Tensor | float = 0.0) -> Affine:
    """Weight and bias of a linear layer, with something added to what it puts out."""
    zeros = layer.weight.new_zeros(layer.out_features)
    return layer.weight, zeros + offset + (0.0 if layer.bias is None else layer.bias)


def join(*layers: Affine) -> Affine:
    """One linear layer that puts out what all layers do, one after another."""
    weights, biases = zip(*layers, strict=True)
    return torch.cat(weights), torch.cat(biases)


def project_heads(layer: nn.Linear, across: Tensor) -> Affine:
    """A linear layer followed by a matrix for each head, (heads, rows, head width), as one linear layer."""
    heads, _, head_width = across.shape
    weight = (across @ layer.weight.view(heads, head_width, -1)).flatten(0, 1)
    return weight, (across @ layer.bias.view(heads, head_width, 1)).flatten()


def split(rows: Any, sizes: list[int]) -> Iterator[Any]:
    """Columns of rows, (batch, size) for each of the sizes."""
    ends = list(accumulate(sizes))
    return (rows[:, end - size : end] for size, end in zip(sizes, ends, strict=True))


def sigmoid(xp: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), which overflows for no x."""
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def log_sigmoid(xp: Any, x: Any) -> Any:
    """Logarithm of the sigmoid."""
    return xp.clip(x, None, 0.0) - xp.log1p(xp.exp(-abs(x)))


def softplus(xp: Any, x: Any) -> Any:
    """log(1 + exp(x)), which overflows for no x."""
    return xp.clip(x, 0.0, None) + xp.log1p(xp.exp(-abs(x)))


def root_mean_square_norm(xp: Any, x: Any, eps: float) -> Any:
    """The last dimension divided by its root mean square."""
    return x / xp.sqrt((x * x).mean(-1, keepdims=True) + eps)
