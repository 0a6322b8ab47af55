"""The minimal long short-term memory, which trains in parallel over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.minimal_rnn import MinimalRNN
from aaren_rl.mixers.base.recurrent_stepper import Functions
from aaren_rl.mixers.base.registry import register


@register("minlstm")
class MinLSTM(MinimalRNN):
    """The minimal long short-term memory (Feng et al. 2024, arXiv 2410.01201, version 1, section 3.2).

    Its gates f = sigmoid(W_f x) and i = sigmoid(W_i x) are divided by their sum: ``h = f' * h + i' * g(W_h x)`` with
    f' + i' = 1. This is a `MinimalRNN` with z = i' = sigmoid(log i - log f). Memory: constant, h.

    Args:
        width: size of a token and of the state.
        heads: checked, otherwise without effect: the network has no heads.
    """

    capability = Capability(
        source="Feng et al. 2024 (arXiv 2410.01201), section 3.2",
        differs="followed by an output projection",
        parallel="T d, scan",
        step="d",
    )

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.forget = nn.Linear(width, width)
        self.input = nn.Linear(width, width)

    def gates(self) -> tuple[nn.Linear, ...]:
        """See `MinimalRNN.gates`."""
        return self.input, self.forget

    @staticmethod
    def logit(gates: Sequence[Any], functions: Functions) -> Any:
        """See `MinimalRNN.logit`."""
        return functions.log_sigmoid(gates[0]) - functions.log_sigmoid(gates[1])
