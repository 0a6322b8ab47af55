"""The contract of steppers: mixers folded for acting, in torch and in NumPy."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from aaren_rl.ops.numpy_layers import Array

EMPTY = -1e30
"""Finite score of a missing token; its exponential is 0 beside any other. JSON has no infinities."""


class Stepper(nn.Module):
    """A mixer folded for acting: it mixes the tokens of one environment step into a row of state.

    The state is one row of float64 numbers per sequence, so that sums over a million tokens keep their digits.

    Args:
        start: row of state before the first token of an episode, (size,).
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)

    def forward(self, x: Tensor, onto: Tensor, state: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes the tokens of one step.

        Args:
            x: tokens, (batch * tokens, width).
            onto: the residual stream, to which the mixed tokens are added, (batch * outputs, width).
            state: rows of state, (batch, size).
            live: (batch, tokens), 0 for missing tokens, else 1. None if no token is missing.

        Returns:
            `onto` plus the mixed tokens, (batch * outputs, width), and the new state.
        """
        raise NotImplementedError

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyStepper | None:
        """This stepper in NumPy, with the scale and shift of a layer norm folded in; None if it has no such form.

        Args:
            norm: layer norm in front of the mixer.
        """
        return None


class NumpyStepper(Protocol):
    """A stepper in NumPy, for a CPU, where torch would spend most of a small step on calling its operations."""

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """Mixes the tokens of one step.

        Args:
            normed: tokens after a layer norm without its scale and shift, (batch * tokens, width) float32.
            before: rows of state, (batch, size) float64.
            after: receives the new rows of state, (batch, size) float64.
            live: (batch, tokens), 0 for missing tokens, else 1. None if no token is missing.

        Returns:
            What is added to the residual stream, (batch * outputs, width) float32; the mean of each row is 0.
        """
        ...
