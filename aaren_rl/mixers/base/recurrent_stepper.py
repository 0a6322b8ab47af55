"""Recurrent networks folded for acting, in torch and in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

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


TORCH = Functions(torch.sigmoid, F.logsigmoid, torch.tanh, F.relu)
NUMPY = Functions(numpy_layers.sigmoid, numpy_layers.log_sigmoid, np.tanh, numpy_layers.relu)


class Cell:
    """Equations of a recurrent network, the same for tensors and for arrays.

    A subclass implements `advance`, and `prepare` where something needs the tokens alone.
    """

    def prepare(self, rows: Any, functions: Functions) -> tuple[Any, ...]:
        """What the tokens alone determine.

        Args:
            rows: linear layer of the tokens, (batch, tokens, columns).
            functions: of the library of the rows.

        Returns:
            Terms of `advance`, (batch, tokens, ...) each.
        """
        return (rows,)

    def advance(self, terms: tuple[Any, ...], product: Any, state: Any, functions: Functions) -> tuple[Any, ...]:
        """Advances the state by one token.

        Args:
            terms: of the token, as `prepare` returns them, (batch, ...) each.
            product: recurrent layer of the hidden state; None for a network without one.
            state: (batch, size) float64; the hidden state is its first part.
            functions: of the library of all these.

        Returns:
            Parts of the new state, (batch, width) each.
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
        hidden = []
        for token in range(self.tokens):
            product = None
            if self.has_product:
                before = state[:, : self.width].to(x.dtype)
                product = F.linear(before, self.recurrent_weight, self.recurrent_bias)
            parts = self.cell.advance(tuple(term[:, token] for term in terms), product, state, TORCH)
            after = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
            state = after if live is None else torch.where(live[:, token : token + 1] > 0, after, state)
            hidden.append(state[:, : self.width])
        leaving = torch.stack(hidden[-self.outputs :], 1).flatten(0, 1)  # (batch * outputs, width)
        return onto + F.linear(leaving.to(x.dtype), self.output_weight, self.output_bias), state

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
        state, hidden = before, []
        for token in range(self.tokens):
            product = None
            if self.recurrent is not None:
                product = state[:, : self.width].astype(np.float32) @ self.recurrent[0] + self.recurrent[1]
            parts = self.cell.advance(tuple(term[:, token] for term in terms), product, state, NUMPY)
            new = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
            state = new if live is None else np.where(live[:, token, None] > 0, new, state)
            hidden.append(state[:, : self.width])
        after[:] = state
        leaving = np.concatenate(hidden[-self.outputs :], 1).reshape(-1, self.width)  # (batch * outputs, width)
        return cast(Array, leaving.astype(np.float32) @ self.output + self.output_bias)
