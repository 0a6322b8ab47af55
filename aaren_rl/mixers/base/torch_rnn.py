"""Base of torch's recurrent networks, over rows with padding and several episodes."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.mixers.base.recurrent_stepper import Cell, RecurrentStepper
from aaren_rl.mixers.base.stepper import Stepper

Rows = TypeVar("Rows", Tensor, PackedSequence)


class TorchRNN(Mixer):
    """A recurrent network and an output projection.

    Torch's kernels run along whole rows. If a row has padding, or a reset after its first token, every episode becomes
    a separate row, packed without padding. Here `.` is padding and `|` a reset:

        a b . c |d e        ->        a b c
        f g h  i j k                  d e
                                      f g h i j k

    Everything else in the residual stream is written by a linear layer; hence the projection. Without it, a state
    between -1 and 1 would set the size of what a block adds, and no block would start near the identity.

    A subclass builds `network`, names its `cell`, and implements `run_rows`, and `step` by torch's cell. The state is a
    tensor, zero at the start of an episode.

    Args:
        width: size of a token and of the hidden state.
        heads: checked, otherwise without effect: a recurrent network has no heads.
    """

    memory = "constant"
    cuda_graph = False
    state_parts: ClassVar[int]
    """Number of vectors in a state, each of the width."""
    cell: ClassVar[Cell]
    """Equations of the network, for acting."""
    network: nn.RNNBase

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.output = nn.Linear(width, width)

    def run_rows(self, rows: Rows, state: Tensor) -> tuple[Rows, Tensor]:
        """Runs the network along rows without padding or resets.

        Args:
            rows: (rows, time, width), or packed rows.
            state: state before each row, (rows, state parts * width).

        Returns:
            Hidden states like `rows`, and the state after each row, (rows, state parts * width).
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
        # A state that lives for thousands of tokens stays in full precision.
        with torch.autocast(x.device.type, enabled=False):
            hidden, after = self._mix(x.to(self.output.weight), before.to(self.output.weight), reset, valid)
        return self.output(hidden), after

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> Stepper:
        """See `Mixer.stepper`; a network without a `cell` steps by `step`."""
        if not hasattr(self, "cell"):
            return super().stepper(norm, tokens, outputs)
        token_weight, recurrent_weight, token_bias, recurrent_bias = self.network.all_weights[0]
        token, recurrent = (token_weight, token_bias), (recurrent_weight, recurrent_bias)
        return RecurrentStepper(self.cell, token, recurrent, self.output, self.state_parts, tokens, outputs)

    def _mix(self, x: Tensor, before: Tensor, reset: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states, (batch, time, width), and the state after the last token."""
        if reset is None and valid is None:
            return self.run_rows(x, before)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        # Episode 0 of a row continues from the state; all others start from zeros.
        episode = torch.zeros_like(real, dtype=torch.long) if reset is None else reset.cumsum(1)
        if bool(real.all() & (episode == episode[:, :1]).all()):
            return self.run_rows(x, before.masked_fill(episode[:, :1] > 0, 0.0))
        after = before.masked_fill(episode[:, -1:] > 0, 0.0)
        outputs = torch.zeros_like(x)
        owner, number, lengths = _pieces(real, episode)
        if not len(lengths):
            return outputs, after
        filled = torch.arange(int(lengths.max()), device=x.device) < lengths.unsqueeze(1)
        rows = x.new_zeros(*filled.shape, self.width)  # (pieces, longest, width)
        # Both masks list the real tokens in the same order.
        rows[filled] = x[real]
        packed = pack_padded_sequence(rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, ends = self.run_rows(packed, before[owner].masked_fill((number > 0).unsqueeze(1), 0.0))
        outputs[real] = pad_packed_sequence(hidden, batch_first=True)[0][filled]
        last = number == episode[owner, -1]
        after[owner[last]] = ends[last]
        return outputs, after


def _pieces(real: Tensor, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, episode number and length of every episode that has tokens, each (pieces,)."""
    keys = torch.stack([real.nonzero()[:, 0], episode[real]], 1)
    pieces, lengths = torch.unique_consecutive(keys, dim=0, return_counts=True)
    return pieces[:, 0], pieces[:, 1], lengths
