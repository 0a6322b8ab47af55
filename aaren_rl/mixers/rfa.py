"""Random feature attention with a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import UNTRAINED_SEED, Capability
from aaren_rl.mixers.base.folded_stepper import Library, affine, join, project_heads, split
from aaren_rl.mixers.base.kernel_attention import KernelAttention
from aaren_rl.mixers.base.matrix_recurrence import RelativeRecurrence, Token
from aaren_rl.mixers.base.registry import register

SHORTEST = 1e-3
"""Length below which queries and keys are not stretched to unit length; the source's code adds it to the length."""

GATE_BIAS = 3.0
"""Fixed part of the gates' bias: at first they keep 0.95 of the sums, whose mean age is then 20 tokens."""


@register("rfa")
class RFA(KernelAttention):
    """Gated random feature attention (Peng et al. 2021, "Random Feature Attention", arXiv 2103.02143).

    ``S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T``, z_t likewise with ``phi(k_t)``, and ``o_t = phi(q_t)^T S_t /
    phi(q_t)^T z_t``, with a gate ``g_t = sigmoid(w . x_t + b)`` of each head (section 3.2). Queries and keys have unit
    length, and ``phi(x) = [sin(W x), cos(W x)] / sqrt(rows of W)`` (section 3.1). W is normal numbers, drawn once,
    times a learned scale of each input; as in the source, it has a row per number of a head. Memory: constant, S, z and
    m: 2 h (h + 1) + 1 numbers for a head of width h.

    The source is causal. Its code keeps the denominator above a constant. Here this constant is relative to the largest
    weight of a token: a gate near 1 gives the first tokens of an episode so little weight that all would fall below.
    The source redraws W while training, for each layer. Here it is fixed, the same in every block, and saved with the
    weights. The smallest denominator passes no gradient to the running maximum.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="Peng et al. 2021, section 3.2",
        differs="the smallest denominator is relative to the largest weight; directions are drawn once for all blocks",
        parallel="T (h + 64) d; chunks of 64 tokens in sequence",
        step="h d",
    )
    # The source's code has several values; ours is 0.1 for 64 pairs of features that are 0.1 times sines and cosines.
    smallest = 0.1 / (0.1**2 * 64)
    directions: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, expansion=2)
        size = self.head_width
        directions = torch.randn(heads, size, size, generator=torch.Generator().manual_seed(UNTRAINED_SEED))
        self.register_buffer("directions", directions)
        self.scale = nn.Parameter(torch.ones(heads, 1, size))
        self.gate = nn.Linear(width, heads)

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `KernelAttention.weigh`."""
        # A model initialises the bias of the layer to 0.
        gate = (self.gate(x) + GATE_BIAS).transpose(1, 2)
        return self._phi(queries), self._phi(keys), F.logsigmoid(-gate), F.logsigmoid(gate)

    def recurrence(self) -> RelativeRecurrence:
        """See `MatrixMemory.recurrence`; the directions are folded into the projections."""
        across = self.directions * self.scale
        angles = (project_heads(layer, across) for layer in (self.query, self.key))
        layers = affine(self.query), affine(self.key), *angles, self.values_and_ones(), affine(self.gate, GATE_BIAS)
        return _Recurrence(self.shape, join(*layers), affine(self.output))

    def _phi(self, x: Tensor) -> Tensor:
        """Features (..., 2 * head width) of queries or keys (..., head width)."""
        angles = F.normalize(x, dim=-1, eps=SHORTEST) @ (self.directions * self.scale).transpose(1, 2)
        return torch.cat([angles.sin(), angles.cos()], -1) * self.head_width**-0.5  # type: ignore[no-any-return]


class _Recurrence(RelativeRecurrence):
    def absolute(self, library: Library, rows: Any) -> tuple[Token, Any, Any]:
        """See `RelativeRecurrence.absolute`."""
        columns = self.heads * self.columns
        twice = 2 * (columns - self.heads)
        *parts, value, gate = split(rows, [twice, twice, columns, self.heads])
        vectors, angles = map(self.pair_per_head, parts)
        # Of unit length, vectors have the angles divided by their length.
        angles = angles / library.at_least(library.sqrt(library.total(vectors * vectors)), SHORTEST)
        both = library.concatenate([library.sin(angles), library.cos(angles)]) * (self.columns - 1) ** -0.5
        log_decay = library.log_sigmoid(gate)
        # log(1 - sigmoid(x)) = log(sigmoid(x)) - x
        return Token(both[:, 0], both[:, 1], self.per_head(value)), log_decay - gate, log_decay

    def divide(self, library: Library, read: Any, m: Any) -> Any:
        """See `RelativeRecurrence.divide`."""
        return read[..., :-1] / library.at_least(read[..., -1:], RFA.smallest)
