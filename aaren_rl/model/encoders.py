"""Values of a space as vectors of features: the one place that turns a space into numbers for a linear layer.

Every part of a step's input becomes features here, and one linear layer (`aaren_rl.model.inputs`) makes them a token.
A new type of space is a class in `aaren_rl.data.spaces`, an encoder here, and a head in `aaren_rl.model.heads`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.data.spaces import Box, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model.scaling import Scaling

ArrayOrTensor = TypeVar("ArrayOrTensor", Tensor, Any)


class Encoder(nn.Module):
    """Turns values of a space into features.

    Args:
        space: of the values.
        size: features of a value.
    """

    def __init__(self, space: Space, size: int) -> None:
        super().__init__()
        self.space, self.size = space, size

    def forward(self, values: Tensor) -> Tensor:
        """Features (..., size) of values (..., *shape)."""
        raise NotImplementedError

    def raw(self, values: ArrayOrTensor) -> ArrayOrTensor:
        """What `fold`'s layer reads when acting, (batch, size) float32, of tensors or arrays (batch, *shape)."""
        raise NotImplementedError

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A linear layer of the features as one of the raw numbers.

        Args:
            weight: of the layer, (outputs, size).

        Returns:
            Weight (outputs, size) and bias (outputs,) such that ``weight @ features = new @ raw + bias``.
        """
        raise NotImplementedError

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """Made-up values (rows, *shape) such as the data might hold, to try a step on."""
        raise NotImplementedError


class _BoxEncoder(Encoder):
    """A Box, whose features are its numbers, one after another."""

    def __init__(self, space: Box) -> None:
        super().__init__(space, space.size)

    def _flat(self, values: Tensor) -> Tensor:
        # (..., *shape) -> (..., size)
        dimensions = len(self.space.shape)
        return values if dimensions == 1 else values.reshape(*values.shape[: values.ndim - dimensions], self.size)

    def raw(self, values: ArrayOrTensor) -> ArrayOrTensor:
        """See `Encoder.raw`."""
        return values.reshape(-1, self.size) if len(self.space.shape) != 1 else values


class StandardisedBox(_BoxEncoder):
    """A Box whose numbers are shifted to the mean 0 and scaled to the deviation 1 of the data.

    Args:
        space: of the values.
        mean: of the data, of the space's shape.
        std: of the data, likewise, positive.

    Raises:
        InvalidInput: the mean or the deviation has another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, space: Box, mean: Any, std: Any) -> None:
        super().__init__(space)
        for name, value in (("mean", mean), ("std", std)):
            found = torch.as_tensor(value, dtype=torch.float32).clone()
            if tuple(found.shape) != space.shape:
                raise InvalidInput(f"the {name} of observations has shape {tuple(found.shape)}; expected {space.shape}")
            self.register_buffer(name, found)

    def forward(self, values: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self._flat((values - self.mean) / self.std)

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder.fold`."""
        folded = weight / self.std.flatten()
        return folded, -(folded @ self.mean.flatten())

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return self.mean + self.std * torch.randn(rows, *self.space.shape, generator=generator)


class BoundedBox(_BoxEncoder):
    """A bounded Box whose bounds are mapped to -1 and 1.

    Args:
        space: of the values.

    Raises:
        InvalidInput: the space has no bounds, or their range in float32 is 0 or infinite.
    """

    low: Tensor
    high: Tensor

    def __init__(self, space: Box) -> None:
        super().__init__(space)
        if not space.is_bounded:
            raise InvalidInput(f"the action space {space} has no bounds; give it the range of the data's actions")
        with np.errstate(over="ignore"):
            low, high = space.bounds()
            ranges = high - low
        if not (np.isfinite(ranges) & (ranges > 0)).all():
            raise InvalidInput(
                f"bounds of the action space {space} have no finite range in float32; give it the range of the data's "
                "actions"
            )
        for name, value in (("low", low), ("high", high)):
            # The space is saved, so its bounds need not be.
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self._flat((values - self.low) / (self.high - self.low) * 2 - 1)

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder.fold`."""
        folded = weight * (2 / (self.high - self.low).flatten())
        return folded, -(folded @ self.low.flatten() + weight.sum(-1))

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return self.low + (self.high - self.low) * torch.rand(rows, *self.space.shape, generator=generator)


def observation_encoder(space: Space, scaling: Scaling) -> Encoder:
    """The encoder of an observation space: one line for each type of space.

    Raises:
        InvalidInput: observations of that type have no encoder.
    """
    if isinstance(space, Box):
        return StandardisedBox(space, scaling.observation_mean, scaling.observation_std)
    raise InvalidInput(f"observations of {space} have no encoder; this version encodes Box")


def action_encoder(space: Space) -> Encoder:
    """The encoder of an action space, for the previous action as input: one line for each type of space.

    Raises:
        InvalidInput: actions of that type have no encoder.
    """
    if isinstance(space, Box):
        return BoundedBox(space)
    raise InvalidInput(f"actions of {space} have no encoder; this version encodes Box")
