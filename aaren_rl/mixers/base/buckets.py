"""Groups of consecutive tokens, counted from the start of each episode, for mixers that treat whole groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import latest, pick


class Groups(NamedTuple):
    """The groups in a block of tokens, which need not begin or end with one.

    Attributes:
        tokens: what is remembered of the last tokens before the block and of its own, (batch, size - 1 + time, ...);
            that of token t stands at size - 1 + t.
        place: of each token in its group, (batch, time), from 0.
        own: (batch, time, size - 1 + time) bool, which of `tokens` are in the group of a token, up to itself.
        before: how many groups were completed in the block before each token, (batch, time).
        members: the tokens of the groups completed in the block, in order, (batch, number, size, ...); the number is
            the largest possible one, and what stands after the last group has no meaning.
        episode: of `members`, (batch, number).
        complete: how many groups the real tokens of the block complete, (batch,).
        recent: the last `size - 1` of `tokens` up to the last real one, for the next block.
        begun: how many of `recent` are of the group under way, (batch,).
    """

    tokens: Tensor
    place: Tensor
    own: Tensor
    before: Tensor
    members: Tensor
    episode: Tensor
    complete: Tensor
    recent: Tensor
    begun: Tensor


def group(recent: Tensor, begun: Tensor, tokens: Tensor, episode: Tensor, count: Tensor | None, size: int) -> Groups:
    """Finds the groups in a block of tokens.

    Args:
        recent: what is remembered of the last tokens before the block, (batch, size - 1, ...), the newest last.
        begun: how many of them are of a group under way, (batch,).
        tokens: what is remembered of the tokens of the block, (batch, time, ...).
        episode: (batch, time), as in `Bounded.run`.
        count: (batch,), as in `Bounded.run`.
        size: tokens of a group.
    """
    time = tokens.shape[1]
    at = torch.arange(time, device=tokens.device)
    count = torch.full_like(begun, time) if count is None else count
    # Episodes do not fall along a row, so those below a token's are before its first token.
    first = (episode.unsqueeze(1) < episode.unsqueeze(2)).sum(2)
    earlier = torch.where(episode == 0, begun.unsqueeze(1), 0)
    place = (at - first + earlier) % size
    tokens = torch.cat([recent, tokens], 1)
    age = at.unsqueeze(1) + size - 1 - torch.arange(size - 1 + time, device=tokens.device)
    ends = (place == size - 1).long()
    end = places(ends, size)
    member = end.unsqueeze(2) + torch.arange(size, device=tokens.device)
    return Groups(
        tokens,
        place,
        (age >= 0) & (age <= place.unsqueeze(2)),
        ends.cumsum(1) - ends,
        torch.unflatten(pick(tokens, member.flatten(1)), 1, (-1, size)),
        episode.gather(1, end),
        (ends * (at < count.unsqueeze(1))).sum(1),
        latest(tokens, size - 1, count, time),
        (count - first[:, -1] + earlier[:, -1]) % size,
    )


def seen(groups: Groups, live: Tensor, episode: Tensor) -> Tensor:
    """Which complete groups each token can look at: the last ones of its episode before its own group.

    Args:
        groups: of the block.
        live: of the groups remembered before the block, (batch, past) bool, False before the first of the episode.
        episode: of the tokens, (batch, time).

    Returns:
        (batch, time, past + number) bool, of the groups remembered and those completed in the block.
    """
    past, number = live.shape[1], groups.episode.shape[1]
    age = groups.before.unsqueeze(2) + past - torch.arange(past + number, device=live.device)
    same = F.pad(groups.episode, (past, 0)).unsqueeze(1) == episode.unsqueeze(2)
    return (age >= 1) & (age <= past) & same & F.pad(live, (0, number), value=True).unsqueeze(1)


def still_live(groups: Groups, live: Tensor, episode: Tensor) -> Tensor:
    """`live` of `seen` for the next block, (batch, past)."""
    number = groups.episode.shape[1]
    same = F.pad(groups.episode, (live.shape[1], 0)) == episode[:, -1:]
    return latest(F.pad(live, (0, number), value=True) & same, live.shape[1], groups.complete, number)


def places(marks: Tensor, size: int) -> Tensor:
    """Where the marked tokens of each row stand, in order.

    Args:
        marks: (batch, time) of 0 and 1; two 1 are at least `size` apart.
        size: of a group.

    Returns:
        (batch, number), the last token where there are no more.
    """
    time = marks.shape[1]
    nth = torch.arange(1 + (time - 1) // size, device=marks.device)
    return (marks.cumsum(1).unsqueeze(1) <= nth.unsqueeze(1)).sum(2).clamp(max=time - 1)
