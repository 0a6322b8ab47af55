"""The minimal long short-term memory, which trains in parallel over time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.minimal_rnn import MinimalRNN
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

    def gate(self, x: Tensor) -> Tensor:
        """See `MinimalRNN.gate`."""
        return F.logsigmoid(self.input(x)) - F.logsigmoid(self.forget(x))
