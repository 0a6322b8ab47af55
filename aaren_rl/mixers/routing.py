"""Softmax attention to the last tokens of the same cluster, clusters being found by k-means while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import LatestOfGroup, Tokens

CLUSTERS = 8
"""Of each head; about as many tokens each as are kept, in a training window of 20 steps."""
STRENGTH = 1e-6
"""Of the clusters' gradient: so small that a norm over all parameters hardly sees it, and Adam does not mind."""


@register("routing")
class Routing(LatestOfGroup):
    """Attention routed by k-means (Roy et al. 2021, "Routing Transformer", arXiv 2003.05997, section 4.1), causal.

    With queries ``q_t = norm(W_q x_t)`` that are also the keys, as in the source where it is causal, and norm the layer
    norm of a head without scale and shift, ``o_t = sum_p softmax_p(<q_t, q_p> / sqrt(head width)) W_v x_p`` over the
    latest tokens p of the cluster ``argmax_c <q_t, m_c>``. The source lets the `T / clusters` tokens that are nearest
    to a centroid m_c see each other, which needs the whole sequence; here a cluster has all tokens of this argmax, of
    which the `span - 1` before a token are kept. Its centroids are moving averages of their tokens; here they are
    parameters whose gradient is that of the k-means objective, ``sum_t |q_t - m_c(t)|^2 / 2`` times a small constant,
    whatever the loss: a step of plain descent of the right size would be the same average; AdamW takes its own. Nothing
    else reaches them, and it reaches nothing else. Memory: window, keys and values of `8 span` tokens in each head.

    A token near the border of two clusters may fall into either by rounding; only there can the parallel and the
    stepped form part ways by more than that.

    Args:
        width: size of a token.
        heads: number of heads, each with clusters of its own; must divide the width.
        span: tokens kept of each cluster, the current one included.
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
        # On the sphere where the queries are.
        self.centroids = nn.Parameter(self._normed(torch.randn(heads, CLUSTERS, self.head_width)))

    def project(self, x: Tensor, real: Tensor) -> Tokens:
        """See `Kept.project`."""
        queries = self._normed(self._split_heads(self.query(x)))
        cluster = (queries @ self.centroids.mT).argmax(-1)
        values = with_k_means(self._split_heads(self.value(x)), self.centroids, queries, cluster, real)
        return Tokens(queries, queries, values, cluster)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.head_width,))


def with_k_means(values: Tensor, centroids: Tensor, points: Tensor, cluster: Tensor, real: Tensor) -> Tensor:
    """The values, whose backward pass also hands the centroids the gradient of the k-means objective.

    Args:
        values: any that the loss depends on.
        centroids: (heads, clusters, size).
        points: (batch, heads, time, size).
        cluster: of each point, (batch, heads, time) integers.
        real: which tokens count, (batch, time) bool.
    """
    # Not in half precision, where large counts are not whole any more.
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        member = cluster.unsqueeze(-1) == torch.arange(centroids.shape[-2], device=cluster.device)
        member = (member & real.unsqueeze(1).unsqueeze(-1)).to(centroids.dtype)
        sums = torch.einsum("bhtc,bhtd->hcd", member, points.to(centroids.dtype))
        gradient = member.sum((0, 2)).unsqueeze(-1) * centroids - sums
    return _WithGradient.apply(values, centroids, STRENGTH * gradient)  # type: ignore[no-any-return, no-untyped-call]


class _WithGradient(torch.autograd.Function):
    """Passes values through and gives a parameter a gradient of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The values."""
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keeps the gradient."""
        ctx.save_for_backward(inputs[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Hands it out."""
        (gradient,) = ctx.saved_tensors
        return d_values, gradient, None
