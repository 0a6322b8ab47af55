"""Actions with parts: a head for each part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import NestedSpace
from aaren_rl.model.heads.head import Head, HeadStepper, NumpyHead, Prediction
from aaren_rl.ops.numpy_layers import Array


class ProductHead(Head):
    """Predicts the parts of an action independently of each other; its loss is the mean of the parts' losses.

    Args:
        space: of the actions.
        heads: of its parts, in their order.
    """

    def __init__(self, space: NestedSpace, heads: Sequence[Head]) -> None:
        super().__init__()
        self.space, self.heads = space, nn.ModuleList(heads)
        self.noise_size = sum(head.noise_size for head in heads)

    def forward(self, hidden: Tensor, segment: Segment) -> ProductPrediction:
        """See `Head.forward`."""
        sizes = [head.noise_size for head in self.parts()]
        return ProductPrediction([head(hidden, segment) for head in self.parts()], self.space, sizes)

    def parts(self) -> list[Head]:
        """The heads, in the order of the parts."""
        return list(self.heads)  # type: ignore[arg-type]

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        """See `Head.draw`."""
        return np.concatenate([head.draw(rows, generator) for head in self.parts()], 1)

    def stepper(self) -> ProductHeadStepper:
        """See `Head.stepper`."""
        return ProductHeadStepper(self)


class ProductPrediction:
    """See `Prediction`.

    Args:
        parts: predictions of the parts.
        space: of the actions.
        noise_sizes: of the heads.
    """

    def __init__(self, parts: Sequence[Prediction], space: NestedSpace, noise_sizes: list[int]) -> None:
        self.parts, self.space, self.noise_sizes = parts, space, noise_sizes

    @property
    def mode(self) -> Tensor:
        """See `Prediction.mode`."""
        return _joined([one.mode for one in self.parts])

    def sampled(self, noise: Tensor) -> Tensor:
        """See `Prediction.sampled`."""
        noises = torch.split(noise, self.noise_sizes, -1)
        return _joined([one.sampled(own) for one, own in zip(self.parts, noises, strict=True)])

    def loss(self, actions: Tensor) -> Tensor:
        """Mean of the parts' losses, (batch, time)."""
        front, found = actions.shape[:-1], []
        for prediction, part in zip(self.parts, self.space.parts(), strict=True):
            found.append(prediction.loss(actions[..., part.columns].reshape(*front, *part.space.shape)))
        return torch.stack(found).mean(0)


def _joined(parts: list[Tensor]) -> Tensor:
    """Actions of parts, (batch, time, *shape of the part) each, one after another."""
    return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)


class ProductHeadStepper(HeadStepper):
    """A `ProductHead` for one step.

    Args:
        head: the head as it stands now.
    """

    def __init__(self, head: ProductHead) -> None:
        super().__init__()
        self.steppers = nn.ModuleList(part.stepper() for part in head.parts())
        self.noise_sizes = [part.noise_size for part in head.parts()]

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `HeadStepper.forward`."""
        noises = [None] * len(self.noise_sizes) if noise is None else torch.split(noise, self.noise_sizes, -1)
        parts = [stepper(hidden, part) for stepper, part in zip(self.steppers, noises, strict=True)]
        return torch.cat([part.flatten(1) if part.ndim > 1 else part.unsqueeze(1) for part in parts], -1)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyProductHead | None:
        """See `HeadStepper.to_numpy`."""
        parts = [stepper.to_numpy(norm) for stepper in self._steppers()]
        whole = [part for part in parts if part is not None]
        return NumpyProductHead(whole, self.noise_sizes) if len(whole) == len(parts) else None

    def _steppers(self) -> list[HeadStepper]:
        return list(self.steppers)  # type: ignore[arg-type]


class NumpyProductHead:
    """Computes what `ProductHeadStepper` computes.

    Args:
        parts: of the action.
        noise_sizes: of each part.
    """

    def __init__(self, parts: Sequence[NumpyHead], noise_sizes: Sequence[int]) -> None:
        self.parts, self.cuts = parts, np.cumsum(noise_sizes)[:-1]

    def __call__(self, normed: Array, noise: Array | None = None) -> Array:
        """See `NumpyHead`."""
        noises = [None] * len(self.parts) if noise is None else np.split(noise, self.cuts, 1)
        parts = [part(normed, own) for part, own in zip(self.parts, noises, strict=True)]
        return np.concatenate([part.reshape(len(normed), -1) for part in parts], 1)
