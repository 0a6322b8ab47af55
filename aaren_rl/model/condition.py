"""The return-to-go outside the trunk: it modulates the last hidden vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.ops.numpy_layers import Array, to_array, transpose

HIDDEN = 64
"""Hidden units of the perceptron that reads the return."""


class ReturnCondition(nn.Module):
    """Scales and shifts hidden vectors by functions of the return: ``(1 + g) h + b`` with ``(g, b) = perceptron(R)``.

    Hidden vectors come from a layer norm, so this is an adaptive layer norm (Perez et al. 2018, "FiLM", arXiv
    1709.07871, section 2; it starts as the identity, as in Peebles and Xie 2023, arXiv 2212.09748, section 3.2). The
    trunk does not see the return. So its state depends on observations and actions alone, and another target counts
    from the step at which it is set, as if it had been there from the start.

    Args:
        width: of a hidden vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(1, HIDDEN)
        self.modulate = nn.Linear(HIDDEN, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, hidden: Tensor, return_to_go: Tensor) -> Tensor:
        """Modulated hidden vectors.

        Args:
            hidden: (..., width).
            return_to_go: scaled, (...).
        """
        gain, shift = self.modulate(F.relu(self.read(return_to_go.unsqueeze(-1)))).chunk(2, -1)
        return torch.addcmul(hidden + shift, hidden, gain)

    def to_numpy(self, norm: nn.LayerNorm) -> NumpyCondition:
        """The same in NumPy, with the scale and shift of the layer norm before it folded in."""
        return NumpyCondition(self, norm)


class NumpyCondition:
    """Computes what `ReturnCondition` computes, for a step.

    With the norm's scale s and shift z, it is ``(1 + g) (s n + z) + b = (s + s g) n + (z + z g + b)``, and both factors
    are linear in the perceptron's hidden units.

    Args:
        condition: to compute.
        norm: the layer norm before it.
    """

    def __init__(self, condition: ReturnCondition, norm: nn.LayerNorm) -> None:
        self.read, self.read_bias = transpose(condition.read.weight), to_array(condition.read.bias)
        gain, shift = condition.modulate.weight.detach().chunk(2)
        gain_bias, shift_bias = condition.modulate.bias.detach().chunk(2)
        factor = torch.cat([norm.weight[:, None] * gain, norm.bias[:, None] * gain + shift])
        bias = torch.cat([norm.weight * (1 + gain_bias), norm.bias * (1 + gain_bias) + shift_bias])
        self.modulate, self.modulate_bias = transpose(factor), to_array(bias)
        self.width = len(norm.weight)

    def __call__(self, normed: Array, return_to_go: Array) -> Array:
        """Modulated hidden vectors (batch, width).

        Args:
            normed: hidden vectors after the norm without its scale and shift, (batch, width).
            return_to_go: scaled, (batch, 1) float32.
        """
        hidden = np.maximum(return_to_go @ self.read + self.read_bias, 0.0)
        both = hidden @ self.modulate + self.modulate_bias
        modulated: Array = both[:, : self.width] * normed + both[:, self.width :]
        return modulated
