"""Base of recurrent networks whose gates see the token alone, so that they train in parallel over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Mixer
from aaren_rl.mixers.base.recurrent_stepper import TORCH, Cell, Functions, RecurrentStepper, Terms
from aaren_rl.ops.linear_recurrence import linear_recurrence


class MinimalCell(Cell):
    """Equations of a minimal network; columns of its layer are those of the gates, then the candidate.

    Args:
        logit: `MinimalRNN.logit` of the network.
        gates: number of gates.
    """

    def __init__(self, logit: Callable[[Sequence[Any], Functions], Any], gates: int) -> None:
        self.logit, self.gates = logit, gates

    def prepare(self, rows: Any, functions: Functions) -> Terms:
        """See `Cell.prepare`; the terms are z and g of the candidate."""
        width = rows.shape[-1] // (self.gates + 1)
        *gates, candidate = (rows[..., i * width : (i + 1) * width] for i in range(self.gates + 1))
        above = functions.relu(candidate)
        return functions.sigmoid(self.logit(gates, functions)), above + functions.sigmoid(candidate - above)

    def advance(self, terms: Terms, product: Any, state: Terms, functions: Functions) -> Terms:
        """See `Cell.advance`."""
        (z, candidate), (h,) = terms, state
        return (h + z * (candidate - h),)


class MinimalRNN(Mixer):
    """A minimal recurrent network ("Were RNNs All We Needed?", Feng et al. 2024, arXiv 2410.01201) and a projection.

    Gates and candidates depend on the token alone. So ``h = (1 - z) * h + z * g(W_h x)`` is linear in the state, and
    all tokens are computed at once, without a loop. With ``g(x) = x + 0.5`` from 0 on and ``sigmoid(x)`` below, states
    are positive: the paper's log-space form (version 1, appendix B.3). The paper sums logarithms to compute it;
    `linear_recurrence` needs none.

    The state is h (batch, width), zero at the start of an episode. A subclass implements `gates`, which are linear
    layers of the token, and `logit`, the logit of z.

    Args:
        width: size of a token and of the state.
        heads: checked, otherwise without effect: the network has no heads.
    """

    memory = "constant"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.candidate = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def gates(self) -> tuple[nn.Linear, ...]:
        """Layers of the gates."""
        raise NotImplementedError

    @staticmethod
    def logit(gates: Sequence[Any], functions: Functions) -> Any:
        """Logit of z, the weight of the candidate.

        Args:
            gates: outputs of the layers of `gates`, (..., width) each, tensors or arrays.
            functions: of the library of the gates.

        Returns:
            (..., width).
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (batch, width)."""
        return self.output.weight.new_zeros(batch_size, self.width)

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer.forward`; the state is h, (batch, width)."""
        kept, added = self._terms(x)
        if valid is not None:
            # Padding is the identity.
            kept = kept.masked_fill(~valid.unsqueeze(-1), 1.0)
            added = added.masked_fill(~valid.unsqueeze(-1), 0.0)
        if reset is not None:
            kept = kept.masked_fill(reset.unsqueeze(-1), 0.0)
        if state is not None:
            # The state enters as one more token, which keeps nothing.
            kept, added = F.pad(kept, (0, 0, 1, 0)), torch.cat([state.unsqueeze(1).to(added), added], 1)
        h = linear_recurrence(kept, added)[:, 0 if state is None else 1 :]
        return self.output(h.to(x.dtype)), h[:, -1]

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mixer.step`."""
        kept, added = self._terms(x_t)
        h = torch.addcmul(added, kept, state)
        return self.output(h.to(x_t.dtype)), h

    def stepper(self, norm: nn.LayerNorm, tokens: int, outputs: int) -> RecurrentStepper:
        """See `Mixer.stepper`."""
        layers = *self.gates(), self.candidate
        layer = torch.cat([part.weight for part in layers]), torch.cat([part.bias for part in layers])
        cell = MinimalCell(self.logit, len(layers) - 1)
        return RecurrentStepper(cell, layer, None, self.output, 1, tokens, outputs)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the state that each token keeps, and what it adds, in float32 at least; like the tokens."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        logit = self.logit([layer(x) for layer in self.gates()], TORCH)
        z, candidate = logit.to(dtype).sigmoid(), self.candidate(x).to(dtype)
        return 1 - z, z * torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
