"""Imitation beside a critic, which is needed in training only."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Box
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.encoders import action_encoder
from aaren_rl.model.trunk import TrunkState
from aaren_rl.ops.linear_recurrence import linear_recurrence
from aaren_rl.training.objectives.base import Loss, Objective, register_objective

HIDDEN = 256
"""Hidden units of each layer of a critic."""

FOLLOW = 0.005
"""How far targets go to the trained weights after every update."""

TRUNK, OBSERVATION = "trunk", "observation"


class TwinCritic(nn.Module):
    """Two value networks Q(x, a) of three layers, with layer norms (Ball et al. 2023, arXiv 2302.02948, section 4.2).

    Layer norms bound how far a value network extrapolates to actions that are not in the data.

    Args:
        size: features of what the critic reads and of an action together.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = _value_network(size), _value_network(size)

    def forward(self, features: Tensor) -> Tensor:
        """Both values of features (..., size), as (..., 2)."""
        return torch.cat([self.first(features), self.second(features)], -1)


def _value_network(size: int) -> nn.Sequential:
    layers = [nn.Linear(size, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU()]
    layers += [nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, 1))


@register_objective("critic")
class Critic(Objective):
    """Imitation, and actions that a critic values (Hu et al. 2024, "QT", arXiv 2405.17098, section 4).

    With the imitation loss L and the critic's values Q of the predicted actions, the model minimises ``L - weight *
    mean(Q) / mean|Q|``, so one weight serves rewards of any size (Fujimoto and Gu 2021, arXiv 2106.06860, section 5).
    The value of a step is the smaller one of two networks.

    The critic learns the discounted rewards up to the end of the segment and, where the episode goes on there, the
    target critic's value of the action that a slow copy of the model takes in the segment's last step. An episode that
    terminates has no future; one that was cut off or is longer than the segment has. A segment's last step has nothing
    to learn from, unless its episode terminates there.

    Differences from Hu et al.: layer norms in the critic, no reward model of the return, the smaller value also for the
    model's own actions.

    Args:
        model: the decision model to train, with continuous actions.
        weight: of the values against the imitation loss.
        discount: of a reward one step later.
        reads: what the critic sees: the "observation", or the "trunk", whose hidden vectors know the past. The critic
            does not train the trunk. Those hidden vectors may not hold the return, which would tell the future.

    Raises:
        InvalidInput: actions are not continuous, an option is out of range, or the trunk holds the return.
    """

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
        if not weight >= 0 or not 0 <= discount < 1:
            raise InvalidInput(
                f"the objective critic has weight {weight} and discount {discount}; expected a weight from 0 on, and a "
                "discount from 0 up to but not 1"
            )
        if reads == TRUNK and model.config.return_token:
            raise InvalidInput(
                "a critic that reads the trunk would read the return that its tokens hold; pass --condition norm"
            )
        self.weight, self.discount, self.reads = weight, discount, reads
        self.action = action_encoder(model.action_space)
        size = model.config.width if reads == TRUNK else model.inputs.observation.size
        self.critic = TwinCritic(size + self.action.size)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_model = copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def unit(self) -> Tensor:
        """Size of a value: that of a return, or of rewards without end where those are smaller."""
        inputs = self.model.inputs
        return torch.minimum(inputs.reward_scale / (1 - self.discount), inputs.return_scale)

    def forward(self, segment: Segment, state: TrunkState | None = None) -> Loss:
        """See `Objective.forward`."""
        assert segment.actions is not None
        hidden, after = self.model.hidden(segment, state)
        prediction = self.model.predict(hidden, segment)
        imitation = segment.mean_over_counted(prediction.loss(segment.actions))
        read = self._read(hidden.detach(), segment)
        wanted, learns = self._wanted(segment, state)
        values = self.critic(self._features(read, segment.actions))  # (batch, time, 2)
        error = (values.float() - wanted.unsqueeze(-1)).square().sum(-1)
        critic_loss = segment._replace(counted=learns).mean_over_counted(error)
        # The critic judges the model's actions, and does not learn from them.
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        judged = torch.func.functional_call(self.critic, frozen, (self._features(read, prediction.mode),))
        value = judged.float().amin(-1)  # (batch, time)
        mean = segment.mean_over_counted(value)
        size = segment.mean_over_counted(value.detach().abs()).clamp(min=1e-6)
        metrics = {"imitation_loss": imitation, "critic_loss": critic_loss, "value": mean}
        return Loss(imitation - self.weight * mean / size + critic_loss, metrics, after)

    @torch.no_grad()
    def after_update(self) -> None:
        """See `Objective.after_update`: targets follow."""
        for slow, now in ((self.target_critic, self.critic), (self.target_model, self.model)):
            for target, parameter in zip(slow.parameters(), now.parameters(), strict=True):
                target.lerp_(parameter, FOLLOW)

    def _read(self, hidden: Tensor, segment: Segment) -> Tensor:
        """What the critic reads beside the action, (batch, time, features), without gradients."""
        if self.reads == TRUNK:
            return hidden
        return self.model.inputs.observation(segment.observations).detach()  # type: ignore[no-any-return]

    def _features(self, read: Tensor, actions: Tensor) -> Tensor:
        """What a value network takes, of actions in the environment's units."""
        return torch.cat([read, self.action(actions).to(read.dtype)], -1)

    @torch.no_grad()
    def _wanted(self, segment: Segment, state: TrunkState | None) -> tuple[Tensor, Tensor]:
        """The values to learn, (batch, time), and whether a step has one, bool."""
        assert segment.rewards is not None
        assert segment.terminated is not None
        valid = torch.ones_like(segment.terminated) if segment.valid is None else segment.valid
        counted = valid if segment.counted is None else segment.counted
        goes_on = F.pad(valid[:, 1:] & (segment.timesteps[:, 1:] > 0), (0, 1)) & valid
        cut = valid & ~goes_on & ~segment.terminated
        hidden, _ = self.target_model.hidden(segment, state)
        read = self._read(hidden, segment)
        action = self.target_model.predict(hidden, segment).mode
        following = self.target_critic(self._features(read, action)).float().amin(-1)  # (batch, time)
        rewards = (segment.rewards / self.unit).to(following.dtype)
        factor = self.discount * goes_on.to(following.dtype)
        summand = torch.where(cut, following, rewards)
        backwards = linear_recurrence(factor.flip(1).unsqueeze(-1), summand.flip(1).unsqueeze(-1))
        return backwards.squeeze(-1).flip(1), counted & ~cut
