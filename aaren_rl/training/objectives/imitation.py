"""Imitation of the data's actions."""

from __future__ import annotations

from aaren_rl.data.segment import Segment
from aaren_rl.model.trunk import TrunkState
from aaren_rl.training.objectives.base import Loss, Objective, register_objective


@register_objective("imitation")
class Imitation(Objective):
    """The head's loss on the actions of the data (Chen et al. 2021, arXiv 2106.01345, section 3)."""

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """See `Objective.forward`."""
        hidden, after = self.model.hidden(segment, state)
        return self.result(self.model.head_loss(hidden, segment), {}, hidden, segment, after)
