"""The contract of heads: from a hidden vector to an action."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor, nn

from aaren_rl.data.segment import Segment
from aaren_rl.ops.numpy_layers import Array


class Prediction(Protocol):
    """What a head says of the actions of a segment."""

    @property
    def mode(self) -> Tensor:
        """The most likely actions, in the environment's units, (batch, time, *action shape)."""
        ...

    def sampled(self, noise: Tensor) -> Tensor:
        """The actions that random numbers stand for, (batch, time, *action shape).

        Args:
            noise: what `Head.draw` returned, times the temperature, (batch, time, noise size).
        """
        ...

    def loss(self, actions: Tensor) -> Tensor:
        """How far actions in the environment's units are from the prediction, (batch, time)."""
        ...


class Head(nn.Module):
    """Predicts actions from hidden vectors.

    Attributes:
        noise_size: random numbers that a sampled action takes; 0 for a head that predicts one action alone.
    """

    noise_size = 0

    def forward(self, hidden: Tensor, segment: Segment) -> Prediction:
        """The prediction for hidden vectors (batch, time, width) of a segment."""
        raise NotImplementedError

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        """Random numbers that make the mode a sample, (rows, noise size) float32."""
        return np.zeros((rows, 0), np.float32)

    def stepper(self) -> HeadStepper:
        """The head folded for acting."""
        raise NotImplementedError


class HeadStepper(nn.Module):
    """A head for one step."""

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (batch, *action shape) from hidden vectors (batch, width).

        Args:
            hidden: (batch, width).
            noise: what `Head.draw` returned, times the temperature; None for the most likely actions.
        """
        raise NotImplementedError

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyHead | None:
        """The same in NumPy with a layer norm's scale and shift folded in; None if it has no such form."""
        return None


class NumpyHead(Protocol):
    """A head for one step, in NumPy."""

    def __call__(self, normed: Array, noise: Array | None = None) -> Array:
        """Actions (batch, *action shape) from normalised hidden vectors (batch, width); noise as for `HeadStepper`."""
        ...
