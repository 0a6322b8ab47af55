"""The minimal gated recurrent unit, which trains in parallel over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.minimal_rnn import MinimalRNN
from aaren_rl.mixers.base.recurrent_stepper import Functions
from aaren_rl.mixers.base.registry import register


@register("mingru")
class MinGRU(MinimalRNN):
    """The minimal gated recurrent unit (Feng et al. 2024, arXiv 2410.01201, section 3.1).

    A `MinimalRNN` with the gate ``z = sigmoid(W_z x)``. Memory: constant, h.

    Args:
        width: size of a token and of the state.
        heads: checked, otherwise without effect: the unit has no heads.
    """

    capability = Capability(
        source="Feng et al. 2024 (arXiv 2410.01201), section 3.1",
        differs="followed by an output projection",
        parallel="T d, scan",
        step="d",
    )

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.update = nn.Linear(width, width)

    def gates(self) -> tuple[nn.Linear, ...]:
        """See `MinimalRNN.gates`."""
        return (self.update,)

    @staticmethod
    def logit(gates: Sequence[Any], functions: Functions) -> Any:
        """See `MinimalRNN.logit`."""
        return gates[0]
