"""The long short-term memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.recurrent_stepper import Cell, Functions, Terms
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.torch_rnn import Rows, TorchRNN


class LSTMCell(Cell):
    """Equations of the network; columns of its layers are i, f, g and o."""

    def advance(self, terms: Terms, product: Any, state: Terms, functions: Functions) -> Terms:
        """See `Cell.advance`."""
        whole, (_, cell) = terms[0] + product, state
        width = cell.shape[1]
        # Of all columns, since one call costs more than the columns of g.
        gates = functions.sigmoid(whole)
        new = gates[:, :width] * functions.tanh(whole[:, 2 * width : 3 * width])
        cell = gates[:, width : 2 * width] * cell + new
        return gates[:, 3 * width :] * functions.tanh(cell), cell


@register("lstm")
class LSTM(TorchRNN):
    """A long short-term memory (Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000) and a projection.

    ``i, f, o = sigmoid(W x + U h)``, ``g = tanh(W_g x + U_g h)``, ``c = f * c + i * g``, ``h = o * tanh(c)`` (biases
    left out). Memory: constant, h and c side by side, (batch, 2 * width). Training runs along the sequence, token by
    token, in torch's fused kernels.

    Args:
        width: size of a token, of the hidden state and of the cell.
        heads: checked, otherwise without effect: the network has no heads.
    """

    state_parts = 2
    cell = LSTMCell()
    capability = Capability(
        source="Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000)",
        differs="followed by an output projection",
        parallel="T d^2, token by token",
        step="d^2",
    )

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.network = nn.LSTM(width, width, batch_first=True)

    def run_rows(self, rows: Rows, state: Tensor) -> tuple[Rows, Tensor]:
        """See `TorchRNN.run_rows`."""
        before = state.unsqueeze(0).chunk(2, -1)
        hidden, after = self.network(rows, tuple(part.contiguous() for part in before))
        return hidden, torch.cat(after, -1).squeeze(0)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixer.step`."""
        hidden, cell = torch.lstm_cell(x_t, state.chunk(2, -1), *self.network.all_weights[0])
        return self.output(hidden), torch.cat([hidden, cell], -1)
