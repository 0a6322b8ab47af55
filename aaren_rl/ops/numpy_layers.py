"""Linear layers, layer norms and activations in NumPy, the layers folded into each other for acting.

Every reader of the residual stream is a layer norm, which subtracts the mean. So everything that is written to the
stream is centred beforehand, in the weights. A layer norm then only divides by the root mean square, and its scale and
shift are folded into the product that follows.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Array: TypeAlias = npt.NDArray[Any]

LARGEST_EXPONENT = 80.0
"""Its exponential is still finite in float32; as a denominator it gives 2e-35."""


def normalise(centred: Array, eps: float) -> Array:
    """Layer norm of centred rows, without its scale and shift.

    Args:
        centred: (rows, width), each row with mean 0.
        eps: added to the mean square.

    Returns:
        (rows, width).
    """
    mean_square = np.einsum("ij,ij->i", centred, centred)[:, None] / centred.shape[1]
    normalised: Array = centred / np.sqrt(mean_square + np.float32(eps))
    return normalised


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Array, Array]:
    """Folds the scale and shift of a layer norm into the linear layer that follows.

    Args:
        norm: layer norm in front of the linear layer.
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        Weight (inputs, outputs) and bias (outputs,) in float32, for rows that `normalise` returns.
    """
    return transpose(weight * norm.weight), to_array(bias + weight @ norm.bias)


def centre_outputs(weight: Array) -> Array:
    """A weight (inputs, outputs) whose product with any row has mean 0."""
    return weight - weight.mean(1, keepdims=True)  # type: ignore[no-any-return]


def transpose(weight: Tensor) -> Array:
    """A weight (outputs, inputs) as a contiguous float32 array (inputs, outputs)."""
    return np.ascontiguousarray(to_array(weight).T)


def to_array(tensor: Tensor) -> Array:
    """A tensor as a float32 array on the CPU, without its graph of gradients."""
    return tensor.detach().cpu().numpy().astype(np.float32)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), precise near 0, where small gates keep their digits."""
    y = np.minimum(-x, LARGEST_EXPONENT)
    np.exp(y, out=y)
    y += 1.0
    return np.reciprocal(y, out=y)


def log_sigmoid(x: Array) -> Array:
    """log(sigmoid(x)), for any x."""
    return -np.logaddexp(0.0, -x)


def relu(x: Array) -> Array:
    """The larger of x and 0."""
    return np.maximum(x, 0.0)
