"""How long gates keep a memory at first, and the gated norm of what is read from it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.folded_stepper import Affine, Library

LONGEST, SHORTEST = 1024.0, 32.0
"""Tokens after which a memory has faded to 1 / e at first, of the first and of the last head."""

NORM_EPS = 1e-6
"""Added to the mean square of what a head reads."""


def spread(first: float, last: float, count: int) -> Tensor:
    """Log-spaced numbers from the first to the last, (count,); if only one, it is the first."""
    return torch.logspace(math.log10(first), math.log10(last), count)


def forget_bias(heads: int) -> Tensor:
    """Bias at which a sigmoid keeps exp(-1 / lifetime) of a memory per token, with a lifetime per head, (heads,).

    A model initialises the bias of every linear layer to 0, so a mixer adds this one to its gate.
    """
    return -torch.expm1(1 / spread(LONGEST, SHORTEST, heads)).log()


class GatedNorm(nn.Module):
    """Root mean square norm of what each head reads, times a gate of the token, silu(W x).

    Args:
        width: size of a token.
        heads: number of heads.
        columns: numbers that a head reads.
    """

    def __init__(self, width: int, heads: int, columns: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, heads * columns)
        self.scale = nn.Parameter(torch.ones(heads, 1, columns))

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """What the heads read, (batch, heads, time, columns), normed and gated by tokens (batch, time, width)."""
        heads, _, columns = self.scale.shape
        gate = F.silu(self.gate(x)).view(*x.shape[:-1], heads, columns).transpose(1, 2)
        normed: Tensor = F.rms_norm(read, (columns,), eps=NORM_EPS) * self.scale * gate
        return normed

    def folded_into(self, output: nn.Linear) -> Affine:
        """The scale and the projection that follows, as one linear layer of what `gated_norm` returns."""
        return output.weight * self.scale.flatten(), output.bias


def gated_norm(library: Library, read: Any, gate: Any) -> Any:
    """As `GatedNorm` without its scale, for one token and any library.

    Args:
        library: of the arrays.
        read: what the heads read, (batch, heads, columns).
        gate: logits of the gate, likewise.
    """
    return root_mean_square_norm(library, read) * gate * library.sigmoid(gate)


def root_mean_square_norm(library: Library, x: Any) -> Any:
    """The last dimension divided by its root mean square."""
    return x / library.sqrt(library.total(x * x) / x.shape[-1] + NORM_EPS)
