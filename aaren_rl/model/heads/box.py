"""One action in a Box, with its squared error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.model.encoders import BoundedBox
from aaren_rl.model.heads.head import Head, HeadStepper
from aaren_rl.ops.numpy_layers import Array, fold_norm, to_array


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
        return BoxHeadStepper(self.scale, self.linear)


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
        return self.scale.unscaled(self.scaled)

    def sampled(self, noise: Tensor) -> Tensor:
        """See `Prediction.sampled`."""
        return self.mode

    def loss(self, actions: Tensor) -> Tensor:
        """Mean squared error of the scaled action, (batch, time); in float32 whatever the prediction's dtype.

        A component whose bounds are equal adds nothing.
        """
        error: Tensor = self.scaled.float() - self.scale(actions)  # (batch, time, action size)
        return torch.where(self.scale.half_range.flatten() > 0, error, 0.0).square().mean(-1)


class BoxHeadStepper(HeadStepper):
    """A `BoxHead` for one step.

    Args:
        scale: maps the environment's units to -1 and 1.
        linear: the head's layer as it stands now.
    """

    half_range: Tensor
    middle: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: BoundedBox, linear: nn.Linear) -> None:
        super().__init__()
        self.shape, self.linear = scale.space.shape, linear
        for name in ("half_range", "middle", "low", "high"):
            self.register_buffer(name, getattr(scale, name).flatten())
        self.is_whole = scale.is_whole
        self.unit_range = bool(((self.low == -1) & (self.high == 1)).all())

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `HeadStepper.forward`."""
        return self.unscaled(torch.tanh(F.linear(hidden, self.linear.weight, self.linear.bias)))

    def unscaled(self, action: Tensor) -> Tensor:
        """Actions (batch, *action shape) of scaled ones (batch, action size)."""
        if not self.unit_range:
            action = action * self.half_range + self.middle
            # Rounding may not carry a saturated action out of its bounds.
            action = torch.minimum(torch.maximum(action, self.low), self.high)
        if self.is_whole:
            action = action.round()
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
        self.shape, self.unit_range, self.is_whole = stepper.shape, stepper.unit_range, stepper.is_whole
        self.weight, self.bias = fold_norm(norm, stepper.linear.weight, stepper.linear.bias)
        self.half_range, self.middle = to_array(stepper.half_range), to_array(stepper.middle)
        self.low, self.high = to_array(stepper.low), to_array(stepper.high)

    def __call__(self, normed: Array, noise: Array | None = None) -> Array:
        """See `NumpyHead`."""
        return self.unscaled(np.tanh(normed @ self.weight + self.bias))

    def unscaled(self, action: Array) -> Array:
        """See `BoxHeadStepper.unscaled`."""
        if not self.unit_range:
            action = np.minimum(np.maximum(action * self.half_range + self.middle, self.low), self.high)
        if self.is_whole:
            action = np.rint(action)
        return action if len(self.shape) == 1 else action.reshape(-1, *self.shape)
