"""Mixers that look at the last tokens of an episode, those of a window that moves with the current one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aaren_rl.mixers.base.chunkwise import Bounded, checked_span, latest


class WindowState(NamedTuple):
    """What is remembered of the last tokens, the newest last.

    Attributes:
        past: (batch, span - 1, remembered).
        live: (batch, span - 1) bool, False before the first token of the episode.
    """

    past: Tensor
    live: Tensor


class Windowed(Bounded):
    """Mixes each token with the `span - 1` before it.

    A subclass says with `remember` what is kept of a token, and with `mix` what becomes of a window. The state has one
    size from the start (`WindowState`).

    Args:
        width: size of a token.
        heads: number of heads; must divide the width.
        span: tokens of a window, the current one included.
        remembered: numbers kept of a token.

    Raises:
        InvalidInput: the width is not a multiple of the heads, or span is below 1.
    """

    nothing: Tensor

    def __init__(self, width: int, heads: int, span: int, remembered: int) -> None:
        super().__init__(width, heads)
        self.span, self.remembered = checked_span(span), remembered
        # Tells the device and the type of a state.
        self.register_buffer("nothing", torch.zeros(0), persistent=False)

    def remember(self, x: Tensor) -> Tensor:
        """What is kept of tokens (batch, time, width): (batch, time, remembered)."""
        raise NotImplementedError

    def mix(self, x: Tensor, past: Tensor, seen: Tensor) -> Tensor:
        """Mixes a block of tokens.

        Args:
            x: tokens, (batch, time, width).
            past: of the window before the block and of the block, (batch, span - 1 + time, remembered); the entry of
                token t stands at span - 1 + t, and 0 where there is none.
            seen: (batch, time, span - 1 + time) bool, which of them are in its window and episode; its own always is.

        Returns:
            Mixed tokens, (batch, time, width).
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> WindowState:
        """An empty window."""
        past = self.nothing.new_zeros(batch_size, self.span - 1, self.remembered)
        return WindowState(past, torch.zeros(past.shape[:2], dtype=torch.bool, device=past.device))

    def run(self, x: Tensor, state: WindowState, episode: Tensor, count: Tensor | None) -> tuple[Tensor, WindowState]:
        """See `Bounded.run`."""
        before, time = self.span - 1, x.shape[1]
        past = torch.cat([state.past, self.remember(x)], 1)
        live = F.pad(state.live, (0, time), value=True)
        number = F.pad(episode, (before, 0))
        age = self.ages(time)
        in_window = (age >= 0) & (age < self.span)
        seen = in_window & live.unsqueeze(1) & (number.unsqueeze(1) == episode.unsqueeze(2))
        y = self.mix(x, past, seen)
        live = live & (number == episode[:, -1:])
        kept = latest(past, before, count, time), latest(live, before, count, time)
        return y, WindowState(kept[0].masked_fill(~kept[1].unsqueeze(-1), 0.0), kept[1])

    def ages(self, time: int) -> Tensor:
        """How many tokens ago each entry of `past` is for each token of a block, (time, span - 1 + time)."""
        place = torch.arange(self.span - 1 + time, device=self.nothing.device)
        return place[self.span - 1 :, None] - place

    def along_past(self, weights: Tensor) -> Tensor:
        """What each token says of the places of its window, laid along `past`.

        Args:
            weights: (..., time, span), the newest place last.

        Returns:
            (..., time, span - 1 + time), 0 outside the window.
        """
        time = weights.shape[-2]
        # Cut into rows one shorter than these, each row begins one place further to the right.
        rows = F.pad(weights, (0, time)).flatten(-2)
        length = self.span - 1 + time
        return rows[..., : time * length].reshape(*weights.shape[:-1], length)

    def along_window(self, weights: Tensor) -> Tensor:
        """The inverse of `along_past`: what each token says of `past`, laid along its window.

        Args:
            weights: (..., time, span - 1 + time).

        Returns:
            (..., time, span), the newest place last.
        """
        time, length = weights.shape[-2:]
        rows = F.pad(weights.flatten(-2), (0, time)).reshape(*weights.shape[:-1], length + 1)
        return rows[..., : self.span]

    def windows(self, past: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The window of each token laid out, the newest last.

        Args:
            past: (batch, span - 1 + time, remembered), as in `mix`.
            seen: (batch, time, span - 1 + time), as in `mix`.

        Returns:
            (batch, time, span, remembered), 0 where nothing is seen, and what is seen, (batch, time, span) bool.
        """
        time = seen.shape[1]
        place = torch.arange(time, device=past.device).unsqueeze(1) + torch.arange(self.span, device=past.device)
        found = self.along_window(seen)
        return past[:, place].masked_fill(~found.unsqueeze(-1), 0.0), found
