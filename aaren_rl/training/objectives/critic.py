"""Imitation beside a critic, which is needed in training only."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.encoders import action_encoder
from aaren_rl.model.trunk import TrunkState
from aaren_rl.training.objectives import values
from aaren_rl.training.objectives.base import Loss, Objective, register_objective


class TwinCritic(nn.Module):
    """Two value networks Q(x, a).

    Args:
        size: features of what the critic reads and of an action together.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = values.value_network(size), values.value_network(size)

    def forward(self, features: Tensor) -> Tensor:
        """Both values of features (..., size), as (..., 2)."""
        return torch.cat([self.first(features), self.second(features)], -1)


@register_objective("critic")
class Critic(Objective):
    """Imitation, and actions that a critic values (Hu et al. 2024, "QT", arXiv 2405.17098, section 4).

    With the imitation loss L and the critic's values Q of the predicted actions, the model minimises ``L - weight *
    mean(Q) / mean|Q|``, so one weight serves rewards of any size (Fujimoto and Gu 2021, arXiv 2106.06860, section 5).
    The value of a step is the smaller one of two networks.

    The critic learns the discounted rewards up to the end of the segment and, where the episode goes on there, the
    target critic's value of the action that a slow copy of the model takes in the segment's last step (see
    `values.values_to_end`).

    Differences from Hu et al.: layer norms in the critic, no reward model of the return, the smaller value also for the
    model's own actions, and for the critic the learning rate, weight decay and clipping of the model.

    Args:
        model: the decision model to train, with continuous actions.
        weight: of the values against the imitation loss.
        discount: of a reward one step later.
        reads: what the critic sees: the "observation", or the "trunk", whose hidden vectors know the past. The critic
            does not train the trunk. Those hidden vectors may not hold the return, which would tell the future.

    Raises:
        InvalidInput: actions are not continuous, an option is out of range, or the trunk holds the return.
    """

    learns_from_later_steps = True

    def __init__(
        self,
        model: DecisionModel,
        weight: float = 1.0,
        discount: float = 0.99,
        reads: Literal["observation", "trunk"] = "observation",
    ) -> None:
        super().__init__(model)
        if not isinstance(model.action_space, Box):
            raise InvalidInput(f"the objective critic needs continuous actions; these are {model.action_space}")
        if not 0 <= weight < math.inf or not 0 <= discount < 1:
            raise InvalidInput(
                f"the objective critic has weight {weight} and discount {discount}; expected a weight from 0 on, and a "
                "discount from 0 up to but not 1"
            )
        self.weight, self.discount, self.reads = weight, discount, reads
        self.action = action_encoder(model.action_space)
        self.critic = TwinCritic(values.read_size(model, reads) + self.action.size)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_model = copy.deepcopy(model).eval().requires_grad_(False)

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """See `Objective.forward`."""
        assert segment.actions is not None
        hidden, after = self.model.hidden(segment, state)
        prediction = self.model.predict(hidden, segment)
        imitation = segment.mean_over_counted(prediction.loss(segment.actions))
        read = values.read(self.model, self.reads, hidden, segment)
        wanted, learns = self._targets(segment, state)
        valued = self.critic(self._features(read, segment.actions))  # (batch, time, 2)
        error = (valued.float() - wanted.unsqueeze(-1)).square().sum(-1)
        critic_loss = segment._replace(counted=learns).mean_over_counted(error)
        # The critic judges the model's actions, and does not learn from them.
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        judged = torch.func.functional_call(self.critic, frozen, (self._features(read, prediction.mode),))
        value = judged.float().amin(-1)  # (batch, time)
        mean = segment.mean_over_counted(value)
        size = segment.mean_over_counted(value.detach().abs()).clamp(min=1e-6)
        metrics = {"imitation_loss": imitation, "critic_loss": critic_loss, "value": mean}
        return self.result(imitation - self.weight * mean / size + critic_loss, metrics, hidden, segment, after)

    def after_update(self) -> None:
        """See `Objective.after_update`: targets follow."""
        values.follow(self.target_critic, self.critic)
        values.follow(self.target_model, self.model)

    def _features(self, read: Tensor, actions: Tensor) -> Tensor:
        """What a value network takes, of actions in the environment's units."""
        return torch.cat([read, self.action(actions).to(read.dtype)], -1)

    @torch.no_grad()
    def _targets(self, segment: Segment, state: TrunkState | None) -> values.ValueTargets:
        """What the critic learns."""
        hidden, _ = self.target_model.hidden(segment, state)
        read = values.read(self.target_model, self.reads, hidden, segment)
        action = self.target_model.predict(hidden, segment).mode
        following = self.target_critic(self._features(read, action)).float().amin(-1)  # (batch, time)
        unit = values.value_unit(self.model, self.discount)
        return values.values_to_end(segment, unit, following, self.discount)
