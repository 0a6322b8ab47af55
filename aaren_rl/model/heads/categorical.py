"""Probabilities of the values of discrete actions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import DiscreteSpace
from aaren_rl.model.heads.head import Head, HeadStepper
from aaren_rl.ops.numpy_layers import Array, fold_norm


class CategoricalHead(Head):
    """A categorical distribution for each number of a discrete action; its loss is the mean cross-entropy.

    Args:
        space: of the actions.
        width: of a hidden vector.
    """

    def __init__(self, space: DiscreteSpace, width: int) -> None:
        super().__init__()
        self.space = space
        self.noise_size = sum(space.counts)
        self.linear = nn.Linear(width, self.noise_size)

    def forward(self, hidden: Tensor, segment: Segment) -> CategoricalPrediction:
        """See `Head.forward`."""
        return CategoricalPrediction(self.linear(hidden), self.space)

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        """See `Head.draw`: the largest of logits with Gumbel noise is a sample (Gumbel 1954)."""
        return generator.gumbel(size=(rows, self.noise_size)).astype(np.float32)

    def stepper(self) -> CategoricalHeadStepper:
        """See `Head.stepper`."""
        return CategoricalHeadStepper(self)


class CategoricalPrediction:
    """See `Prediction`.

    Args:
        logits: of the values of every number, one number after another, (batch, time, values).
        space: of the actions.
    """

    def __init__(self, logits: Tensor, space: DiscreteSpace) -> None:
        self.logits, self.space = logits, space

    @property
    def mode(self) -> Tensor:
        """See `Prediction.mode`."""
        return _likeliest(self.logits, self.space)

    def sampled(self, noise: Tensor) -> Tensor:
        """See `Prediction.sampled`."""
        return _likeliest(self.logits + noise, self.space)

    def loss(self, actions: Tensor) -> Tensor:
        """Cross-entropy, the mean over the action's numbers, (batch, time); in float32 whatever the logits' dtype.

        Padding may hold any number.
        """
        space, front = self.space, self.logits.shape[:-1]
        places = actions.reshape(*front, len(space.counts)).long()  # (batch, time, numbers)
        found = []
        for number, logits in enumerate(torch.split(self.logits.float(), list(space.counts), -1)):
            place = (places[..., number] - space.starts[number]).clamp(0, space.counts[number] - 1)
            found.append(-F.log_softmax(logits, -1).gather(-1, place.unsqueeze(-1)).squeeze(-1))
        return torch.stack(found).mean(0)


class CategoricalHeadStepper(HeadStepper):
    """A `CategoricalHead` for one step.

    Args:
        head: the head as it stands now.
    """

    def __init__(self, head: CategoricalHead) -> None:
        super().__init__()
        self.space, self.linear = head.space, head.linear

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `HeadStepper.forward`."""
        logits = F.linear(hidden, self.linear.weight, self.linear.bias)
        return _likeliest(logits if noise is None else logits + noise, self.space)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyCategoricalHead:
        """See `HeadStepper.to_numpy`."""
        return NumpyCategoricalHead(self, norm)


class NumpyCategoricalHead:
    """Computes what `CategoricalHeadStepper` computes.

    Args:
        stepper: to compute.
        norm: the layer norm before it.
    """

    def __init__(self, stepper: CategoricalHeadStepper, norm: nn.LayerNorm) -> None:
        self.space = stepper.space
        self.weight, self.bias = fold_norm(norm, stepper.linear.weight, stepper.linear.bias)
        self.cuts = np.cumsum(self.space.counts)[:-1]

    def __call__(self, normed: Array, noise: Array | None = None) -> Array:
        """See `NumpyHead`."""
        logits = normed @ self.weight + self.bias
        if noise is not None:
            logits = logits + noise
        places = [part.argmax(1) for part in np.split(logits, self.cuts, 1)]
        found = np.stack(places, 1) + np.array(self.space.starts)
        if not np.isfinite(logits).all():
            found = np.where(np.isfinite(logits).all(1, keepdims=True), found, np.nan)
        return np.asarray(found, np.float32).reshape(-1, *self.space.shape)


def _likeliest(logits: Tensor, space: DiscreteSpace) -> Tensor:
    """The values of the largest logits, (..., *shape), of logits (..., values)."""
    places = [
        part.argmax(-1) + start
        for part, start in zip(torch.split(logits, list(space.counts), -1), space.starts, strict=True)
    ]
    found = torch.stack(places, -1).float()
    # Of logits that are no numbers none is the largest, and an agent has to notice.
    found = torch.where(logits.isfinite().all(-1, keepdim=True), found, torch.nan)
    return found.reshape(*logits.shape[:-1], *space.shape)
