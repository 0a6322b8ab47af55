"""Linear attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.folded_stepper import TORCH, Library, affine, join
from aaren_rl.mixers.base.kernel_attention import KernelAttention
from aaren_rl.mixers.base.matrix_recurrence import MatrixRecurrence, Token
from aaren_rl.mixers.base.registry import register


@register("linear")
class Linear(KernelAttention):
    """Linear attention (Katharopoulos et al. 2020, "Transformers are RNNs", arXiv 2006.16236, sections 3.2 to 3.4).

    ``S_t = S_{t-1} + phi(k_t) v_t^T``, ``z_t = z_{t-1} + phi(k_t)`` and ``o_t = phi(q_t)^T S_t / phi(q_t)^T z_t`` with
    ``phi(x) = elu(x) + 1``. The source is causal; nothing is changed. Memory: constant, S and z, h x (h + 1)
    numbers for a head of width h.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="Katharopoulos et al. 2020, section 3.4",
        parallel="T (h + 64) d; chunks of 64 tokens in sequence",
        step="h d",
    )

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, expansion=1)

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `KernelAttention.weigh`."""
        zeros = torch.zeros_like(keys[..., 0])
        return _phi(queries), _phi(keys), zeros, zeros

    def recurrence(self) -> MatrixRecurrence:
        """See `MatrixMemory.recurrence`."""
        project = join(affine(self.query), affine(self.key), self.values_and_ones())
        return _Recurrence(self.shape, project, affine(self.output))


class _Recurrence(MatrixRecurrence):
    def token(self, library: Library, constants: Mapping[str, Any], rows: Any, beside: Any) -> tuple[Token, Any]:
        """See `MatrixRecurrence.token`."""
        keys = self.heads * self.features
        features = _phi(rows[:, : 2 * keys], library)
        query, key, value = map(self.per_head, (features[:, :keys], features[:, keys:], rows[:, 2 * keys :]))
        return Token(query, key, value), beside

    def read_out(self, library: Library, read: Any, beside: Any) -> Any:
        """See `MatrixRecurrence.read_out`."""
        mixed = read[..., :-1] / library.at_least(read[..., -1:], KernelAttention.smallest)
        return super().read_out(library, mixed, beside)


def _phi(x: Any, library: Library = TORCH) -> Any:
    """elu(x) + 1, without a difference of two numbers near 1, which would lose all digits of x below -17."""
    return library.where(x > 0, x + 1, library.exp(library.at_most(x, 0.0)))
