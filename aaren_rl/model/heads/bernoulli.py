"""Probabilities of the bits of binary actions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import BinarySpace
from aaren_rl.model.heads.head import Head, HeadStepper
from aaren_rl.ops.numpy_layers import Array, fold_norm


class BernoulliHead(Head):
    """A probability for each bit; its loss is the mean binary cross-entropy.

    Args:
        space: of the actions.
        width: of a hidden vector.
    """

    def __init__(self, space: BinarySpace, width: int) -> None:
        super().__init__()
        self.shape = space.shape
        self.linear = nn.Linear(width, space.size)
        self.noise_size = space.size

    def forward(self, hidden: Tensor, segment: Segment) -> BernoulliPrediction:
        """See `Head.forward`."""
        return BernoulliPrediction(self.linear(hidden), self.shape)

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        """See `Head.draw`: a logit with logistic noise is above 0 as often as its bit is likely."""
        return generator.logistic(size=(rows, self.noise_size)).astype(np.float32)

    def stepper(self) -> BernoulliHeadStepper:
        """See `Head.stepper`."""
        return BernoulliHeadStepper(self)


class BernoulliPrediction:
    """See `Prediction`.

    Args:
        logits: of the bits, (batch, time, bits).
        shape: of an action.
    """

    def __init__(self, logits: Tensor, shape: tuple[int, ...]) -> None:
        self.logits, self.shape = logits, shape

    @property
    def mode(self) -> Tensor:
        """See `Prediction.mode`."""
        return self.sampled(torch.zeros_like(self.logits))

    def sampled(self, noise: Tensor) -> Tensor:
        """See `Prediction.sampled`."""
        return _bits(self.logits + noise).reshape(*self.logits.shape[:-1], *self.shape)

    def loss(self, actions: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over the bits, (batch, time); in float32 whatever the logits' dtype."""
        bits = actions.reshape(self.logits.shape)
        return F.binary_cross_entropy_with_logits(self.logits.float(), bits, reduction="none").mean(-1)


class BernoulliHeadStepper(HeadStepper):
    """A `BernoulliHead` for one step.

    Args:
        head: the head as it stands now.
    """

    def __init__(self, head: BernoulliHead) -> None:
        super().__init__()
        self.shape, self.linear = head.shape, head.linear

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `HeadStepper.forward`."""
        logits = F.linear(hidden, self.linear.weight, self.linear.bias)
        return _bits(logits if noise is None else logits + noise).view(-1, *self.shape)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyBernoulliHead:
        """See `HeadStepper.to_numpy`."""
        return NumpyBernoulliHead(self, norm)


class NumpyBernoulliHead:
    """Computes what `BernoulliHeadStepper` computes.

    Args:
        stepper: to compute.
        norm: the layer norm before it.
    """

    def __init__(self, stepper: BernoulliHeadStepper, norm: nn.LayerNorm) -> None:
        self.shape = stepper.shape
        self.weight, self.bias = fold_norm(norm, stepper.linear.weight, stepper.linear.bias)

    def __call__(self, normed: Array, noise: Array | None = None) -> Array:
        """See `NumpyHead`."""
        logits = normed @ self.weight + self.bias
        logits = logits if noise is None else logits + noise
        bits = np.where(np.isfinite(logits), (logits > 0).astype(np.float32), np.float32(np.nan))
        return bits.reshape(-1, *self.shape)


def _bits(logits: Tensor) -> Tensor:
    """Bits of logits; NaN where a logit is no number, which an agent has to notice."""
    return torch.where(logits.isfinite(), (logits > 0).float(), torch.nan)
