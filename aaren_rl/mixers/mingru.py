"""The minimal gated recurrent unit, which trains in parallel over time."""

from __future__ import annotations

from torch import Tensor, nn

from aaren_rl.mixers.base.contract import Capability
from aaren_rl.mixers.base.minimal_rnn import MinimalRecurrent
from aaren_rl.mixers.base.registry import register


@register("mingru")
class MinGRU(MinimalRecurrent):
    """The minimal gated recurrent unit (Feng et al. 2024, arXiv 2410.01201, section 3.1). Memory: constant, h.

    Its gate is ``z = sigmoid(W_z x)``.

    Args:
        width: size of a token and of the state.
        heads: checked as everywhere, otherwise without effect: the unit has no heads.
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

    def gate(self, x: Tensor) -> Tensor:
        """See `MinimalRecurrent.gate`."""
        return self.update(x)  # type: ignore[no-any-return]
