"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.recurrent_stepper import Cell, Functions, Terms
from aaren_rl.mixers.base.registry import register
from aaren_rl.mixers.base.torch_rnn import Rows, TorchRNN


class GRUCell(Cell):
    """Equations of the unit; columns of its layers are r, z and n."""

    def advance(self, terms: Terms, product: Any, state: Terms, functions: Functions) -> Terms:
        """See `Cell.advance`."""
        (row,), (hidden,) = terms, state
        width = hidden.shape[1]
        gates = functions.sigmoid(row[:, : 2 * width] + product[:, : 2 * width])
        new = functions.tanh(row[:, 2 * width :] + gates[:, :width] * product[:, 2 * width :])
        return (new + gates[:, width:] * (hidden - new),)


@register("gru")
class GRU(TorchRNN):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078, section 2.3) and an output projection.

    Reset gate r and update gate z, in torch's form, which applies r after the recurrent product (biases left out):
    ``r = sigmoid(W_r x + U_r h)``, ``z = sigmoid(W_z x + U_z h)``, ``n = tanh(W_n x + r * (U_n h))``,
    ``h = (1 - z) * n + z * h``. Memory: constant, the hidden state (batch, width). Training runs along the sequence,
    token by token, in torch's fused kernels.

    Args:
        width: size of a token and of the hidden state.
        heads: checked, otherwise without effect: the unit has no heads.
    """

    state_parts = 1
    cell = GRUCell()
    capability = Capability(
        source="Cho et al. 2014 (arXiv 1406.1078), section 2.3",
        differs="followed by an output projection",
        parallel="T d^2, token by token",
        step="d^2",
    )

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.network = nn.GRU(width, width, batch_first=True)

    def run_rows(self, rows: Rows, state: Tensor) -> tuple[Rows, Tensor]:
        """See `TorchRNN.run_rows`."""
        hidden, after = self.network(rows, state.unsqueeze(0))
        return hidden, after.squeeze(0)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixer.step`."""
        after = torch.gru_cell(x_t, state, *self.network.all_weights[0])
        return self.output(after), after
