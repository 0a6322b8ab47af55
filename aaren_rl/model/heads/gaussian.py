"""A normal distribution over actions in a Box, squashed by tanh into its bounds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.model.encoders import BoundedBox
from aaren_rl.model.heads.box import BoxHeadStepper, NumpyBoxHead
from aaren_rl.model.heads.head import Head
from aaren_rl.ops.numpy_layers import Array

EDGE = 0.999
"""Scaled actions beyond this size count as this far out: at the bounds themselves tanh has no inverse."""

LEAST_LOG_STD, GREATEST_LOG_STD = -5.0, 2.0


class GaussianHead(Head):
    """A tanh-squashed normal distribution with a learned mean and spread (Haarnoja et al. 2018, arXiv 1801.01290).

    Its loss is the negative log-likelihood of the scaled action, per component.

    Args:
        space: of the actions, bounded.
        width: of a hidden vector.
    """

    def __init__(self, space: Box, width: int) -> None:
        super().__init__()
        self.scale = BoundedBox(space)
        self.linear = nn.Linear(width, 2 * space.size)
        self.noise_size = space.size

    def forward(self, hidden: Tensor, segment: Segment) -> GaussianPrediction:
        """See `Head.forward`."""
        return GaussianPrediction(self.linear(hidden), self.scale)

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        """See `Head.draw`."""
        return generator.standard_normal((rows, self.noise_size), np.float32)

    def stepper(self) -> GaussianHeadStepper:
        """See `Head.stepper`."""
        return GaussianHeadStepper(self.scale, self.linear)


class GaussianPrediction:
    """See `Prediction`.

    Args:
        parameters: means and logarithms of the spreads before the squashing, (batch, time, 2 * action size).
        scale: maps the environment's units to -1 and 1.
    """

    def __init__(self, parameters: Tensor, scale: BoundedBox) -> None:
        self.mean, log_std = parameters.chunk(2, -1)  # (batch, time, action size) each
        self.log_std, self.scale = log_std.clamp(LEAST_LOG_STD, GREATEST_LOG_STD), scale

    @property
    def mode(self) -> Tensor:
        """See `Prediction.mode`; the squashed mean."""
        return self.scale.unscaled(torch.tanh(self.mean))

    def sampled(self, noise: Tensor) -> Tensor:
        """See `Prediction.sampled`."""
        return self.scale.unscaled(torch.tanh(self.mean + noise * torch.exp(self.log_std)))

    def loss(self, actions: Tensor) -> Tensor:
        """Mean negative log-likelihood of the components of the scaled action, (batch, time), in float32.

        A component whose bounds are equal adds nothing.
        """
        scaled = self.scale(actions).clamp(-EDGE, EDGE)  # (batch, time, action size)
        mean, log_std = self.mean.float(), self.log_std.float()
        # log p(a) = log N(atanh a) - log(1 - a^2).
        distance = (torch.atanh(scaled) - mean) * torch.exp(-log_std)
        surprise = 0.5 * distance.square() + log_std + 0.5 * math.log(2 * math.pi) + torch.log1p(-scaled.square())
        return torch.where(self.scale.half_range.flatten() > 0, surprise, 0.0).mean(-1)


class GaussianHeadStepper(BoxHeadStepper):
    """A `GaussianHead` for one step; arguments are those of `BoxHeadStepper`."""

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `HeadStepper.forward`."""
        mean, log_std = F.linear(hidden, self.linear.weight, self.linear.bias).chunk(2, -1)
        if noise is not None:
            mean = mean + noise * torch.exp(log_std.clamp(LEAST_LOG_STD, GREATEST_LOG_STD))
        return self.unscaled(torch.tanh(mean))

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyGaussianHead:
        """See `HeadStepper.to_numpy`."""
        return NumpyGaussianHead(self, norm)


class NumpyGaussianHead(NumpyBoxHead):
    """Computes what `GaussianHeadStepper` computes; arguments are those of `NumpyBoxHead`."""

    def __call__(self, normed: Array, noise: Array | None = None) -> Array:
        """See `NumpyHead`."""
        mean, log_std = np.split(normed @ self.weight + self.bias, 2, 1)
        if noise is not None:
            mean = mean + noise * np.exp(np.clip(log_std, LEAST_LOG_STD, GREATEST_LOG_STD))
        return self.unscaled(np.tanh(mean))
