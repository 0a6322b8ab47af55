"""Recurrences folded for acting: one product before them, one after, and equations written once for torch and NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.stepper import Stepper
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array, transpose

Affine: TypeAlias = tuple[Tensor, Tensor]
"""Weight (outputs, inputs) and bias (outputs,) of a linear layer."""


class Library(NamedTuple):
    """Functions of torch or of NumPy under one name; each is the fastest for a few numbers."""

    exp: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    cos: Callable[[Any], Any]
    sigmoid: Callable[[Any], Any]
    log_sigmoid: Callable[[Any], Any]
    softplus: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    maximum: Callable[[Any, Any], Any]
    """Elementwise, of two arrays."""
    at_least: Callable[[Any, float], Any]
    at_most: Callable[[Any, float], Any]
    largest: Callable[[Any], Any]
    """Of the last dimension, which stays with one number."""
    total: Callable[[Any], Any]
    """Sum over the last dimension, which stays with one number."""
    concatenate: Callable[[Sequence[Any]], Any]
    """Along the last dimension."""
    times: Callable[[Any, Any], Any]
    """Product of complex numbers, each a pair of neighbours in the last dimension."""
    unit: Callable[[Any], Any]
    """Such complex numbers divided by their modulus."""


def _pairs(x: Tensor) -> Tensor:
    """(..., 2 * n) to (..., n, 2)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)


def _times(x: Tensor, y: Tensor) -> Tensor:
    """Without complex tensors, which ONNX has not."""
    (a, b), (c, d) = _pairs(x).unbind(-1), _pairs(y).unbind(-1)
    return torch.stack([a * c - b * d, a * d + b * c], -1).flatten(-2)


TORCH = Library(
    exp=torch.exp,
    sqrt=torch.sqrt,
    sin=torch.sin,
    cos=torch.cos,
    sigmoid=torch.sigmoid,
    # Exact in float64, where torch's take a shortcut, and known to ONNX.
    log_sigmoid=lambda x: x.clamp(max=0.0) - torch.log1p(torch.exp(-x.abs())),
    softplus=lambda x: x.clamp(min=0.0) + torch.log1p(torch.exp(-x.abs())),
    where=torch.where,
    maximum=torch.maximum,
    at_least=lambda x, low: x.clamp(min=low),
    at_most=lambda x, high: x.clamp(max=high),
    largest=lambda x: x.amax(-1, keepdim=True),
    total=lambda x: x.sum(-1, keepdim=True),
    concatenate=lambda parts: torch.cat(list(parts), -1),
    times=_times,
    unit=lambda x: (_pairs(x) / _pairs(x).square().sum(-1, keepdim=True).sqrt()).flatten(-2),
)

NUMPY = Library(
    exp=np.exp,
    sqrt=np.sqrt,
    sin=np.sin,
    cos=np.cos,
    sigmoid=lambda x: 0.5 * np.tanh(0.5 * x) + 0.5,
    log_sigmoid=lambda x: -np.logaddexp(0.0, -x),
    softplus=lambda x: np.logaddexp(0.0, x),
    where=np.where,
    maximum=np.maximum,
    at_least=np.maximum,
    at_most=np.minimum,
    largest=lambda x: np.maximum.reduce(x, -1, keepdims=True),
    total=lambda x: np.add.reduce(x, -1, keepdims=True),
    concatenate=lambda parts: np.concatenate(parts, -1),
    times=lambda x, y: (x.view(np.complex128) * y.view(np.complex128)).view(np.float64),
    unit=lambda x: (x.view(np.complex128) / np.abs(x.view(np.complex128))).view(np.float64),
)


class Recurrence:
    """One token of a recurrence as a function of arrays.

    `mix` is written once, for tensors and for arrays.

    Args:
        project: all that a token contributes, as one linear layer of the token.
        output: projection of what `mix` returns.
        start: row of state before the first token, (size,).
        constants: further tensors that `mix` reads, by name.
    """

    def __init__(self, project: Affine, output: Affine, start: Tensor, constants: Mapping[str, Tensor]) -> None:
        # Without gradients, so that a stepper can be copied and pickled.
        self.project: Affine = (project[0].detach(), project[1].detach())
        self.output: Affine = (output[0].detach(), output[1].detach())
        self.start = start.detach()
        self.constants = {name: constant.detach() for name, constant in constants.items()}

    def mix(
        self, library: Library, constants: Mapping[str, Any], rows: Any, state: Any, out: Any = None
    ) -> tuple[Any, Any]:
        """Mixes a token into the state. All arrays are float64.

        Args:
            library: of all arrays.
            constants: as given, as arrays.
            rows: what the tokens contribute, (batch, columns).
            state: rows of state, (batch, size).
            out: array in which the new state may be put, and which may be `state`; None for a new one.

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
            mixed, after = self.recurrence.mix(TORCH, constants, rows[:, token], state)
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
        # Where a token is missing, the state before it is needed after it.
        out = after if live is None else None
        for token in range(self.tokens):
            mixed, new = self.recurrence.mix(NUMPY, self.constants, rows[:, token], state, out)
            state = new if live is None else np.where(live[:, token, None] > 0, new, state)
            leaving.append(mixed)
        if state is not after:
            after[:] = state
        mixed = leaving[0] if self.tokens == 1 else np.stack(leaving[-self.outputs :], 1).reshape(-1, len(self.output))
        added: Array = mixed.astype(np.float32) @ self.output + self.output_bias
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
