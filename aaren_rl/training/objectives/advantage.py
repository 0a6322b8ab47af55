"""Imitation weighted by how much better actions turned out than expected."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor

from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.trunk import TrunkState
from aaren_rl.training.objectives import values
from aaren_rl.training.objectives.base import Loss, Objective, register_objective

LARGEST_WEIGHT = 100.0
"""Of a step, as in Kostrikov et al. 2022 (arXiv 2110.06169), appendix B."""


@register_objective("advantage")
class Advantage(Objective):
    """Imitation with the weight ``exp(A / (temperature * mean|A|))`` for a step of advantage A.

    This is advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177, section 3) with the expectile of
    Kostrikov et al. 2022 (arXiv 2110.06169, section 4.1). The advantage is what a step's rewards and the value at the
    segment's end come to (`values.values_to_end`) beyond the value of the step. It fits every action space, since no
    action is valued that is not in the data.

    Differences from both: advantages relative to their mean size in the batch, so that one temperature serves rewards
    of any size; values of states alone; layer norms.

    Args:
        model: the decision model to train.
        temperature: weights differ more where it is lower.
        expectile: of the outcomes that a value stands for: 0.5 for their mean, above for better ones.
        discount: of a reward one step later.
        reads: what values are of: the "observation", or the "trunk", as for the critic.

    Raises:
        InvalidInput: an option is out of range, or the trunk holds the return.
    """

    learns_from_later_steps = True

    def __init__(
        self,
        model: DecisionModel,
        temperature: float = 1.0,
        expectile: float = 0.7,
        discount: float = 0.99,
        reads: Literal["observation", "trunk"] = "observation",
    ) -> None:
        super().__init__(model)
        if not 0 < temperature < math.inf or not 0 < expectile < 1 or not 0 <= discount < 1:
            raise InvalidInput(
                f"the objective advantage has temperature {temperature}, expectile {expectile} and discount "
                f"{discount}; expected a temperature above 0, an expectile between 0 and 1, and a discount from 0 up "
                "to but not 1"
            )
        self.temperature, self.expectile, self.discount, self.reads = temperature, expectile, discount, reads
        self.value = values.value_network(values.read_size(model, reads))
        self.target = copy.deepcopy(self.value).requires_grad_(False)

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """See `Objective.forward`."""
        assert segment.actions is not None
        hidden, after = self.model.hidden(segment, state)
        read = values.read(self.model, self.reads, hidden, segment)
        unit = values.value_unit(self.model, self.discount)
        with torch.no_grad():
            following = self.target(read).squeeze(-1).float()
        wanted, learns = values.values_to_end(segment, unit, following, self.discount)
        learning = segment._replace(counted=learns)
        error = wanted - self.value(read).squeeze(-1).float()  # (batch, time)
        share = torch.where(error > 0, self.expectile, 1 - self.expectile)
        value_loss = learning.mean_over_counted(share * error.square())
        weight = self._weights(error.detach(), learning)
        imitation = self.model.predict(hidden, segment).loss(segment.actions)
        metrics = {
            "imitation_loss": segment.mean_over_counted(imitation),
            "value_loss": value_loss,
            "largest_weight": torch.where(learns, weight, 0.0).amax(),
        }
        loss = learning.mean_over_counted(weight * imitation) + value_loss
        return self.result(loss, metrics, hidden, segment, after)

    def after_update(self) -> None:
        """See `Objective.after_update`: the target follows."""
        values.follow(self.target, self.value)

    def _weights(self, advantage: Tensor, learning: Segment) -> Tensor:
        """Weights of the steps, (batch, time), with a mean of 1 over those that learn."""
        size = learning.mean_over_counted(advantage.abs()).clamp(min=1e-6)
        weight = torch.exp(advantage / (self.temperature * size)).clamp(max=LARGEST_WEIGHT)
        return weight / learning.mean_over_counted(weight).clamp(min=1e-6)
