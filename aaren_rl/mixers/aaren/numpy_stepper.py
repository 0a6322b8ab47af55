"""Aaren folded for acting, in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from aaren_rl.ops.numpy_layers import Array, centre_outputs, fold_norm, to_array

if TYPE_CHECKING:
    from aaren_rl.mixers.aaren.stepper import AarenStepper

EMPTY = -1e30
"""Finite score of a missing token; its exponential is 0 beside any other."""


class NumpyAarenStepper:
    """Computes what `AarenStepper` computes; see `NumpyStepper` for the contract.

    Args:
        stepper: stepper to compute.
        norm: layer norm in front of the mixer.
    """

    def __init__(self, stepper: AarenStepper, norm: nn.LayerNorm) -> None:
        self.tokens, self.outputs = stepper.tokens, stepper.outputs
        self.heads, self.dim, self.bounded = stepper.heads, stepper.dim, stepper.bounded
        self.later = to_array(stepper.later)
        # Factor by which the sums of each head shrink per token; None without recency.
        self.decay = stepper.kept[:, -1, -2, None].detach().cpu().numpy() if stepper.recency else None
        weight, bias, self.folded = stepper.project, stepper.project_bias, stepper.folded
        if self.folded:
            # Values go to the residual stream and are centred; the count and the score are not.
            weight, bias = weight.clone(), bias.clone()
            weight[: self.dim] -= weight[: self.dim].mean(0)
            bias[: self.dim] -= bias[: self.dim].mean()
        self.project = fold_norm(norm, weight, bias)
        self.output = centre_outputs(to_array(stepper.output))

    def __call__(self, normed: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `NumpyStepper.__call__`."""
        rows = (normed @ self.project[0] + self.project[1]).reshape(-1, self.tokens, self.heads, self.dim + 2)
        sums = (self._bounded if self.bounded else self._running)(rows, before, after, live)
        count = sums[..., self.dim : self.dim + 1]
        if self.folded:
            return cast(Array, (sums[..., : self.dim] / count).reshape(-1, self.dim).astype(np.float32))
        return cast(Array, (sums / count).reshape(-1, len(self.output)).astype(np.float32) @ self.output)

    def _bounded(self, rows: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `AarenStepper._bounded`; the sums are (batch, outputs, heads, dim + 1)."""
        sums = (np.exp(rows[..., -1:]) * rows[..., :-1]).astype(np.float64)
        if live is not None:
            sums *= live[..., None, None]
        last = before.reshape(-1, self.heads, self.dim + 1)
        for token in range(self.tokens):
            sums[:, token] += last if self.decay is None else self.decay * last
            last = sums[:, token]
        after[:] = sums[:, -1].reshape(len(after), -1)
        return sums[:, -self.outputs :]

    def _running(self, rows: Array, before: Array, after: Array, live: Array | None) -> Array:
        """See `AarenStepper._running`; the sums are (batch, outputs, heads, dim + 1)."""
        state = before.reshape(-1, 1, self.heads, self.dim + 2)
        pieces = np.concatenate([state, rows], 1).swapaxes(1, 2)
        scores = pieces[..., -1]
        if live is not None:
            scores[..., 1:] += ((1 - live) * EMPTY)[:, None]
        table = scores[:, :, None] + self.later
        m = table.max(-1, keepdims=True)
        sums = np.exp(table - m) @ pieces[..., :-1]
        after[:] = np.concatenate([sums[:, :, -1], m[:, :, -1]], -1).reshape(len(after), -1)
        return cast(Array, sums.swapaxes(1, 2))
