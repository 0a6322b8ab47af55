"""Base of mixers that keep a fixed number of past tokens: real tokens are mixed chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.mixers.base.state import State, where_rows

CHUNK = 128
"""Tokens that are mixed at once. A longer sequence takes several chunks, so its cost is linear in its length."""


class Chunkwise(Mixer):
    """A mixer whose state has a fixed size: a window, slots, or sums of past tokens.

    A subclass implements `initial_state` and `mix_chunk`. It never sees padding: real tokens move to the front of their
    row before `mix_chunk` and back afterwards. Here `.` is padding and `|` a reset before the token:

        tokens      a b . c |d . e        valid   1 1 0 1 1 0 1
        moved       a b c d e . .         count   5
        episode     0 0 0 1 1 1 1         numbers never fall along a row
    """

    memory = "window"

    def mix_chunk(self, x: Tensor, state: State, episode: Tensor, count: Tensor | None) -> tuple[Tensor, State]:
        """Mixes a chunk of tokens.

        Args:
            x: tokens, (batch, time, width); zeros after the real tokens of a row.
            state: state before the first token.
            episode: (batch, time) integers that never fall along a row. Episode 0 continues from the state; every
                larger number is a new episode.
            count: number of real tokens in each row, (batch,); they come first. None if all tokens are real.

        Returns:
            Mixed tokens (batch, time, width) and the state after the last real token. Outputs after the real tokens
            have no meaning but are finite.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See `Mixer.forward`."""
        state = self.initial_state(x.shape[0]) if state is None else state
        episode = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device) if reset is None else reset.cumsum(1)
        if valid is None:
            y, state, reached = self._mix_chunks(x, state, episode, None)
        else:
            count = valid.sum(1)
            # Target of each token: real tokens to the front, padding behind them.
            target = torch.where(valid, valid.cumsum(1), count.unsqueeze(1) + (~valid).cumsum(1)) - 1
            position = torch.arange(x.shape[1], device=x.device).expand_as(target)
            order = torch.zeros_like(target).scatter(1, target, position)
            real = position < count.unsqueeze(1)
            moved = pick(x, order).masked_fill(~real.unsqueeze(-1), 0.0)
            # Padding behind the real tokens belongs to the episode of the last of them.
            moved_episode = episode.gather(1, order).masked_fill(~real, 0).cummax(1).values
            y, state, reached = self._mix_chunks(moved, state, moved_episode, count)
            y = pick(y, target)
        if reset is not None:
            # A new episode may start on padding at the end of a row.
            state = where_rows(episode[:, -1] > reached, self.initial_state(x.shape[0]), state)
        return y, state

    def _mix_chunks(
        self, x: Tensor, state: State, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, State, Tensor]:
        """Outputs, the state after the last real token, and the episode of that state, (batch,)."""
        outputs = []
        reached = torch.zeros_like(episode[:, 0])
        for start in range(0, x.shape[1], CHUNK):
            chunk, number = x[:, start : start + CHUNK], episode[:, start : start + CHUNK]
            left = None if count is None else (count - start).clamp(0, chunk.shape[1])
            y, state = self.mix_chunk(chunk, state, number - reached.unsqueeze(1), left)
            # A chunk without real tokens repeats the last number before it.
            reached = number[:, -1]
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), state, reached


def latest(entries: Tensor, number: int, count: Tensor | None, time: int) -> Tensor:
    """The last entries of each row up to its last real token.

    Args:
        entries: entries of the state, then those of a chunk, (batch, past + time, ...).
        number: entries to take, at most `past`.
        count: number of real tokens in each row of the chunk, (batch,); they come first. None if all are real.
        time: tokens of the chunk.

    Returns:
        (batch, number, ...).
    """
    first = entries.shape[1] - time - number
    if count is None:
        return entries[:, first + time :]
    return pick(entries, (count + first).unsqueeze(1) + torch.arange(number, device=entries.device))


def pick(entries: Tensor, index: Tensor) -> Tensor:
    """Picks entries (batch, time, ...) of each row by an index (batch, number)."""
    # Not take_along_dim, which would fix the batch of a trace.
    return entries.gather(1, index.reshape(*index.shape, *[1] * (entries.ndim - 2)).expand(-1, -1, *entries.shape[2:]))


def checked_span(span: int) -> int:
    """Returns the span of a window.

    Raises:
        InvalidInput: the span is below 1.
    """
    if span < 1:
        raise InvalidInput(f"a window of {span} tokens; expected at least 1")
    return span
