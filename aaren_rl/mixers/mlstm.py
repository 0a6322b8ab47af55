"""The LSTM with a matrix memory, of xLSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.folded_stepper import Library, affine, join, split
from aaren_rl.mixers.base.gates import forget_bias
from aaren_rl.mixers.base.kernel_attention import KernelAttention
from aaren_rl.mixers.base.matrix_recurrence import RelativeRecurrence, Token
from aaren_rl.mixers.base.registry import register

SMALLEST_LOG_WEIGHT = -80.0
"""Logarithm of the largest weight below which the smallest denominator stays finite in float32."""


@register("mlstm")
class MLSTM(KernelAttention):
    """The mLSTM (Beck et al. 2024, "xLSTM", arXiv 2405.04517, section 2.3).

    ``C_t = f_t C_{t-1} + i_t v_t k_t^T``, ``n_t = f_t n_{t-1} + i_t k_t`` and ``h_t = o_t * C_t q_t / max(|n_t . q_t|,
    1)`` with keys divided by the root of the head width, ``i = exp(w_i . x)``, ``f = sigmoid(w_f . x + b)`` in each
    head, and ``o = sigmoid(W_o x + b_o)``. As in appendix A.2 of the source, C and n are relative to the largest weight
    of a token so far, exp(m). Memory: constant, C, n and m: h (h + 1) + 1 numbers for a head of width h.

    An output projection follows, which in the source is the down-projection of a block. The rest of that block
    (figure 11: up-projection, convolution, skip, norm) is left out. The source lets f be an exponential too. Here b is
    such that heads keep 1/e for 32 to 1,024 tokens at first; the source's code has 3 to 6, which is 20 to 400.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="Beck et al. 2024, section 2.3",
        differs="followed by an output projection; without the convolution, which is the option conv",
        parallel="T (h + 64) d; chunks of 64 tokens in sequence",
        step="h d",
    )
    forget_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, expansion=1)
        self.input = nn.Linear(width, heads)
        self.forget = nn.Linear(width, heads)
        self.register_buffer("forget_bias", forget_bias(heads))
        self.output_gate = nn.Linear(width, width)

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `KernelAttention.weigh`."""
        log_decay = F.logsigmoid(self.forget(x) + self.forget_bias).transpose(1, 2)
        return queries, keys * self.head_width**-0.5, self.input(x).transpose(1, 2), log_decay

    def divide(self, read: Tensor, m: Tensor) -> Tensor:
        """See `KernelAttention.divide`; the smallest denominator is 1, which is exp(-m) relative to exp(m)."""
        smallest = torch.exp(-m.clamp(min=SMALLEST_LOG_WEIGHT)).unsqueeze(3)
        return read[..., :-1] / torch.maximum(read[..., -1:].abs(), smallest)

    def read_out(self, read: Tensor, beside: Tensor) -> Tensor:
        """See `MatrixMemory.read_out`."""
        gate = self.output_gate(beside).sigmoid()
        return self.output(gate * self._join_heads(read).to(gate.dtype))  # type: ignore[no-any-return]

    def recurrence(self) -> RelativeRecurrence:
        """See `MatrixMemory.recurrence`."""
        scale = self.head_width**-0.5
        keys = (self.key.weight * scale, self.key.bias * scale)
        gates = affine(self.input), affine(self.forget, self.forget_bias), affine(self.output_gate)
        project = join(affine(self.query), keys, self.values_and_ones(), *gates)
        return _Recurrence(self.shape, project, affine(self.output))


class _Recurrence(RelativeRecurrence):
    def absolute(self, library: Library, rows: Any) -> tuple[Token, Any, Any]:
        """See `RelativeRecurrence.absolute`."""
        width = self.heads * self.features
        *parts, log_input, forget, gate = split(rows, [width, width, width + self.heads, self.heads, self.heads, width])
        query, key, value = map(self.per_head, parts)
        return Token(query, key, value, beside=library.sigmoid(gate)), log_input, library.log_sigmoid(forget)

    def divide(self, library: Library, read: Any, m: Any) -> Any:
        """See `RelativeRecurrence.divide`."""
        smallest = library.exp(-library.at_least(m, SMALLEST_LOG_WEIGHT))
        return read[..., :-1] / library.maximum(abs(read[..., -1:]), smallest)

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """See `MatrixRecurrence.read_out`."""
        return super().read_out(library, read, beside) * beside[1]
