"""Torch's recurrent networks over rows that hold padding and more than one episode."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from aaren_rl.mixers.base.contract import Mixer

Rows = TypeVar("Rows", Tensor, PackedSequence)


class Recurrent(Mixer):
    """A recurrent network and a projection of its outputs.

    Torch's kernels run along whole rows. So where a row has padding or a reset after its first token, its episodes are
    cut out and become rows of their own, packed without padding for a single call.

    The projection is there because all else in the residual stream is written by a linear layer: a state between -1 and
    1 would set the size of what is added, and a block would not start near the identity as it does with attention.

    Subclasses implement `run`, and `step` by torch's cell; their state is a tensor, zero at the start of an episode.

    Args:
        width: size of a token and of the hidden state.
        heads: checked as everywhere, otherwise without effect: a recurrent network has no heads.
    """

    memory = "constant"
    recordable = False
    state_parts: ClassVar[int]
    """Vectors of the width in a state."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.output = nn.Linear(width, width)

    def run(self, rows: Rows, state: Tensor) -> tuple[Rows, Tensor]:
        """The network along rows without padding or resets, from a state of each; hidden states, and the states after.

        Args:
            rows: (rows, time, width), or packed ones.
            state: (rows, state parts * width).
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (batch, state parts * width)."""
        return self.output.weight.new_zeros(batch_size, self.state_parts * self.width)

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer.forward`; the state is a tensor (batch, state parts * width)."""
        before = self.initial_state(x.shape[0]) if state is None else state
        # What is carried over thousands of tokens stays in full precision.
        with torch.autocast(x.device.type, enabled=False):
            hidden, after = self._mix(x.to(self.output.weight), before.to(self.output.weight), reset, valid)
        return self.output(hidden), after

    def _mix(self, x: Tensor, before: Tensor, reset: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        if reset is None and valid is None:
            return self.run(x, before)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        # Episodes of a row are numbered; number 0 goes on from the state before, all others start anew.
        episode = torch.zeros_like(real, dtype=torch.long) if reset is None else reset.cumsum(1)
        if bool(real.all() & (episode == episode[:, :1]).all()):
            return self.run(x, before.masked_fill(episode[:, :1] > 0, 0.0))
        after = before.masked_fill(episode[:, -1:] > 0, 0.0)
        outputs = torch.zeros_like(x)
        owner, number, lengths = _pieces(real, episode)
        if not len(lengths):
            return outputs, after
        filled = torch.arange(int(lengths.max()), device=x.device) < lengths.unsqueeze(1)
        rows = x.new_zeros(*filled.shape, self.width)
        # Both masks are gone through in the same order.
        rows[filled] = x[real]
        packed = pack_padded_sequence(rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, ends = self.run(packed, before[owner].masked_fill((number > 0).unsqueeze(1), 0.0))
        outputs[real] = pad_packed_sequence(hidden, batch_first=True)[0][filled]
        last = number == episode[owner, -1]
        after[owner[last]] = ends[last]
        return outputs, after


def _pieces(real: Tensor, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every piece of an episode that has tokens: the row it lies in, its number there, and its length, (pieces,)."""
    keys = torch.stack([real.nonzero()[:, 0], episode[real]], 1)
    pieces, lengths = torch.unique_consecutive(keys, dim=0, return_counts=True)
    return pieces[:, 0], pieces[:, 1], lengths
