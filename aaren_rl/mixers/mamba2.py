"""Mamba-2: a state space model with one decay per head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.folded_stepper import Library, affine, split
from aaren_rl.mixers.base.gates import NORM_EPS, root_mean_square_norm, spread
from aaren_rl.mixers.base.matrix_memory import MatrixMemory, Terms
from aaren_rl.mixers.base.matrix_recurrence import MatrixRecurrence, Token
from aaren_rl.mixers.base.registry import register

EXPANSION, STATE = 2, 64
"""Channels per number of a token, as in the source, and numbers that a channel carries (64 or 128 there)."""

MOST = 8
"""Largest number of the source's heads that one head here stands for."""

LARGEST_STEP, SMALLEST_STEP = 0.1, 0.001
"""Time step of the heads at first, the source's range."""

LARGEST_RATE, SMALLEST_RATE = 16.0, 1.0
"""Decay per time of the heads at first, the source's range."""

LARGEST_LOG_RATE = 20.0
"""Bound that keeps every rate finite; such a head forgets all at every token."""


@register("mamba2")
class Mamba2(MatrixMemory):
    """Mamba-2 (Dao and Gu 2024, "Transformers are SSMs", arXiv 2405.21060, sections 6 and 7.1).

    ``S_t = exp(-dt_t a) S_{t-1} + dt_t B_t x_t^T`` and ``y_t = S_t^T C_t + D x_t`` in each head, with ``dt =
    softplus(w . u + b)``. B, C, x and a gate z are linear in the token u, and B and C are shared by all heads. The
    output is ``W norm(y * silu(z))`` with one root mean square norm over all channels. As in the source, there are 2
    channels for each number of a token, with states of 64 numbers. Chunks are the source's, of 64 tokens (section 6).

    The differences:

    - the convolution is the option conv, and the silu that follows it is left out;
    - one head here stands for up to eight of the source, which has dozens: a decay needs few channels;
    - dt and a start log-spaced over the heads in the source's ranges, where the source draws them: heads keep 1/e for 1
      to 1,000 tokens. A single head has the longest.

    Memory: constant, S, 64 numbers for each of 2 d channels.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="Dao and Gu 2024, sections 6 and 7.1",
        differs="without the convolution, which is the option conv; up to eight heads for one",
        parallel="T (n + 64) d for states of n = 64; chunks of 64 tokens in sequence",
        step="n d",
    )

    def __init__(self, width: int, heads: int) -> None:
        channels = EXPANSION * width // max(heads, 1)
        parts = math.gcd(MOST, channels)
        super().__init__(width, heads, heads * parts, STATE, channels // parts)
        count, inner = self.memories, EXPANSION * width
        self.sizes = [inner, inner, STATE, STATE, count]
        self.project = nn.Linear(width, sum(self.sizes))
        steps, rates = spread(SMALLEST_STEP, LARGEST_STEP, count), spread(SMALLEST_RATE, LARGEST_RATE, count)
        self.step_bias = nn.Parameter(steps.expm1().log())
        self.log_rate = nn.Parameter(rates.log())
        self.skip = nn.Parameter(torch.ones(count, 1, 1))
        self.scale = nn.Parameter(torch.ones(inner))

    @property
    def rate(self) -> Tensor:
        """Decay a of each head per time, (heads,)."""
        return self.log_rate.clamp(max=LARGEST_LOG_RATE).exp()

    def terms(self, x: Tensor) -> tuple[Terms, Tensor]:
        """See `MatrixMemory.terms`; what `read_out` needs besides is (x, z)."""
        gate, values, keys, queries, step = self.project(x).split(self.sizes, -1)
        columns = self._split_heads(values)  # (batch, heads, time, columns)
        step = F.softplus(step.to(columns.dtype) + self.step_bias).transpose(1, 2)  # (batch, heads, time)
        shape = (-1, self.memories, -1, -1)
        keys, queries = (part.to(columns.dtype).unsqueeze(1).expand(shape) for part in (keys, queries))
        log_decay = -step * self.rate.unsqueeze(-1)
        terms = Terms(queries, keys, columns * step.unsqueeze(-1), torch.zeros_like(step), log_decay)
        return terms, torch.cat([values, gate], -1)

    def read_out(self, read: Tensor, beside: Tensor) -> Tensor:
        """See `MatrixMemory.read_out`."""
        values, gate = beside.chunk(2, -1)
        gated = self._join_heads(read + self.skip * self._split_heads(values)) * F.silu(gate.to(read.dtype))
        normed = F.rms_norm(gated, gated.shape[-1:], self.scale, NORM_EPS)
        return self.output(normed.to(beside.dtype))  # type: ignore[no-any-return]

    def recurrence(self) -> MatrixRecurrence:
        """See `MatrixMemory.recurrence`."""
        offset = torch.cat([self.step_bias.new_zeros(sum(self.sizes[:-1])), self.step_bias])
        output = self.output.weight * self.scale, self.output.bias
        # All heads share keys and queries: their memories are the columns of one.
        shape = 1, self.features, self.memories * self.columns
        rate = self.rate.repeat_interleave(self.columns)
        skip = self.skip.flatten().repeat_interleave(self.columns)
        # The step of each head, for each of its columns.
        weight, bias = (
            torch.cat([part[: -self.memories], part[-self.memories :].repeat_interleave(self.columns, 0)])
            for part in affine(self.project, offset)
        )
        return _Recurrence(shape, (weight, bias), output, {"rate": rate, "skip": skip})


class _Recurrence(MatrixRecurrence):
    def token(self, library: Library, constants: Mapping[str, Any], rows: Any, beside: Any) -> tuple[Token, Any]:
        """See `MatrixRecurrence.token`; what reading out needs besides is (D x, z)."""
        inner = self.columns
        gate, values, key, query, step = split(rows, [inner, inner, self.features, self.features, inner])
        step = library.softplus(step)
        decay = library.exp(-step * constants["rate"])[:, None, None]
        token = Token(query[:, None], key[:, None], (step * values)[:, None], decay, (constants["skip"] * values, gate))
        return token, beside

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """See `MatrixRecurrence.read_out`."""
        skipped, gate = beside
        return root_mean_square_norm(library, (read[:, 0] + skipped) * gate * library.sigmoid(gate))
