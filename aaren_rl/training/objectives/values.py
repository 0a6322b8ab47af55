"""What value networks of objectives have in common: their layers, their inputs' unit, and what they learn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.ops.linear_recurrence import linear_recurrence

HIDDEN = 256
"""Hidden units of each layer of a value network."""

FOLLOW = 0.005
"""How far targets go to the trained weights after every update."""

TRUNK = "trunk"


def value_network(size: int) -> nn.Sequential:
    """Three layers from features (..., size) to a value (..., 1), with layer norms.

    Layer norms bound how far a value network extrapolates to what is not in the data (Ball et al. 2023, arXiv
    2302.02948, section 4.2).
    """
    layers = [nn.Linear(size, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU()]
    layers += [nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, 1))


def read_size(model: DecisionModel, reads: str) -> int:
    """Features of what a value network reads: of "observation", or of "trunk".

    Raises:
        InvalidInput: the trunk holds the return, which would tell the future.
    """
    if reads == TRUNK and model.config.return_token:
        raise InvalidInput(
            "a value network that reads the trunk would read the return that its tokens hold; pass --condition norm"
        )
    return model.config.width if reads == TRUNK else model.inputs.observation.size


def read(model: DecisionModel, reads: str, hidden: Tensor, segment: Segment) -> Tensor:
    """What a value network reads, (batch, time, features), without gradients; `hidden` is the trunk's."""
    if reads == TRUNK:
        return hidden.detach()
    return model.inputs.observation(segment.observations).detach()  # type: ignore[no-any-return]


def value_unit(model: DecisionModel, discount: float) -> Tensor:
    """Size of a value: that of a return, or of rewards without end where those are smaller."""
    return torch.minimum(model.inputs.reward_scale / (1 - discount), model.inputs.return_scale)


class ValueTargets(NamedTuple):
    """What value networks learn.

    Attributes:
        values: discounted rewards to the end of the segment, and the value there, (batch, time).
        learns: (batch, time) bool, the counted steps that have a value to learn from.
    """

    values: Tensor
    learns: Tensor


def values_to_end(segment: Segment, unit: Tensor, following: Tensor, discount: float) -> ValueTargets:
    """Discounted rewards up to the end of the segment and, where the episode goes on there, the value of its last step.

    An episode that terminates has no future; one that was cut off or is longer than the segment has. A segment's last
    step has nothing to learn from, unless its episode terminates there.

    Args:
        segment: with rewards and terminations.
        unit: what rewards are divided by.
        following: values of the steps, (batch, time), of which those at the ends of episodes' pieces are taken.
        discount: of a reward one step later.
    """
    assert segment.rewards is not None
    assert segment.terminated is not None
    valid = torch.ones_like(segment.terminated) if segment.valid is None else segment.valid
    counted = valid if segment.counted is None else segment.counted
    follows = F.pad(valid[:, 1:] & (segment.timesteps[:, 1:] > 0), (0, 1)) & valid
    # Hindsight goals terminate where they are reached, and the row goes on.
    goes_on = follows & ~segment.terminated
    cut = valid & ~follows & ~segment.terminated
    factor = discount * goes_on.to(following.dtype)
    summand = torch.where(cut, following, (segment.rewards / unit).to(following.dtype))
    backwards = linear_recurrence(factor.flip(1).unsqueeze(-1), summand.flip(1).unsqueeze(-1))
    return ValueTargets(backwards.squeeze(-1).flip(1), counted & ~cut)


@torch.no_grad()
def follow(slow: nn.Module, now: nn.Module) -> None:
    """Moves a target towards the trained weights."""
    for target, parameter in zip(slow.parameters(), now.parameters(), strict=True):
        target.lerp_(parameter, FOLLOW)
