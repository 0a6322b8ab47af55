"""Values of a space as vectors of features: the one place that turns a space into numbers for a linear layer.

Every part of a step's input becomes features here, and one linear layer (`aaren_rl.model.inputs`) makes them a token.
A new type of space is a class in `aaren_rl.data.spaces`, an encoder here, and a head in `aaren_rl.model.heads`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from aaren_rl.data.bounds import LARGEST_BOUND, SCALED_BOUND, varies
from aaren_rl.data.spaces import Box, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model.scaling import Scaling

ArrayOrTensor = TypeVar("ArrayOrTensor", Tensor, Any)


class Encoder(nn.Module):
    """Turns values of a space into features within -`SCALED_BOUND` and `SCALED_BOUND`.

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
        """What becomes the features by `affine` when acting, (batch, size), of tensors or arrays (batch, *shape)."""
        raise NotImplementedError

    def affine(self) -> tuple[Tensor, Tensor]:
        """Centre and factor, (size,) float64 each: features are ``(raw - centre) * factor``, clipped to the bound.

        By default the raw numbers are the features.
        """
        return torch.zeros(self.size, dtype=torch.float64), torch.ones(self.size, dtype=torch.float64)

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """Made-up values (rows, *shape) such as the data might hold, to try a step on."""
        raise NotImplementedError


class _BoxEncoder(Encoder):
    """A Box, whose features are its numbers, one after another."""

    def __init__(self, space: Box) -> None:
        super().__init__(space, space.size)

    def _flat(self, scaled: Tensor, unit: Tensor) -> Tensor:
        """Features (..., size) of scaled values (..., *shape); 0 where the unit is 0."""
        scaled = torch.where(unit > 0, scaled, 0.0)
        dimensions = len(self.space.shape)
        return scaled if dimensions == 1 else scaled.reshape(*scaled.shape[: scaled.ndim - dimensions], self.size)

    def raw(self, values: ArrayOrTensor) -> ArrayOrTensor:
        """See `Encoder.raw`."""
        return values.reshape(-1, self.size) if len(self.space.shape) != 1 else values


class StandardisedBox(_BoxEncoder):
    """A Box whose numbers are shifted to the mean 0 and scaled to the deviation 1 of the data.

    Args:
        space: of the values.
        mean: of the data, of the space's shape.
        std: of the data, likewise; 0 for a component that is constant, whose feature is 0 whatever its value.

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
        return self._flat(clip_scaled(_units(values, self.mean, self.std)), self.std)

    def affine(self) -> tuple[Tensor, Tensor]:
        """See `Encoder.affine`."""
        return _affine(self.mean, self.std)

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return self.mean + self.std * torch.randn(rows, *self.space.shape, generator=generator)


class BoundedBox(_BoxEncoder):
    """A bounded Box whose bounds are mapped to -1 and 1; what lies beyond a bound counts as at it.

    A component whose bounds are equal is held there: its feature is 0 whatever its value.

    Args:
        space: of the values.

    Raises:
        InvalidInput: the space has no bounds, or their range in float32 is infinite.
    """

    low: Tensor
    high: Tensor
    middle: Tensor
    half_range: Tensor

    def __init__(self, space: Box) -> None:
        super().__init__(space)
        low, high = space.bounds()
        if not space.is_bounded:
            raise InvalidInput(f"the action space {space} has no bounds; give it the range of the data's actions")
        middle, half_range = (low.astype(np.float64) + high) / 2, (high.astype(np.float64) - low) / 2
        if not (half_range <= LARGEST_BOUND).all():
            raise InvalidInput(
                f"bounds of the action space {space} have no finite range in float32; give it the range of the data's "
                "actions"
            )
        half_range = np.where(varies(low, high), half_range, 0.0)
        for name, value in (("low", low), ("high", high), ("middle", middle), ("half_range", half_range)):
            # The space is saved, so its bounds need not be.
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).clone(), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        return self._flat((_units(values, self.low, self.half_range) - 1).clamp(-1, 1), self.half_range)

    def affine(self) -> tuple[Tensor, Tensor]:
        """See `Encoder.affine`."""
        return _affine(self.middle, self.half_range)

    def examples(self, rows: int, generator: torch.Generator) -> Tensor:
        """See `Encoder.examples`."""
        return self.middle + self.half_range * (2 * torch.rand(rows, *self.space.shape, generator=generator) - 1)


def clip_scaled(scaled: Tensor) -> Tensor:
    """Scaled values within -`SCALED_BOUND` and `SCALED_BOUND`."""
    return scaled.clamp(-SCALED_BOUND, SCALED_BOUND)


def _units(values: Tensor, origin: Tensor, unit: Tensor) -> Tensor:
    """How many units values are from an origin; infinite where float32 does not hold the distance, so clip it."""
    return (values - origin) / torch.where(unit > 0, unit, 1.0)


def _affine(centre: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and factor of `Encoder.affine`; a unit of 0 gives the factor 0."""
    wide = unit.flatten().double()
    return centre.flatten().double(), torch.where(wide > 0, 1 / wide, 0.0)


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
