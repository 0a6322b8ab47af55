"""Linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.kernel_attention import KernelAttention
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


def _phi(x: Tensor) -> Tensor:
    """elu(x) + 1, without a difference of two numbers near 1, which would lose all digits of x below -17."""
    return torch.where(x > 0, x + 1, x.clamp(max=0.0).exp())
