"""Softmax attention to the latest tokens of the same cluster; training finds the clusters by k-means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import LatestOfBucket, Projections

CLUSTERS = 8
"""Clusters of each head: a training window of 20 steps then fills each about as far as its span."""
STRENGTH = 1e-6
"""Scale of the gradient of the centroids: too small to count in a norm over all parameters; Adam ignores scale."""


@register("routing")
class Routing(LatestOfBucket):
    """Attention routed by k-means (Roy et al. 2021, "Routing Transformer", arXiv 2003.05997, section 4.1), causal.

    Queries ``q_t = norm(W_q x_t)`` are also the keys, as in the source's causal form; norm is the layer norm of a head
    without scale and shift: ``o_t = sum_p softmax_p(<q_t, q_p> / sqrt(head width)) W_v x_p`` over the latest tokens p
    of the cluster ``argmax_c <q_t, m_c>``. In the source, the `T / clusters` tokens nearest to a centroid m_c see each
    other, which needs the whole sequence. Here a cluster has all tokens of this argmax, and a token sees the `span - 1`
    before it. Memory: window, keys and values of `8 span` tokens in each head.

    The source's centroids are moving averages of their tokens. Here they are parameters with the gradient of the
    k-means objective, ``sum_t |q_t - m_c(t)|^2 / 2`` times a small constant, whatever the loss. With plain descent of
    the right step size this would be the same average. Centroids get no other gradient, and the objective reaches no
    other parameter.

    Rounding may move a token near the border of two clusters. Only there can the parallel and the stepped form differ
    by more than rounding.

    Args:
        width: size of a token.
        heads: number of heads, each with its clusters; must divide the width.
        span: cached tokens of each cluster, the current one included.
    """

    capability = Capability(
        source="Roy et al. 2021, section 4.1",
        differs="the latest tokens of a cluster, not the nearest to its centroid; centroids learn by gradient; scores "
        "divided by sqrt(head width)",
        parallel="T (8 n + 128) d",
        step="8 n d",
        sees="the last {n} of its cluster, one of 8",
    )

    def __init__(self, width: int, heads: int, span: int = 8) -> None:
        super().__init__(width, heads, span, CLUSTERS)
        # On the sphere of the queries.
        self.centroids = nn.Parameter(self._normed(torch.randn(heads, CLUSTERS, self.head_width)))

    def project(self, x: Tensor, real: Tensor) -> Projections:
        """See `SlotCache.project`."""
        queries = self._normed(self._split_heads(self.query(x)))
        cluster = (queries @ self.centroids.mT).argmax(-1)
        values = with_k_means(self._split_heads(self.value(x)), self.centroids, queries, cluster, real)
        return Projections(queries, queries, values, cluster)

    def _normed(self, x: Tensor) -> Tensor:
        """Layer norm of each head, (..., head width), without scale and shift."""
        return F.layer_norm(x, (self.head_width,))


def with_k_means(values: Tensor, centroids: Tensor, points: Tensor, cluster: Tensor, real: Tensor) -> Tensor:
    """Returns the values; their backward pass also gives the centroids the gradient of the k-means objective.

    Args:
        values: any tensor that the loss depends on.
        centroids: (heads, clusters, size).
        points: (batch, heads, time, size).
        cluster: cluster of each point, (batch, heads, time) integers.
        real: (batch, time) bool, False for padding.
    """
    # Half precision cannot hold large counts.
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        member = cluster.unsqueeze(-1) == torch.arange(centroids.shape[-2], device=cluster.device)
        member = (member & real.unsqueeze(1).unsqueeze(-1)).to(centroids.dtype)
        sums = torch.einsum("bhtc,bhtd->hcd", member, points.to(centroids.dtype))
        gradient = member.sum((0, 2)).unsqueeze(-1) * centroids - sums
    return _WithGradient.apply(values, centroids, STRENGTH * gradient)  # type: ignore[no-any-return, no-untyped-call]


class _WithGradient(torch.autograd.Function):
    """Passes values through and gives a parameter a fixed gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Returns the values."""
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Saves the gradient."""
        ctx.save_for_backward(inputs[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Returns it for the parameter."""
        (gradient,) = ctx.saved_tensors
        return d_values, gradient, None
