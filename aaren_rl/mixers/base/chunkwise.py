"""Mixers that keep a bounded number of past tokens, applied block by block to the real tokens of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers.base.contract import Mixer, State, where_rows

BLOCK = 128
"""Tokens that are mixed at once; a longer sequence is several blocks, so its cost grows in proportion to its length."""


class Bounded(Mixer):
    """A mixer whose state has one size, whatever it has seen.

    Padding is taken out first: real tokens move to the front of their row, so that places in a row are places among
    real tokens, and afterwards go back to where they were. A subclass implements `run` on what is left, a block of
    real tokens with episodes in it, and `initial_state`.
    """

    memory = "window"

    def run(self, x: Tensor, state: State, episode: Tensor, count: Tensor | None) -> tuple[Tensor, State]:
        """Mixes a block.

        Args:
            x: tokens, (batch, time, width), zeros after the real ones of a row.
            state: before the first token.
            episode: (batch, time) integers that do not fall along a row; 0 goes on from the state, a number above its
                predecessor starts anew.
            count: (batch,) real tokens of each row, the first ones; None where all are real.

        Returns:
            Mixed tokens (batch, time, width), where those after the real ones have no meaning but are finite, and the
            state after the last real token.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See `Mixer.forward`."""
        state = self.initial_state(x.shape[0]) if state is None else state
        episode = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device) if reset is None else reset.cumsum(1)
        if valid is None:
            y, state, reached = self._run_blocks(x, state, episode, None)
        else:
            count = valid.sum(1)
            # Where each token goes: real ones to the front, padding behind them.
            to = torch.where(valid, valid.cumsum(1), count.unsqueeze(1) + (~valid).cumsum(1)) - 1
            place = torch.arange(x.shape[1], device=x.device).expand_as(to)
            order = torch.zeros_like(to).scatter(1, to, place)
            real = place < count.unsqueeze(1)
            front = pick(x, order).masked_fill(~real.unsqueeze(-1), 0.0)
            # What follows the real tokens belongs to the episode of the last of them.
            numbers = episode.gather(1, order).masked_fill(~real, 0).cummax(1).values
            y, state, reached = self._run_blocks(front, state, numbers, count)
            y = pick(y, to)
        if reset is not None:
            # A new episode may have begun on padding at the end.
            state = where_rows(episode[:, -1] > reached, self.initial_state(x.shape[0]), state)
        return y, state

    def _run_blocks(
        self, x: Tensor, state: State, episode: Tensor, count: Tensor | None
    ) -> tuple[Tensor, State, Tensor]:
        """Outputs, the state after the last real token, and the episode it belongs to, (batch,)."""
        outputs = []
        reached = torch.zeros_like(episode[:, 0])
        for start in range(0, x.shape[1], BLOCK):
            block, number = x[:, start : start + BLOCK], episode[:, start : start + BLOCK]
            left = None if count is None else (count - start).clamp(0, block.shape[1])
            y, state = self.run(block, state, number - reached.unsqueeze(1), left)
            # Without a real token in the block its numbers are those of the last one before.
            reached = number[:, -1]
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), state, reached


def latest(entries: Tensor, number: int, count: Tensor | None, time: int) -> Tensor:
    """The last entries of each row up to its last real token.

    Args:
        entries: (batch, past + time, ...), of a state and of a block of tokens.
        number: how many, at most `past`.
        count: (batch,) real tokens of the block, the first ones; None where all are real.
        time: tokens of the block.

    Returns:
        (batch, number, ...).
    """
    first = entries.shape[1] - time - number
    if count is None:
        return entries[:, first + time :]
    return pick(entries, (count + first).unsqueeze(1) + torch.arange(number, device=entries.device))


def pick(entries: Tensor, index: Tensor) -> Tensor:
    """Of each row the entries (batch, time, ...) at an index (batch, number)."""
    # Not take_along_dim, which would fix the batch of a trace.
    return entries.gather(1, index.reshape(*index.shape, *[1] * (entries.ndim - 2)).expand(-1, -1, *entries.shape[2:]))


def checked_span(span: int) -> int:
    """The tokens of a window.

    Raises:
        InvalidInput: below 1.
    """
    if span < 1:
        raise InvalidInput(f"a window of {span} tokens; expected at least 1")
    return span
