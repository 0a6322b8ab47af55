"""Base of mixers that see the last tokens of an episode, in a window that moves with the current token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import Chunkwise, checked_span, latest


class WindowState(NamedTuple):
    """Entries of the last tokens, the newest last.

    Attributes:
        past: (batch, span - 1, entry size).
        live: (batch, span - 1) bool, False for entries before the first token of the episode.
    """

    past: Tensor
    live: Tensor


class SlidingWindow(Chunkwise):
    """Mixes each token with the `span - 1` tokens before it.

    A subclass implements `remember`, the entry that is kept of a token, and `mix`, which mixes a chunk. The state has
    the same size from the first step on.

    Entries of the state and of the chunk lie side by side in `past`. A token sees `span` of them, up to its entry.
    For span 3 and a chunk of 4 tokens, with `x` for seen entries:

                      state   chunk
        past         -2 -1   0  1  2  3
        token 0       x  x   x  .  .  .
        token 1       .  x   x  x  .  .
        token 2       .  .   x  x  x  .
        token 3       .  .   .  x  x  x

    Entries of other episodes are unseen, too.

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of the window, the current one included.
        entry_size: numbers that are kept of a token.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    nothing: Tensor

    def __init__(self, width: int, heads: int, span: int, entry_size: int) -> None:
        super().__init__(width, heads)
        self.span, self.entry_size = checked_span(span), entry_size
        # Without a parameter, this buffer gives a state its device and dtype.
        self.register_buffer("nothing", torch.zeros(0), persistent=False)

    def remember(self, x: Tensor) -> Tensor:
        """Entries of tokens (batch, time, width): (batch, time, entry size)."""
        raise NotImplementedError

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """Mixes a chunk of tokens.

        Args:
            x: tokens, (batch, time, width).
            past: entries of the state and of the chunk, (batch, span - 1 + time, entry size). The entry of token t is
                at span - 1 + t; empty entries are 0.
            seen: mask of the entries that each token sees, (batch, time, span - 1 + time) bool. Each token sees its
                entry.

        Returns:
            Mixed tokens, (batch, time, width).
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> WindowState:
        """An empty window."""
        past = self.nothing.new_zeros(batch_size, self.span - 1, self.entry_size)
        return WindowState(past, torch.zeros(past.shape[:2], dtype=torch.bool, device=past.device))

    def mix_chunk(
        self, x: Tensor, state: WindowState, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, WindowState]:
        """See `Chunkwise.mix_chunk`."""
        before, time = self.span - 1, x.shape[1]
        past = torch.cat([state.past, self.remember(x)], 1)  # (batch, span - 1 + time, entry size)
        live = F.pad(state.live, (0, time), value=True)
        entry_episode = F.pad(episode, (before, 0))
        age = self.ages(time)
        in_window = (age >= 0) & (age < self.span)
        # (batch, time, span - 1 + time)
        seen = in_window & live.unsqueeze(1) & (entry_episode.unsqueeze(1) == episode.unsqueeze(2))
        y = self.mix(x, past, seen)
        live = live & (entry_episode == episode[:, -1:])
        past, live = latest(past, before, count, time), latest(live, before, count, time)
        return y, WindowState(past.masked_fill(~live.unsqueeze(-1), 0.0), live)

    def ages(self, time: int) -> Tensor:
        """Distance of each entry of `past` into the past of each token, (time, span - 1 + time).

        For span 3 and 2 tokens, rows are tokens:

             2  1  0 -1
             3  2  1  0
        """
        position = torch.arange(self.span - 1 + time, device=self.nothing.device)
        return position[self.span - 1 :, None] - position

    def along_past(self, weights: Tensor) -> Tensor:
        """Lays weights of each token's window along `past`.

        For span 3 and 2 tokens, rows are tokens:

            a b c    ->    a b c 0
            d e f          0 d e f

        Args:
            weights: (..., time, span), the newest entry last.

        Returns:
            (..., time, span - 1 + time), 0 outside the window.
        """
        time = weights.shape[-2]
        # Padded rows are one longer than those of the result: cut again, each row starts one further to the right.
        rows = F.pad(weights, (0, time)).flatten(-2)
        length = self.span - 1 + time
        return rows[..., : time * length].reshape(*weights.shape[:-1], length)

    def along_window(self, weights: Tensor) -> Tensor:
        """Inverse of `along_past`.

        Args:
            weights: (..., time, span - 1 + time).

        Returns:
            (..., time, span), the newest entry last.
        """
        time, length = weights.shape[-2:]
        rows = F.pad(weights.flatten(-2), (0, time)).reshape(*weights.shape[:-1], length + 1)
        return rows[..., : self.span]

    def windows(self, past: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Copies out the window of each token, the newest entry last.

        Args:
            past: (batch, span - 1 + time, entry size), as in `mix`.
            seen: (batch, time, span - 1 + time), as in `mix`.

        Returns:
            Entries (batch, time, span, entry size), 0 where unseen, and the mask of seen entries, (batch, time, span).
        """
        time = seen.shape[1]
        position = torch.arange(time, device=past.device).unsqueeze(1) + torch.arange(self.span, device=past.device)
        seen = self.along_window(seen)
        return past[:, position].masked_fill(~seen.unsqueeze(-1), 0.0), seen
