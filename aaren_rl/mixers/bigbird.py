"""Softmax attention to the first tokens of an episode, the last ones, and a random sample of those between."""

from __future__ import annotations

import torch
from torch import Tensor

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.slot_cache import GLOBAL, NEVER, FirstAndLast

RANDOM = 4
"""Tokens of the sample, as many as global ones."""
PRIME = 2**31 - 1
"""Size of the field of the hash; the product of two of its numbers is below 2^62."""
ROUNDS = (1_414_213_562, 1_732_050_807, 1_618_033_988)
"""Constants without a pattern: digits of the roots of 2 and 3 and of the golden ratio."""


@register("bigbird")
class BigBird(FirstAndLast):
    """Window, global and random attention (Zaheer et al. 2020, "Big Bird", arXiv 2007.14062, section 2), causal.

    ``o_t = sum_p softmax_p(<W_q x_t, W_k x_p> / sqrt(head width)) W_v x_p`` over the last `span` tokens p of the
    episode, the current one included, its first 4, and 4 random ones of those between. Random tokens differ between
    heads and are the same in every block and episode.

    In the source, neighbouring queries share random keys from the whole sequence. Here a reservoir draws them (Vitter
    1985, "Random sampling with a reservoir", algorithm R): each token that leaves the window enters the sample with a
    falling probability. At every time the 4 are a uniform sample of all tokens that left, but successive queries see
    much the same sample. As in `Longformer`, the window lies before a token and the first tokens are the global ones.
    Memory: window, keys and values of `span + 8` tokens.

    Ranks in the slots after 40 tokens, for span 3; 12, 4, 30 and 21 are a sample of 4 to 36:

        global      window      sample
        0 1 2 3     37 38 39    12 4 30 21

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
    """

    capability = Capability(
        source="Zaheer et al. 2020, section 2",
        differs="the window lies before a token; the first tokens are the global ones, which see no more than others; "
        "a reservoir draws random ones, not each query",
        parallel="T (n + 128) d",
        step="n d",
        sees="the last {n}, the first 4 and 4 at random",
    )

    def __init__(self, width: int, heads: int, span: int = 16) -> None:
        super().__init__(width, heads, span, RANDOM, heads)

    def evicted_at(self, rank: Tensor, episode: Tensor) -> Tensor:
        """See `SlotCache.evicted_at`; after the window, a token in the sample stays until another replaces it."""
        place = self._place(rank)
        same_place = (place.unsqueeze(-1) == place.unsqueeze(-2)) & (episode.unsqueeze(-1) == episode.unsqueeze(-2))
        later = same_place & (rank.unsqueeze(-2) > rank.unsqueeze(-1))
        replaced = rank.unsqueeze(-2).masked_fill(~later, NEVER).amin(-1)
        leaves = torch.where(place < RANDOM, replaced, rank) + self.span
        return torch.where(rank < GLOBAL, NEVER, leaves)

    def slot(self, bucket: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """See `SlotCache.slot`."""
        sampled = (rank >= GLOBAL) & (last - rank >= self.span)
        return torch.where(sampled, GLOBAL + self.span + self._place(rank), super().slot(bucket, rank, last))

    def _place(self, rank: Tensor) -> Tensor:
        """Place in the sample of tokens that leave the window, (batch, heads, entries); `RANDOM` if not in it."""
        heads = torch.arange(self.heads, device=rank.device).unsqueeze(-1)
        return reservoir_place((rank - GLOBAL).clamp(min=0), heads)


def reservoir_place(number: Tensor, key: Tensor) -> Tensor:
    """Place of a token in a sample of `RANDOM` tokens (Vitter 1985, algorithm R).

    The first tokens fill the sample. Then token n draws a number from 0 to n and takes this place if it is below
    `RANDOM`.

    Args:
        number: number of the token, from 0 on, integers.
        key: one integer per sample; broadcasts with `number`.

    Returns:
        Integers; `RANDOM` for a token outside the sample.
    """
    drawn = keyed_hash(number, key) % (number + 1)
    return torch.where(number < RANDOM, number, drawn.clamp(max=RANDOM))


def keyed_hash(number: Tensor, key: Tensor) -> Tensor:
    """A fixed pseudorandom integer from 0 to `PRIME - 1` for each number and key.

    Each round adds the key and a constant and takes the fifth power, a permutation of the field (after MiMC, Albrecht
    et al. 2016, Cryptology ePrint 2016/492). Products, sums and remainders of positive integers below 2^62 give the
    same result on every machine.

    Args:
        number: integers from 0 on.
        key: integers from 0 on; broadcasts with `number`.
    """
    x = number
    for constant in ROUNDS:
        x = (x + key + constant) % PRIME
        square = x * x % PRIME
        x = square * square % PRIME * x % PRIME
    return x
