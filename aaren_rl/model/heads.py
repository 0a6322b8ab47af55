"""From a hidden vector to an action: a head for each type of action space, chosen in one place."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model.encoders import BoundedBox
from aaren_rl.ops.numpy_layers import Array, fold_norm, to_array


class Prediction(Protocol):
    """What a head says of the actions of a segment."""

    @property
    def mode(self) -> Tensor:
        """The most likely actions, in the environment's units, (batch, time, *action shape)."""
        ...

    def loss(self, actions: Tensor) -> Tensor:
        """How far actions in the environment's units are from the prediction, (batch, time)."""
        ...


class Head(nn.Module):
    """Predicts actions from hidden vectors."""

    def forward(self, hidden: Tensor, segment: Segment) -> Prediction:
        """The prediction for hidden vectors (batch, time, width) of a segment."""
        raise NotImplementedError

    def stepper(self) -> HeadStepper:
        """The head folded for acting."""
        raise NotImplementedError


class HeadStepper(nn.Module):
    """A head for one step."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Actions (batch, *action shape) from hidden vectors (batch, width)."""
        raise NotImplementedError

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyHead | None:
        """The same in NumPy with a layer norm's scale and shift folded in; None if it has no such form."""
        return None


class NumpyHead(Protocol):
    """A head for one step, in NumPy."""

    def __call__(self, normed: Array) -> Array:
        """Actions (batch, *action shape) from normalised hidden vectors (batch, width)."""
        ...


def head_of(space: Space, width: int) -> Head:
    """The head of an action space: one line for each type of space.

    Raises:
        InvalidInput: actions of that type have no head.
    """
    if isinstance(space, Box):
        return BoxHead(space, width)
    raise InvalidInput(f"actions of {space} have no head; this version predicts Box")


class BoxHead(Head):
    """One action, squashed by tanh into the bounds of a Box, with its squared error as loss (Chen et al. 2021).

    Args:
        space: of the actions, bounded.
        width: of a hidden vector.
    """

    def __init__(self, space: Box, width: int) -> None:
        super().__init__()
        self.scale = BoundedBox(space)
        self.linear = nn.Linear(width, space.size)

    def forward(self, hidden: Tensor, segment: Segment) -> BoxPrediction:
        """See `Head.forward`."""
        return BoxPrediction(torch.tanh(self.linear(hidden)), self.scale)

    def stepper(self) -> BoxHeadStepper:
        """See `Head.stepper`."""
        return BoxHeadStepper(self)


class BoxPrediction:
    """See `Prediction`.

    Args:
        scaled: actions within -1 and 1, (batch, time, action size).
        scale: maps the environment's units to -1 and 1.
    """

    def __init__(self, scaled: Tensor, scale: BoundedBox) -> None:
        self.scaled, self.scale = scaled, scale

    @property
    def mode(self) -> Tensor:
        """See `Prediction.mode`."""
        low, high = self.scale.low, self.scale.high
        scaled = self.scaled.reshape(*self.scaled.shape[:-1], *low.shape)
        raw = scaled * self.scale.half_range + self.scale.middle
        # Rounding may not carry a saturated action out of its bounds.
        return torch.minimum(torch.maximum(raw, low), high)

    def loss(self, actions: Tensor) -> Tensor:
        """Mean squared error of the scaled action, (batch, time); in float32 whatever the prediction's dtype.

        A component whose bounds are equal adds nothing.
        """
        error: Tensor = self.scaled.float() - self.scale(actions)  # (batch, time, action size)
        return torch.where(self.scale.half_range.flatten() > 0, error, 0.0).square().mean(-1)


class BoxHeadStepper(HeadStepper):
    """A `BoxHead` for one step.

    Args:
        head: the head as it stands now.
    """

    half_range: Tensor
    middle: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, head: BoxHead) -> None:
        super().__init__()
        self.shape, self.linear = head.scale.space.shape, head.linear
        for name in ("half_range", "middle", "low", "high"):
            self.register_buffer(name, getattr(head.scale, name).flatten())
        self.unit_range = bool(((self.low == -1) & (self.high == 1)).all())

    def forward(self, hidden: Tensor) -> Tensor:
        """See `HeadStepper.forward`."""
        action = torch.tanh(F.linear(hidden, self.linear.weight, self.linear.bias))
        if not self.unit_range:
            action = action * self.half_range + self.middle
            # Rounding may not carry a saturated action out of its bounds.
            action = torch.minimum(torch.maximum(action, self.low), self.high)
        return action if len(self.shape) == 1 else action.view(-1, *self.shape)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyBoxHead:
        """See `HeadStepper.to_numpy`."""
        return NumpyBoxHead(self, norm)


class NumpyBoxHead:
    """Computes what `BoxHeadStepper` computes.

    Args:
        stepper: to compute.
        norm: the layer norm before it.
    """

    def __init__(self, stepper: BoxHeadStepper, norm: nn.LayerNorm) -> None:
        self.shape, self.unit_range = stepper.shape, stepper.unit_range
        self.weight, self.bias = fold_norm(norm, stepper.linear.weight, stepper.linear.bias)
        self.half_range, self.middle = to_array(stepper.half_range), to_array(stepper.middle)
        self.low, self.high = to_array(stepper.low), to_array(stepper.high)

    def __call__(self, normed: Array) -> Array:
        """See `NumpyHead`."""
        action: Array = np.tanh(normed @ self.weight + self.bias)
        if not self.unit_range:
            action = np.minimum(np.maximum(action * self.half_range + self.middle, self.low), self.high)
        return action if len(self.shape) == 1 else action.reshape(-1, *self.shape)
