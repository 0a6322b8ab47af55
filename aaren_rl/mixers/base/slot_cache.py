"""Mixers that keep some of the past tokens in a fixed number of slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import Bounded, checked_span


class KeptState(NamedTuple):
    """The tokens that are kept; `choices` is 1 where all heads keep the same ones, else the heads.

    Attributes:
        keys: (batch, heads, slots, head width).
        values: (batch, heads, slots, head width).
        rank: (batch, choices, slots) integers, how many tokens of its group came before it; -1 in an empty slot.
        counts: (batch, choices, groups) integers, tokens of each group in the episode so far.
    """

    keys: Tensor
    values: Tensor
    rank: Tensor
    counts: Tensor


class Tokens(NamedTuple):
    """A block of tokens, as `Kept.project` gives them.

    Attributes:
        queries: (batch, heads, time, head width).
        keys: likewise.
        values: likewise.
        group: (batch, choices, time) integers, the group each belongs to.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    group: Tensor


class Kept(Bounded):
    """Each token attends to those of its group that are kept.

    A token's rank is how many of its group and episode came before it. A subclass says by ranks alone how long a token
    is kept (`until`) and where (`slot`), so a block of tokens needs no loop over time.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of a window; at least 1.
        slots: how many tokens are kept, the same number for each group.
        groups: kinds of tokens that do not see each other.
        choices: 1 where all heads keep the same tokens, else the heads.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    def __init__(self, width: int, heads: int, span: int, slots: int, groups: int, choices: int) -> None:
        super().__init__(width, heads)
        self.span, self.slots, self.groups, self.choices = checked_span(span), slots, groups, choices
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def project(self, x: Tensor, real: Tensor) -> Tokens:
        """What is compared, kept and decided of tokens (batch, time, width), of which `real` (batch, time) count."""
        raise NotImplementedError

    def until(self, rank: Tensor, episode: Tensor) -> Tensor:
        """The rank of the token of its group that drops each entry.

        Args:
            rank: of the entries, (batch, choices, entries).
            episode: of the entries, (batch, 1, entries) integers.

        Returns:
            Like `rank`; all that counts is whether it is above the rank of a later token.
        """
        raise NotImplementedError

    def slot(self, group: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """Where entries are kept.

        Args:
            group: of the entries, (batch, choices, entries).
            rank: likewise.
            last: rank of the latest token of their groups, likewise.

        Returns:
            Integers below the slots, different for all that are kept then.
        """
        raise NotImplementedError

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Attention of queries to entries; of a block's tokens, the last entries, each sees itself at least.

        Args:
            queries: (batch, heads, time, head width).
            keys: (batch, heads, entries, head width).
            values: likewise.
            seen: (batch, choices, time, entries) bool.

        Returns:
            (batch, heads, time, head width).
        """
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)

    def initial_state(self, batch_size: int) -> KeptState:
        """Empty slots."""
        empty = self.output.weight.new_zeros(batch_size, self.heads, self.slots, self.head_width)
        count = torch.zeros(batch_size, self.choices, self.groups, dtype=torch.long, device=empty.device)
        return KeptState(empty, empty.clone(), count.new_full((batch_size, self.choices, self.slots), -1), count)

    def run(self, x: Tensor, state: KeptState, episode: Tensor, count: Tensor | None) -> tuple[Tensor, KeptState]:
        """See `Bounded.run`."""
        time, place = x.shape[1], torch.arange(self.slots + x.shape[1], device=x.device)
        real = torch.ones_like(episode, dtype=torch.bool) if count is None else place[:time] < count.unsqueeze(1)
        queries, new_keys, new_values, new_group = self.project(x, real)
        # Entries are the slots of the state and then the tokens of the block.
        keys, values = torch.cat([state.keys, new_keys], 2), torch.cat([state.values, new_values], 2)
        slot_group = (place[: self.slots] // (self.slots // self.groups)).expand_as(state.rank)
        group = torch.cat([slot_group, new_group], -1)
        number = F.pad(episode, (self.slots, 0)).unsqueeze(1)
        episode = episode.unsqueeze(1)
        alike = (new_group.unsqueeze(-1) == group.unsqueeze(-2)) & (episode.unsqueeze(-1) == number.unsqueeze(-2))

        before = state.counts.gather(-1, new_group).masked_fill(episode > 0, 0)
        new_rank = before + alike[..., self.slots :].tril(-1).sum(-1)
        rank = torch.cat([state.rank, new_rank], -1)
        live, until, now = rank >= 0, self.until(rank, number), new_rank.unsqueeze(-1)
        seen = alike & live.unsqueeze(-2) & (rank.unsqueeze(-2) <= now) & (now < until.unsqueeze(-2))
        y = self.output(self._join_heads(self.attend(queries, keys, values, seen)))

        ends = episode[..., -1:]
        current = real.unsqueeze(1) & (episode == ends)
        added = (new_group.unsqueeze(-1) == place[: self.groups]) & current.unsqueeze(-1)
        counts = state.counts.masked_fill(ends > 0, 0) + added.sum(-2)
        last = counts.gather(-1, group) - 1
        kept = live & (number == ends) & F.pad(real, (self.slots, 0), value=True).unsqueeze(1) & (last < until)
        # What is not kept goes to one slot more, that is dropped.
        goes = self.slot(group, rank, last).masked_fill(~kept, self.slots)
        came = goes.new_full((*goes.shape[:-1], self.slots + 1), -1).scatter(-1, goes, place.expand_as(goes))
        came = came[..., : self.slots]
        index = came.clamp(min=0)
        row = index.unsqueeze(-1).expand(-1, self.heads, -1, self.head_width)
        ranks = rank.gather(-1, index).masked_fill(came < 0, -1)
        return y, KeptState(keys.gather(2, row), values.gather(2, row), ranks, counts)


GLOBAL = 4
"""Tokens of an episode that all later ones see: its first step or two, which hold the target return."""
FOREVER = 2**61
"""A rank that no token reaches."""


class FirstAndLast(Kept):
    """Each token attends to the first `GLOBAL` of the episode and to the last `span`, itself included.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window.
        more: slots besides those of the first and the last tokens.
        choices: see `Kept`.
    """

    def __init__(self, width: int, heads: int, span: int, more: int = 0, choices: int = 1) -> None:
        super().__init__(width, heads, span, GLOBAL + span + more, 1, choices)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def project(self, x: Tensor, real: Tensor) -> Tokens:
        """See `Kept.project`."""
        queries, keys, values = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        group = torch.zeros_like(real, dtype=torch.long).unsqueeze(1).expand(-1, self.choices, -1)
        return Tokens(queries, keys, values, group)

    def until(self, rank: Tensor, episode: Tensor) -> Tensor:
        """See `Kept.until`."""
        return torch.where(rank < GLOBAL, FOREVER, rank + self.span)

    def slot(self, group: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """See `Kept.slot`."""
        return torch.where(rank < GLOBAL, rank, GLOBAL + (rank - GLOBAL) % self.span)


class LatestOfGroup(Kept):
    """Each token attends to the latest `span` of its group, itself included, by queries that are its keys too.

    Args:
        width: size of a token.
        heads: number of heads, each with groups of its own; must divide the width.
        span: tokens kept of each group.
        groups: of each head.
    """

    def __init__(self, width: int, heads: int, span: int, groups: int) -> None:
        super().__init__(width, heads, span, groups * span, groups, heads)
        self.query = nn.Linear(width, width)

    def until(self, rank: Tensor, episode: Tensor) -> Tensor:
        """See `Kept.until`."""
        return rank + self.span

    def slot(self, group: Tensor, rank: Tensor, last: Tensor) -> Tensor:
        """See `Kept.slot`."""
        return group * self.span + rank % self.span
