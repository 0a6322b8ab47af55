"""The input of models, losses and window acting: pieces of episodes in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from aaren_rl.data.packed import map_packed, shapes_of
from aaren_rl.data.spaces import Space
from aaren_rl.errors import InvalidInput

Observations: TypeAlias = Tensor | dict[str, Tensor]
"""Packed observations as tensors (`aaren_rl.data.spaces.Packed`)."""


class Segment(NamedTuple):
    """Consecutive steps of episodes, one piece in each row of a batch, in the environment's units.

    Rows may hold padding on either side, and several episodes one after another.

    Attributes:
        observations: (batch, time, *observation shape); where there are images, a dict of such tensors.
        timesteps: number of each step within its episode, (batch, time); 0 starts an episode.
        actions: (batch, time, *action shape); a prediction never sees the action of its step or a later one.
        rewards: of the actions, (batch, time).
        returns_to_go: what is asked for from each step on, (batch, time).
        valid: (batch, time) bool, False for padding; None for no padding.
        counted: (batch, time) bool, the valid steps that a loss is taken over; None for all.
        previous_action: the action before a row's first valid step, (batch, *action shape); None if unknown.
        previous_reward: the reward of that action, (batch,).
        terminated: (batch, time) bool, True if the action ended its episode in a final state.
        next_observations: the observation after each action, (batch, time, *observation shape); at the end of an
            episode the one that no action follows.
    """

    observations: Observations
    timesteps: Tensor
    actions: Tensor | None = None
    rewards: Tensor | None = None
    returns_to_go: Tensor | None = None
    valid: Tensor | None = None
    counted: Tensor | None = None
    previous_action: Tensor | None = None
    previous_reward: Tensor | None = None
    terminated: Tensor | None = None
    next_observations: Observations | None = None

    @classmethod
    def of_one_step(
        cls,
        observation: Observations,
        timestep: Tensor,
        return_to_go: Tensor | None = None,
        previous_action: Tensor | None = None,
        previous_reward: Tensor | None = None,
    ) -> Segment:
        """A segment of a single step in each row, as acting hands it to a model.

        Args:
            observation: (batch, *observation shape).
            timestep: (batch,).
            return_to_go: (batch,).
            previous_action: (batch, *action shape); ignored at timestep 0.
            previous_reward: (batch,); ignored at timestep 0.
        """
        return cls(
            map_packed(lambda part: part.unsqueeze(1), observation),
            timestep.unsqueeze(1),
            returns_to_go=None if return_to_go is None else return_to_go.unsqueeze(1),
            previous_action=previous_action,
            previous_reward=previous_reward,
        )

    @classmethod
    def stacked(cls, segments: Sequence[Segment]) -> Segment:
        """Segments of equal shapes and fields along a new first dimension."""
        fields = zip(cls._fields, zip(*segments, strict=True), strict=True)
        return cls(**{name: map_packed(_stack, *parts) for name, parts in fields if parts[0] is not None})

    def map(self, function: Callable[[Tensor], Tensor]) -> Segment:
        """The segment with a function applied to every tensor."""
        fields = {name: map_packed(function, part) for name, part in self._asdict().items() if part is not None}
        return Segment(**fields)

    def mean_over_counted(self, values: Tensor) -> Tensor:
        """Mean of (batch, time) values over the steps that a loss is taken over."""
        counted = self.valid if self.counted is None else self.counted
        if counted is None:
            return values.mean()
        return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)

    def check(self, observation_space: Space, action_space: Space) -> None:
        """Checks that all fields have the shapes of these spaces and of each other.

        Raises:
            InvalidInput: one has another shape, has a dimension of 0, a mask is not bool, or timesteps are no integers.
        """
        batch_time = tuple(self.timesteps.shape)
        batch, acted = batch_time[:1], action_space.shape
        observed = map_packed(lambda shape: (*batch_time, *shape), observation_space.packed_shapes())
        shapes: dict[str, Any] = {
            "observations": observed,
            "actions": (*batch_time, *acted),
            "previous_action": (*batch, *acted),
            "previous_reward": batch,
            "next_observations": observed,
        }
        if len(batch_time) != 2 or 0 in batch_time:
            raise InvalidInput(f"timesteps has shape {batch_time}; expected (batch, time), with no dimension of 0")
        for name, given in zip(self._fields, self, strict=True):
            shape = shapes.get(name, batch_time)
            if given is not None and (found := shapes_of(given, 0)) != shape:
                raise InvalidInput(f"{name} has shape {found}; expected {shape}")
        if self.timesteps.is_floating_point() or self.timesteps.dtype == torch.bool:
            raise InvalidInput(f"timesteps is {self.timesteps.dtype}; expected integers")
        for name in ("valid", "counted", "terminated"):
            mask = getattr(self, name)
            if mask is not None and mask.dtype != torch.bool:
                raise InvalidInput(f"{name} is {mask.dtype}; expected torch.bool")


def _stack(*parts: Tensor) -> Tensor:
    return torch.stack(parts)
