"""Tumbling windows: consecutive tokens of an episode in windows of fixed size that do not overlap.

Windows are counted from the start of each episode, so a chunk need not start or end with one. For windows of 3 tokens,
two tokens of the first window in the state, and `|` a reset:

    state          chunk
    y z            a b c d |e f g h
    position       2 0 1 2  0 1 2 0       in its window
    filled 2                              tokens of the unfinished window: 2 before, 1 after (h)
    completed      yza bcd  efg           in order
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import latest, pick


class TumblingWindows(NamedTuple):
    """Tumbling windows of a chunk.

    `number` is the largest possible number of windows that a chunk completes.

    Attributes:
        entries: entries of the last `size - 1` tokens before the chunk and of the chunk, (batch, size - 1 + time, ...).
            The entry of token t is at size - 1 + t.
        position: position of each token in its window, (batch, time), from 0.
        in_window: mask of the entries in the window of each token, up to itself, (batch, time, size - 1 + time) bool.
        completed_before: windows that the chunk completes before each token, (batch, time).
        completed: entries of the windows that the chunk completes, in order, (batch, number, size, ...). Windows beyond
            `completed_count` have no meaning.
        episode: episode of each completed window, (batch, number).
        completed_count: windows that the real tokens of the chunk complete, (batch,).
        recent: the last `size - 1` entries up to the last real token, for the next chunk, (batch, size - 1, ...).
        filled: how many of `recent` belong to the unfinished window, (batch,).
    """

    entries: Tensor
    position: Tensor
    in_window: Tensor
    completed_before: Tensor
    completed: Tensor
    episode: Tensor
    completed_count: Tensor
    recent: Tensor
    filled: Tensor


def tumbling_windows(
    recent: Tensor, filled: Tensor, entries: Tensor, episode: Tensor, count: Tensor | None, size: int
) -> TumblingWindows:
    """Finds the tumbling windows of a chunk.

    Args:
        recent: entries of the last tokens before the chunk, (batch, size - 1, ...), the newest last.
        filled: how many of them belong to the unfinished window, (batch,).
        entries: entries of the chunk, (batch, time, ...).
        episode: (batch, time), as in `Chunkwise.mix_chunk`.
        count: (batch,), as in `Chunkwise.mix_chunk`.
        size: tokens of a window.
    """
    time = entries.shape[1]
    at = torch.arange(time, device=entries.device)
    count = torch.full_like(filled, time) if count is None else count
    # Episode numbers never fall along a row: smaller ones lie before the first token of the episode.
    first = (episode.unsqueeze(1) < episode.unsqueeze(2)).sum(2)
    carried = torch.where(episode == 0, filled.unsqueeze(1), 0)
    position = (at - first + carried) % size
    entries = torch.cat([recent, entries], 1)
    age = at.unsqueeze(1) + size - 1 - torch.arange(size - 1 + time, device=entries.device)
    ends = (position == size - 1).long()
    end = marked_positions(ends, size)  # (batch, number)
    member = end.unsqueeze(2) + torch.arange(size, device=entries.device)
    return TumblingWindows(
        entries,
        position,
        (age >= 0) & (age <= position.unsqueeze(2)),
        ends.cumsum(1) - ends,
        torch.unflatten(pick(entries, member.flatten(1)), 1, (-1, size)),
        episode.gather(1, end),
        (ends * (at < count.unsqueeze(1))).sum(1),
        latest(entries, size - 1, count, time),
        (count - first[:, -1] + carried[:, -1]) % size,
    )


def visible_windows(windows: TumblingWindows, live: Tensor, episode: Tensor) -> Tensor:
    """Mask of the completed windows that each token sees: the last `past` of its episode.

    Windows of the state and of the chunk lie side by side. For 2 windows in the state, 3 completed by the chunk, and
    tokens of one episode by the number of windows completed before them:

                           state   chunk
        window             0  1    2  3  4
        before token: 0    x  x    .  .  .
                      1    .  x    x  .  .
                      2    .  .    x  x  .

    Args:
        windows: tumbling windows of the chunk.
        live: mask of the windows in the state, (batch, past) bool; False before the first window of the episode.
        episode: episode of each token, (batch, time).

    Returns:
        (batch, time, past + number) bool.
    """
    past, number = live.shape[1], windows.episode.shape[1]
    age = windows.completed_before.unsqueeze(2) + past - torch.arange(past + number, device=live.device)
    same_episode = F.pad(windows.episode, (past, 0)).unsqueeze(1) == episode.unsqueeze(2)
    return (age >= 1) & (age <= past) & same_episode & F.pad(live, (0, number), value=True).unsqueeze(1)


def live_windows(windows: TumblingWindows, live: Tensor, episode: Tensor) -> Tensor:
    """`live` of `visible_windows` for the next chunk, (batch, past)."""
    number = windows.episode.shape[1]
    same_episode = F.pad(windows.episode, (live.shape[1], 0)) == episode[:, -1:]
    alive = F.pad(live, (0, number), value=True) & same_episode
    return latest(alive, live.shape[1], windows.completed_count, number)


def marked_positions(marks: Tensor, size: int) -> Tensor:
    """Positions of the marked tokens of each row, in order.

    Args:
        marks: (batch, time) of 0 and 1; two marks are at least `size` apart.
        size: tokens of a window.

    Returns:
        (batch, number); the last token stands in for missing marks.
    """
    time = marks.shape[1]
    nth = torch.arange(1 + (time - 1) // size, device=marks.device)
    return (marks.cumsum(1).unsqueeze(1) <= nth.unsqueeze(1)).sum(2).clamp(max=time - 1)
