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
    ``phi(x) = elu(x) + 1``. The causal form is the source's own, and nothing is changed. Memory: constant, S and z of
    h x (h + 1) numbers a head of width h.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
    """

    capability = Capability(
        source="Katharopoulos et al. 2020, section 3.4",
        parallel="T (h + 64) d; blocks of 64 tokens one after another",
        step="h d",
    )

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, expansion=1)

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `KernelAttention.weigh`."""
        alike = torch.zeros_like(keys[..., 0])
        return _phi(queries), _phi(keys), alike, alike


def _phi(x: Tensor) -> Tensor:
    """elu(x) + 1 without the difference of two numbers near 1, which would leave nothing of x below -17."""
    return torch.where(x > 0, x + 1, x.clamp(max=0.0).exp())
