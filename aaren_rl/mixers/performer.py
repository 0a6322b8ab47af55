"""Performer: softmax attention approximated by positive random features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import UNTRAINED_SEED, Capability
from aaren_rl.mixers.base.folded_stepper import Affine, Library, affine, join, project_heads, split
from aaren_rl.mixers.base.kernel_attention import KernelAttention
from aaren_rl.mixers.base.matrix_recurrence import RelativeRecurrence, Token
from aaren_rl.mixers.base.registry import register


@register("performer")
class Performer(KernelAttention):
    """FAVOR+ attention (Choromanski et al. 2021, "Rethinking Attention with Performers", arXiv 2009.14794, section 2).

    ``o_t = phi(q_t)^T S_t / phi(q_t)^T z_t`` with the sums S_t of ``phi(k) v^T`` and z_t of ``phi(k)``, as in linear
    attention, and ``phi_j(x) = exp(w_j . x - |x|^2 / 2) / sqrt(features)`` (lemma 1) of queries and keys divided by
    the fourth root of the head width. Over random w_j, the mean of ``phi(q) . phi(k)`` is the kernel of softmax
    attention, ``exp(q . k / sqrt(head width))``. The w_j are normal vectors, in orthogonal sets as large as the head
    width (section 2.4). Memory: constant, S, z and m: 2 h (h + 1) + 1 numbers for a head of width h.

    To be causal, features are relative to the largest of the keys so far, m in the state; the source's code takes the
    largest of the sequence. Factors that cancel, as those of a query, are left out. The source redraws w_j while
    training. Here they are fixed, the same in every block, and saved with the weights: an agent acts as it was trained.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        expansion: features per number of a query or key: orthogonal sets, each of the head width. The default equals
            `rfa`; the source's 256 for heads of 64 is 4.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or the expansion is below 1.
    """

    capability = Capability(
        source="Choromanski et al. 2021, section 2",
        differs="random directions are drawn once for all blocks; a running maximum, not that of the sequence",
        parallel="T (h + 64) d; chunks of 64 tokens in sequence",
        step="h d",
    )
    directions: Tensor

    def __init__(self, width: int, heads: int, expansion: int = 2) -> None:
        super().__init__(width, heads, expansion)
        if expansion < 1:
            raise InvalidInput(f"expansion is {expansion}; expected at least 1")
        self.register_buffer("directions", _directions(heads, expansion, self.head_width))

    def weigh(self, x: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `KernelAttention.weigh`."""
        scale = self.head_width**-0.25
        queries, keys = queries * scale, keys * scale
        across = self.directions.transpose(1, 2)
        query_logs, key_logs = queries @ across, keys @ across
        # The largest of a query cancels; that of a key is part of the weight. Neither needs a gradient.
        query_features = torch.exp(query_logs - query_logs.detach().amax(-1, keepdim=True))
        largest = key_logs.detach().amax(-1, keepdim=True)
        log_weight = largest.squeeze(-1) - keys.square().sum(-1) / 2
        return query_features, torch.exp(key_logs - largest), log_weight, torch.zeros_like(log_weight)

    def recurrence(self) -> RelativeRecurrence:
        """See `MatrixMemory.recurrence`; the directions are folded into the projections."""
        scale = self.head_width**-0.25
        across = self.directions * scale
        keys: Affine = (self.key.weight * scale, self.key.bias * scale)
        logs = (project_heads(layer, across) for layer in (self.query, self.key))
        return _Recurrence(self.shape, join(*logs, keys, self.values_and_ones()), affine(self.output))


class _Recurrence(RelativeRecurrence):
    def absolute(self, library: Library, rows: Any) -> tuple[Token, Any, Any]:
        """See `RelativeRecurrence.absolute`."""
        features, columns = self.heads * self.features, self.heads * self.columns
        logs, key, value = split(rows, [2 * features, columns - self.heads, columns])
        logs, key = self.pair_per_head(logs), self.per_head(key)
        largest = library.largest(logs)
        both = library.exp(logs - largest)
        log_weight = largest[:, 1] - library.total(key * key) / 2
        return Token(both[:, 0], both[:, 1], self.per_head(value)), log_weight[..., 0], 0.0

    def divide(self, library: Library, read: Any, m: Any) -> Any:
        """See `RelativeRecurrence.divide`."""
        return read[..., :-1] / library.at_least(read[..., -1:], KernelAttention.smallest)


def _directions(heads: int, sets: int, size: int) -> Tensor:
    """Sets of orthogonal vectors as long as normal ones, (heads, sets * size, size)."""
    generator = torch.Generator().manual_seed(UNTRAINED_SEED)
    unit = [nn.init.orthogonal_(torch.empty(size, size), generator=generator) for _ in range(heads * sets)]
    lengths = torch.randn(heads, sets * size, size, generator=generator).norm(dim=-1, keepdim=True)
    return torch.cat(unit).view(heads, sets * size, size) * lengths  # type: ignore[no-any-return]
