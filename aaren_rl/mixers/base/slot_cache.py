"""Base of mixers that keep some past tokens in a fixed number of slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import Chunkwise, checked_span

GLOBAL = 4
"""First tokens of an episode that all later tokens see: its first step or two, which hold the target return."""

NEVER = 2**61
"""Rank that no token reaches."""


class SlotState(NamedTuple):
    """Cached tokens. `caches` is 1 if all heads cache the same tokens, else the number of heads.

    Attributes:
        keys: (batch, heads, slots, head width).
        values: (batch, heads, slots, head width).
        rank: (batch, caches, slots) integers, tokens of the same bucket and episode before each cached one; -1 in an
            empty slot.
        counts: (batch, caches, buckets) integers, tokens of each bucket in the episode so far.
    """

    keys: Tensor
    values: Tensor
    rank: Tensor
    counts: Tensor


class Projections(NamedTuple):
    """Projections of a chunk of tokens.

    Attributes:
        queries: (batch, heads, time, head width).
        keys: (batch, heads, time, head width).
        values: (batch, heads, time, head width).
        bucket: (batch, caches, time) integers, the bucket of each token.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    bucket: Tensor


class Entries(NamedTuple):
    """Slots of the state, then tokens of the chunk: slots + time entries.

    Attributes:
        keys: (batch, heads, entries, head width).
        values: (batch, heads, entries, head width).
        bucket: (batch, caches, entries) integers.
        rank: (batch, caches, entries) integers, as in `SlotState`.
        episode: (batch, 1, entries) integers, as in `Chunkwise.mix_chunk`.
        evicted_at: (batch, caches, entries) integers, rank of the token that evicts each entry.
    """

    keys: Tensor
    values: Tensor
    bucket: Tensor
    rank: Tensor
    episode: Tensor
    evicted_at: Tensor


class SlotCache(Chunkwise):
    """Each token attends to the cached tokens of its bucket.

    The rank of a token is the number of tokens of its bucket and episode before it. A subclass decides from ranks alone
    when a token is evicted (`evicted_at`) and which slot it takes (`slot`), so a chunk needs no loop over time.

    A token of rank r sees the entries of its bucket with `rank <= r < evicted_at`. For 2 slots of one bucket, which
    keep the latest 2 tokens, and a chunk of 3 tokens:

                        slots   chunk
        rank             4  5    6  7  8
        evicted_at       6  7    8  9 10
        token of rank 6  .  x    x  .  .
        token of rank 7  .  .    x  x  .
        token of rank 8  .  .    .  x  x
        new slots        8  7                    slot = rank % 2

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of a window; at least 1.
        slots: number of cached tokens, the same for each bucket.
        buckets: number of sets of tokens that do not see each other.
        caches: 1 if all heads cache the same tokens, else the number of heads.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    def __init__(self, width: int, heads: int, span: int, slots: int, buckets: int, caches: int) -> None:
        super().__init__(width, heads)
        self.span, self.slots, self.buckets, self.caches = checked_span(span), slots, buckets, caches
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def project(self, x: Tensor, real: Tensor) -> Projections:
        """Projects tokens (batch, time, width) and assigns their buckets; `real` (batch, time) is False for padding."""
        raise NotImplementedError

    def evicted_at(self, rank: Tensor, episode: Tensor) -> Tensor:
        """Rank at which each entry is evicted: that of a later token of its bucket.

        Args:
            rank: rank of each entry, (batch, caches, entries).
            episode: episode of each entry, (batch, 1, entries) integers.

        Returns:
            (batch, caches, entries) integers.
        """
        raise NotImplementedError

    def slot(self, bucket: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """Slot of each entry that is not evicted yet.

        Args:
            bucket: bucket of each entry, (batch, caches, entries).
            rank: rank of each entry, (batch, caches, entries).
            last: rank of the latest token in the bucket of each entry, (batch, caches, entries).

        Returns:
            Integers below `slots`, (batch, caches, entries). Entries that are not evicted have different slots.
        """
        raise NotImplementedError

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Attention of queries to entries. The tokens of the chunk are the last entries; each sees at least itself.

        Args:
            queries: (batch, heads, time, head width).
            keys: (batch, heads, entries, head width).
            values: (batch, heads, entries, head width).
            seen: (batch, caches, time, entries) bool.

        Returns:
            (batch, heads, time, head width).
        """
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)

    def initial_state(self, batch_size: int) -> SlotState:
        """Empty slots."""
        empty = self.output.weight.new_zeros(batch_size, self.heads, self.slots, self.head_width)
        counts = torch.zeros(batch_size, self.caches, self.buckets, dtype=torch.long, device=empty.device)
        return SlotState(empty, empty.clone(), counts.new_full((batch_size, self.caches, self.slots), -1), counts)

    def mix_chunk(self, x: Tensor, state: SlotState, episode: Tensor, count: Tensor | None) -> tuple[Tensor, SlotState]:
        """See `Chunkwise.mix_chunk`."""
        real = torch.ones_like(episode, dtype=torch.bool)
        if count is not None:
            real = torch.arange(x.shape[1], device=x.device) < count.unsqueeze(1)
        chunk = self.project(x, real)
        entries, seen = self._entries(state, chunk, episode)
        mixed = self.attend(chunk.queries, entries.keys, entries.values, seen)
        return self.output(self._join_heads(mixed)), self._cache(state, entries, real)

    def _entries(self, state: SlotState, chunk: Projections, episode: Tensor) -> tuple[Entries, Tensor]:
        """The entries, and the mask of those that each token sees, (batch, caches, time, entries)."""
        slot_bucket = torch.arange(self.slots, device=episode.device) // (self.slots // self.buckets)
        bucket = torch.cat([slot_bucket.expand_as(state.rank), chunk.bucket], -1)
        entry_episode = F.pad(episode, (self.slots, 0)).unsqueeze(1)
        episode = episode.unsqueeze(1)
        same_bucket = chunk.bucket.unsqueeze(-1) == bucket.unsqueeze(-2)
        alike = same_bucket & (episode.unsqueeze(-1) == entry_episode.unsqueeze(-2))
        earlier = state.counts.gather(-1, chunk.bucket).masked_fill(episode > 0, 0)
        own_rank = earlier + alike[..., self.slots :].tril(-1).sum(-1)  # (batch, caches, time)
        rank = torch.cat([state.rank, own_rank], -1)
        evicted_at = self.evicted_at(rank, entry_episode)
        now, cached = own_rank.unsqueeze(-1), rank.unsqueeze(-2)
        seen = alike & (cached >= 0) & (cached <= now) & (now < evicted_at.unsqueeze(-2))
        keys, values = torch.cat([state.keys, chunk.keys], 2), torch.cat([state.values, chunk.values], 2)
        return Entries(keys, values, bucket, rank, entry_episode, evicted_at), seen

    def _cache(self, state: SlotState, entries: Entries, real: Tensor) -> SlotState:
        """Puts the entries that are not evicted after the chunk into their slots."""
        _, _, bucket, rank, episode, evicted_at = entries
        final_episode = episode[..., -1:]
        current = F.pad(real, (self.slots, 0), value=True).unsqueeze(1) & (episode == final_episode)
        own_bucket, own_current = bucket[..., self.slots :], current[..., self.slots :]
        every_bucket = torch.arange(self.buckets, device=bucket.device)
        added = (own_bucket.unsqueeze(-1) == every_bucket) & own_current.unsqueeze(-1)
        counts = state.counts.masked_fill(final_episode > 0, 0) + added.sum(-2)
        last = counts.gather(-1, bucket) - 1
        kept = (rank >= 0) & current & (last < evicted_at)
        # An extra slot collects all other entries and is dropped.
        target = self.slot(bucket, rank, last).masked_fill(~kept, self.slots)
        position = torch.arange(target.shape[-1], device=target.device).expand_as(target)
        source = target.new_full((*target.shape[:-1], self.slots + 1), -1).scatter(-1, target, position)
        source = source[..., : self.slots]  # -1 for empty slots
        index = source.clamp(min=0)
        row = index.unsqueeze(-1).expand(-1, self.heads, -1, self.head_width)
        slot_rank = rank.gather(-1, index).masked_fill(source < 0, -1)
        return SlotState(entries.keys.gather(2, row), entries.values.gather(2, row), slot_rank, counts)


class FirstAndLast(SlotCache):
    """Each token attends to the first `GLOBAL` tokens of the episode and to the last `span`, itself included.

    Ranks in the slots after 9 tokens, for span 3; the window is a ring:

        global      window
        0 1 2 3     7 8 6

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window.
        more: slots beyond those of the first and the last tokens.
        caches: see `SlotCache`.
    """

    def __init__(self, width: int, heads: int, span: int, more: int = 0, caches: int = 1) -> None:
        super().__init__(width, heads, span, GLOBAL + span + more, 1, caches)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def project(self, x: Tensor, real: Tensor) -> Projections:
        """See `SlotCache.project`; all tokens share one bucket."""
        queries, keys, values = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        bucket = torch.zeros_like(real, dtype=torch.long).unsqueeze(1).expand(-1, self.caches, -1)
        return Projections(queries, keys, values, bucket)

    def evicted_at(self, rank: Tensor, episode: Tensor) -> Tensor:
        """See `SlotCache.evicted_at`."""
        return torch.where(rank < GLOBAL, NEVER, rank + self.span)

    def slot(self, bucket: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """See `SlotCache.slot`."""
        return torch.where(rank < GLOBAL, rank, GLOBAL + (rank - GLOBAL) % self.span)


class LatestOfBucket(SlotCache):
    """Each token attends to the latest `span` tokens of its bucket, itself included. Queries are the keys, too.

    Ranks in the slots for 2 buckets of span 3, with 5 and 2 tokens so far (-1 is empty); each bucket is a ring:

        bucket 0    bucket 1
        3 4 2       0 1 -1

    Args:
        width: size of a token.
        heads: number of heads, each with separate buckets; must divide the width.
        span: cached tokens of each bucket.
        buckets: buckets of each head.
    """

    def __init__(self, width: int, heads: int, span: int, buckets: int) -> None:
        super().__init__(width, heads, span, buckets * span, buckets, heads)
        self.query = nn.Linear(width, width)

    def evicted_at(self, rank: Tensor, episode: Tensor) -> Tensor:
        """See `SlotCache.evicted_at`."""
        return rank + self.span

    def slot(self, bucket: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """See `SlotCache.slot`."""
        return bucket * self.span + rank % self.span
