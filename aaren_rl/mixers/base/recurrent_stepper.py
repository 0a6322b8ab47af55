"""Recurrent networks folded for acting, in torch and in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.stepper import Stepper
from aaren_rl.ops import numpy_layers
from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array, transpose


class Functions(NamedTuple):
    """Elementwise functions of one library."""

    sigmoid: Callable[[Any], Any]
    log_sigmoid: Callable[[Any], Any]
    tanh: Callable[[Any], Any]
    relu: Callable[[Any], Any]


Terms: TypeAlias = tuple[Any, ...]
"""Tensors or arrays."""

TORCH = Functions(torch.sigmoid, F.logsigmoid, torch.tanh, F.relu)
NUMPY = Functions(numpy_layers.sigmoid, numpy_layers.log_sigmoid, np.tanh, numpy_layers.relu)


class Cell:
    """Equations of a recurrent network, the same for tensors and for arrays.

    A subclass implements `advance`, and `prepare` where something needs the tokens alone.
    """

    def prepare(self, rows: Any, functions: Functions) -> Terms:
        """What the tokens alone determine.

        Args:
            rows: linear layer of the tokens, (batch, tokens, columns).
            functions: of the library of the rows.

        Returns:
            Terms of `advance`, (batch, tokens, ...) each.
        """
        return (rows,)

    def advance(self, terms: Terms, product: Any, state: Terms, functions: Functions) -> Terms:
        """Advances the state by one token.

        Args:
            terms: of the token, as `prepare` returns them, (batch, ...) each.
            product: recurrent layer of the hidden state; None for a network without one.
            state: its parts, (batch, width) float64 each; the first one is the hidden state.
            functions: of the library of all these.

        Returns:
            Parts of the new state.
        """
        raise NotImplementedError


class RecurrentStepper(Stepper):
    """A recurrent network for the tokens of one step.

    One product serves all tokens, and one projects the hidden states that leave the step. Tokens follow each other in
    between. The state stays in float64; gates and products are in the dtype of the tokens.

    Args:
        cell: equations of the network.
        token: weight (columns, width) and bias (columns,) of the layer over tokens.
        recurrent: weight (columns, width) and bias (columns,) of the layer over hidden states; None for no such layer.
        output: projection of the hidden states.
        parts: vectors in a state, of the width each.
        tokens: tokens in a step.
        outputs: number of tokens that leave the step, the last ones.
    """

    weight: Tensor
    bias: Tensor
    recurrent_weight: Tensor
    recurrent_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor

    def __init__(
        self,
        cell: Cell,
        token: tuple[Tensor, Tensor],
        recurrent: tuple[Tensor, Tensor] | None,
        output: nn.Linear,
        parts: int,
        tokens: int,
        outputs: int,
    ) -> None:
        start = torch.zeros(parts * output.in_features, dtype=torch.float64, device=output.weight.device)
        super().__init__(start)
        self.cell, self.tokens, self.outputs, self.width = cell, tokens, outputs, output.in_features
        self.has_product = recurrent is not None
        layers = {"": token, "recurrent_": recurrent, "output_": (output.weight, output.bias)}
        for name, layer in layers.items():
            for part, tensor in zip(("weight", "bias"), layer or (), strict=False):
                # A copy, since the mixer's weights may change.
                self.register_buffer(name + part, tensor.detach().clone())

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Stepper.forward`."""
        rows = F.linear(x, self.weight, self.bias)
        terms = self.cell.prepare(rows.view(-1, self.tokens, rows.shape[-1]), TORCH)
        parts: Terms = torch.split(state, self.width, -1)
        hidden, product = [], None
        for token in range(self.tokens):
            if self.has_product:
                product = F.linear(parts[0].to(x.dtype), self.recurrent_weight, self.recurrent_bias)
            after = self.cell.advance(tuple(term[:, token] for term in terms), product, parts, TORCH)
            if live is not None:
                real = live[:, token : token + 1] > 0
                after = tuple(torch.where(real, new, old) for new, old in zip(after, parts, strict=True))
            parts = after
            hidden.append(parts[0])
        leaving = torch.cat(hidden[-self.outputs :], -1).view(-1, self.width)  # (batch * outputs, width)
        onto = onto + F.linear(leaving.to(x.dtype), self.output_weight, self.output_bias)
        return onto, torch.cat(parts, -1)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyRecurrentStepper:
        """See `Stepper.to_numpy`."""
        return NumpyRecurrentStepper(self, norm)


class NumpyRecurrentStepper:
    """Computes what `RecurrentStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: RecurrentStepper, norm: nn.LayerNorm) -> None:
        self.cell, self.tokens, self.outputs, self.width = stepper.cell, stepper.tokens, stepper.outputs, stepper.width
        # Columns at which the parts of a row of state start.
        self.starts = range(0, len(stepper.start), self.width)
        self.weight, self.bias = fold_norm(norm, stepper.weight, stepper.bias)
        self.recurrent = None
        if stepper.has_product:
            self.recurrent = transpose(stepper.recurrent_weight), to_array(stepper.recurrent_bias)
        self.output = centre_outputs(transpose(stepper.output_weight))
        self.output_bias = to_array(stepper.output_bias - stepper.output_bias.mean())

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        rows = (normed @ self.weight + self.bias).reshape(len(before), self.tokens, -1)
        terms = self.cell.prepare(rows, NUMPY)
        parts: Terms = tuple(before[:, start : start + self.width] for start in self.starts)
        hidden, product = [], None
        for token in range(self.tokens):
            if self.recurrent is not None:
                product = parts[0].astype(np.float32) @ self.recurrent[0] + self.recurrent[1]
            new = self.cell.advance(tuple(term[:, token] for term in terms), product, parts, NUMPY)
            if live is not None:
                real = live[:, token, None] > 0
                new = tuple(np.where(real, *pair) for pair in zip(new, parts, strict=True))
            parts = new
            hidden.append(parts[0])
        for start, part in zip(self.starts, parts, strict=True):
            after[:, start : start + self.width] = part
        leaving = np.concatenate(hidden[-self.outputs :], 1).reshape(-1, self.width)  # (batch * outputs, width)
        return cast(Array, leaving.astype(np.float32) @ self.output + self.output_bias)
