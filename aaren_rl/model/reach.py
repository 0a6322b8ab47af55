"""The return that is in reach: predicted from what the trunk knows, so that nobody has to choose a target."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.model.scaling import Scaling
from aaren_rl.ops.numpy_layers import Array, fold_norm, to_array, transpose

HIDDEN = 64
"""Hidden units of the perceptron."""

EXPECTILE = 0.99
"""Of the returns that follow in the data; 0.5 would be their mean, 1 the best of them."""


class ReturnReach(nn.Module):
    """Predicts a high expectile of the returns-to-go that the data have after what the trunk knows.

    This is the return loss of Zhuang et al. 2024 ("Reinformer", arXiv 2405.08740, section 4.1). The trunk does not
    learn from it. An upper expectile of outcomes that chance decides is too high a hope, so what is predicted is
    clamped to the range of the data.

    Args:
        width: of a hidden vector.
        scaling: with the range of returns-to-go.
    """

    least: Tensor
    greatest: Tensor

    def __init__(self, width: int, scaling: Scaling) -> None:
        super().__init__()
        self.read, self.predict = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, 1)
        returns = scaling.return_range or (-scaling.return_scale, scaling.return_scale)
        for name, value in zip(("least", "greatest"), returns, strict=True):
            self.register_buffer(name, torch.tensor(value / scaling.return_scale, dtype=torch.float32))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scaled returns in reach, (...), of hidden vectors (..., width)."""
        return torch.minimum(torch.maximum(self._predicted(hidden), self.least), self.greatest)

    def loss(self, hidden: Tensor, return_to_go: Tensor) -> Tensor:
        """The expectile's loss, (...), on scaled returns (...)."""
        error = return_to_go - self._predicted(hidden.detach()).float()
        return torch.where(error > 0, EXPECTILE, 1 - EXPECTILE) * error.square()

    def _predicted(self, hidden: Tensor) -> Tensor:
        predicted: Tensor = self.predict(F.relu(self.read(hidden)))
        return predicted.squeeze(-1)

    def stepper(self, return_scale: Tensor) -> ReachStepper:
        """The prediction for acting.

        Args:
            return_scale: what returns are divided by.
        """
        return ReachStepper(self, return_scale)


class ReachStepper(nn.Module):
    """What is asked for in a step: what is left of the target, or what is in reach if that is less.

    Args:
        reach: as it stands now.
        return_scale: what returns are divided by.
    """

    scale: Tensor

    def __init__(self, reach: ReturnReach, return_scale: Tensor) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("scale", return_scale.double())

    def forward(self, hidden: Tensor, return_to_go: Tensor) -> Tensor:
        """Returns to ask for, (batch, 1).

        Args:
            hidden: (batch, width).
            return_to_go: what is left of the targets, (batch, 1) float64, infinity for "auto".
        """
        in_reach = self.reach(hidden).unsqueeze(-1).double() * self.scale
        return torch.minimum(return_to_go, in_reach)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyReach:
        """The same in NumPy, with the scale and shift of the layer norm before it folded in."""
        return NumpyReach(self, norm)


class NumpyReach:
    """Computes what `ReachStepper` computes, of hidden vectors after a norm without its scale and shift.

    Args:
        stepper: to compute.
        norm: the layer norm before it.
    """

    def __init__(self, stepper: ReachStepper, norm: nn.LayerNorm) -> None:
        read, predict = stepper.reach.read, stepper.reach.predict
        self.first, self.first_bias = fold_norm(norm, read.weight, read.bias)
        self.second, self.second_bias = transpose(predict.weight), to_array(predict.bias)
        self.scale = float(stepper.scale)
        self.least, self.greatest = float(stepper.reach.least), float(stepper.reach.greatest)

    def __call__(self, normed: Array, return_to_go: Array) -> Array:
        """See `ReachStepper.forward`."""
        predicted = np.maximum(normed @ self.first + self.first_bias, 0.0) @ self.second + self.second_bias
        in_reach: Array = np.clip(predicted, self.least, self.greatest).astype(np.float64) * self.scale
        return np.minimum(return_to_go, in_reach)
