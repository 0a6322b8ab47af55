"""Softmax attention to the first tokens of an episode, to the last ones and to a random sample of those between."""

from __future__ import annotations

import torch
from torch import Tensor

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import FOREVER, GLOBAL, FirstAndLast

RANDOM = 4
"""Tokens of the sample, as many as are global."""
PRIME = 2**31 - 1
"""The field of the hash; the product of two of its numbers is below 2^62."""
ROUNDS = (1_414_213_562, 1_732_050_807, 1_618_033_988)
"""Constants without a pattern: digits of the roots of 2 and 3 and of the golden ratio."""


@register("bigbird")
class BigBird(FirstAndLast):
    """Window, global and random attention (Zaheer et al. 2020, "Big Bird", arXiv 2007.14062, section 2), causal.

    ``o_t = sum_p softmax_p(<W_q x_t, W_k x_p> / sqrt(head width)) W_v x_p`` over the last `span` tokens p of the
    episode, the current one included, its first 4, and 4 at random of those between, different ones in each head, the
    same in every block and episode. In the source each block of queries draws its random keys anew from the whole
    sequence, which must be there for it.
    Here the draws are those of a reservoir (Vitter 1985, "Random sampling with a reservoir", algorithm R): each token
    that leaves the window is taken in with a probability that falls, so that at every time the 4 are a uniform sample
    of all that left, though later queries see much the same sample. The window lies before a token and the first tokens
    are the global ones, as in `Longformer`. Memory: window, keys and values of `span + 8` tokens.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Zaheer et al. 2020, section 2",
        differs="the window lies before a token; the first tokens are the global ones, which see nothing more; random "
        "ones are a reservoir's, not drawn anew for each query",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}, the first 4 and 4 at random",
    )

    def __init__(self, width: int, heads: int, span: int = 16) -> None:
        super().__init__(width, heads, span, RANDOM, heads)

    def until(self, rank: Tensor, episode: Tensor) -> Tensor:
        """See `Kept.until`: after the window a token may stay in the sample, until another takes its place there."""
        place = self._place(rank)
        in_place = (place.unsqueeze(-1) == place.unsqueeze(-2)) & (episode.unsqueeze(-1) == episode.unsqueeze(-2))
        later = in_place & (rank.unsqueeze(-2) > rank.unsqueeze(-1))
        replaced = rank.unsqueeze(-2).masked_fill(~later, FOREVER).amin(-1)
        leaves = torch.where(place < RANDOM, replaced, rank) + self.span
        return torch.where(rank < GLOBAL, FOREVER, leaves)

    def slot(self, group: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """See `Kept.slot`."""
        sampled = (rank >= GLOBAL) & (last - rank >= self.span)
        return torch.where(sampled, GLOBAL + self.span + self._place(rank), super().slot(group, rank, last))

    def _place(self, rank: Tensor) -> Tensor:
        """The place in the sample of tokens (batch, heads, entries) that leave the window."""
        heads = torch.arange(self.heads, device=rank.device).unsqueeze(-1)
        return reservoir_place((rank - GLOBAL).clamp(min=0), heads)


def reservoir_place(number: Tensor, key: Tensor) -> Tensor:
    """The place that a token takes in a sample of `RANDOM` (Vitter 1985, algorithm R).

    The first ones fill the sample; then token n draws from 0 to n, and what falls below `RANDOM` is its place.

    Args:
        number: which token, from 0 on, integers.
        key: one for each sample, integers; broadcast with `number`.

    Returns:
        Integers; `RANDOM` for a token that is not taken.
    """
    drawn = keyed_hash(number, key) % (number + 1)
    return torch.where(number < RANDOM, number, drawn.clamp(max=RANDOM))


def keyed_hash(number: Tensor, key: Tensor) -> Tensor:
    """A fixed pseudorandom integer from 0 to `PRIME - 1` for each number and key.

    Rounds of the fifth power, a permutation of the field, after the key and a constant are added (after MiMC, Albrecht
    et al. 2016, Cryptology ePrint 2016/492). It takes products, sums and remainders
    of positive integers below 2^62 only, which are the same everywhere.

    Args:
        number: integers from 0 on.
        key: likewise; broadcast with `number`.
    """
    x = number
    for constant in ROUNDS:
        x = (x + key + constant) % PRIME
        square = x * x % PRIME
        x = square * square % PRIME * x % PRIME
    return x
