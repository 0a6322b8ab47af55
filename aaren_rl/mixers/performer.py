"""Performer: softmax attention approximated by positive random features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import UNTRAINED_SEED, Capability
from aaren_rl.mixers.base.kernel_attention import KernelAttention
from aaren_rl.mixers.base.registry import register

ORTHOGONAL_BLOCKS = 2
"""As many features as `rfa` has; the source's 256 for heads of 64 would be 4."""


@register("performer")
class Performer(KernelAttention):
    """FAVOR+ attention (Choromanski et al. 2021, "Rethinking Attention with Performers", arXiv 2009.14794, section 2).

    ``o_t = phi(q_t)^T S_t / phi(q_t)^T z_t`` with the sums S_t of ``phi(k) v^T`` and z_t of ``phi(k)``, as in linear
    attention, and ``phi_j(x) = exp(w_j . x - |x|^2 / 2) / sqrt(features)`` (lemma 1) of queries and keys divided by
    the fourth root of the head width: over random w_j the mean of ``phi(q) . phi(k)`` is what softmax attention has,
    ``exp(q . k / sqrt(head width))``. The w_j are normal vectors, orthogonal within blocks of the head width (section
    2.4). Memory: constant, S, z and m: 2 h (h + 1) + 1 numbers a head of width h.

    To be causal, features are taken relative to the largest of the keys so far, m in the state, where the source's
    code takes the largest of the sequence; what cancels, as the factors of a query, is left out. The source redraws
    w_j while training; here they are fixed, the same in every block, and saved with the weights, so that an agent acts
    as it was trained.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        blocks: of orthogonal features; each has as many as a head is wide.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or there is no block.
    """

    capability = Capability(
        source="Choromanski et al. 2021, section 2",
        differs="random directions are drawn once for all blocks; a running maximum, not the sequence's",
        parallel="T (h + 64) d; blocks of 64 tokens one after another",
        step="h d",
    )
    directions: Tensor

    def __init__(self, width: int, heads: int, blocks: int = ORTHOGONAL_BLOCKS) -> None:
        super().__init__(width, heads, expansion=blocks)
        if blocks < 1:
            raise InvalidInput(f"{blocks} blocks of random features; expected at least 1")
        self.register_buffer("directions", _directions(heads, blocks, self.head_width))

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `KernelAttention.weigh`."""
        scale = self.head_width**-0.25
        queries, keys = queries * scale, keys * scale
        across = self.directions.transpose(1, 2)
        query_logs, key_logs = queries @ across, keys @ across
        # Relative to the largest of a query it cancels; of a key it is part of the weight. Neither needs a gradient.
        query_features = torch.exp(query_logs - query_logs.detach().amax(-1, keepdim=True))
        largest = key_logs.detach().amax(-1, keepdim=True)
        log_weight = largest.squeeze(-1) - keys.square().sum(-1) / 2
        return query_features, torch.exp(key_logs - largest), log_weight, torch.zeros_like(log_weight)


def _directions(heads: int, blocks: int, size: int) -> Tensor:
    """Blocks of orthogonal vectors as long as normal ones, (heads, blocks * size, size)."""
    generator = torch.Generator().manual_seed(UNTRAINED_SEED)
    turned = [nn.init.orthogonal_(torch.empty(size, size), generator=generator) for _ in range(heads * blocks)]
    lengths = torch.randn(heads, blocks * size, size, generator=generator).norm(dim=-1, keepdim=True)
    return torch.cat(turned).view(heads, blocks * size, size) * lengths  # type: ignore[no-any-return]
