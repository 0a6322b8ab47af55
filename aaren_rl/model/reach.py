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

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyReach:
        """The same in NumPy, with the scale and shift of the layer norm before it folded in."""
        return NumpyReach(self, norm)


class NumpyReach:
    """Computes what `ReturnReach` computes, of hidden vectors after a norm without its scale and shift.

    Args:
        reach: to compute.
        norm: the layer norm before it.
    """

    def __init__(self, reach: ReturnReach, norm: nn.LayerNorm) -> None:
        self.first, self.first_bias = fold_norm(norm, reach.read.weight, reach.read.bias)
        self.second, self.second_bias = transpose(reach.predict.weight), to_array(reach.predict.bias)
        self.least, self.greatest = float(reach.least), float(reach.greatest)

    def __call__(self, normed: Array) -> Array:
        """Scaled returns in reach, (batch, 1)."""
        predicted = np.maximum(normed @ self.first + self.first_bias, 0.0) @ self.second + self.second_bias
        in_reach: Array = np.clip(predicted, self.least, self.greatest)
        return in_reach
