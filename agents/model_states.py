"""What an agent carries from step to step when it runs the model itself: a growing state, or a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from aaren_rl.agents.acting import Acting
from aaren_rl.agents.states import Array, OnDevice
from aaren_rl.data.packed import arrays_of, map_packed
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Packed
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import State, state_bytes, state_tensors
from aaren_rl.mixers.base.state import rebuild_state
from aaren_rl.model import DecisionModel


class _Counted(OnDevice):
    """A state that runs a model on segments, and counts return-to-go and timestep itself.

    Args:
        model: to act with.
        rows: number of environments.
        device: of the model.
    """

    def __init__(self, model: DecisionModel, rows: int, device: torch.device) -> None:
        super().__init__(device)
        self.model = model
        self._return_to_go, self._timestep = np.zeros(rows), np.zeros(rows, dtype=np.int64)
        self._start_shapes: list[tuple[int, ...]] = []

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        self._timestep[rows] = 0
        self.ask(rows, target)

    def ask(self, rows: Array, target: Array) -> None:
        """See `ActingState.ask`."""
        self._return_to_go[rows] = target[rows]

    def save(self) -> tuple[Array, ...]:
        """See `ActingState.save`."""
        parts = (part.cpu().numpy().copy() for part in self._tensors())
        return (self._return_to_go.copy(), self._timestep.copy(), *parts)

    def restore(self, saved: tuple[Array, ...]) -> None:
        """See `ActingState.restore`."""
        start = [self._return_to_go.shape, self._timestep.shape, *self._start_shapes]
        found = [np.shape(part) for part in saved]
        # What grows has a length of 0 at the start.
        fits = len(found) == len(start) and all(
            len(one) == len(other) and all(b in (a, 0) for a, b in zip(one, other, strict=True))
            for one, other in zip(found, start, strict=True)
        )
        if not fits:
            raise InvalidInput(f"the state has arrays of shapes {found}; this agent begins with {start}")
        self._return_to_go, self._timestep = (np.array(part) for part in saved[:2])
        self._set_tensors([self.to_device(part) for part in saved[2:]])

    def _tensors(self) -> list[Tensor]:
        """All tensors that are carried; the first dimension of each is the batch."""
        raise NotImplementedError

    def _set_tensors(self, tensors: list[Tensor]) -> None:
        """Puts others in their place, in the same order."""
        raise NotImplementedError

    @property
    def return_to_go(self) -> Array:
        """See `ActingState.return_to_go`."""
        return self._return_to_go.copy()

    def _count(self, reward: Array) -> tuple[Tensor, Tensor]:
        """Return-to-go after the reward, and timestep, of the step that is acted on now, (batch,) each."""
        self._return_to_go = self._return_to_go - reward
        now = self._timestep.copy()
        self._timestep = self._timestep + 1
        with np.errstate(over="ignore"):  # What is beyond float32 is clipped inside the model.
            asked = self._return_to_go.astype(np.float32)
        return self.to_device(asked), self.to_device(now)


class GrowingState(_Counted):
    """Steps the model itself, whose state grows.

    Args:
        model: to act with.
        rows: number of environments.
        device: of the model.
    """

    def __init__(self, model: DecisionModel, rows: int, device: torch.device) -> None:
        super().__init__(model, rows, device)
        self.state: State = model.initial_state(rows)
        self.previous_action = torch.zeros(rows, *model.action_space.shape, device=device)
        self._start_shapes = [tuple(part.shape) for part in self._tensors()]

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        super().restart(rows, target)
        self.forget(rows)

    def forget(self, rows: Array) -> None:
        """See `ActingState.forget`."""
        self.state = self.model.reset_state(self.state, self.to_device(rows))

    def replace_action(self, action: Array) -> None:
        """See `ActingState.replace_action`."""
        self.previous_action = self.to_device(action)

    def step(self, observation: Packed, reward: Array, noise: Array | None = None) -> Array:
        """See `ActingState.step`."""
        return_to_go, timestep = self._count(reward)
        observed = map_packed(self.to_device, observation)
        now = Segment.of_one_step(observed, timestep, return_to_go, self.previous_action, self.to_device(reward))
        drawn = None if noise is None else self.to_device(noise)
        with torch.inference_mode():
            self.previous_action, self.state = self.model.step(now, self.state, drawn)
        return self.previous_action.cpu().numpy()

    def _tensors(self) -> list[Tensor]:
        return [self.previous_action, *state_tensors(self.state)]

    def _set_tensors(self, tensors: list[Tensor]) -> None:
        self.previous_action, *parts = tensors
        self.state = rebuild_state(self.state, iter(parts))

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return state_bytes(self.state)


class Window(_Counted):
    """Runs the last steps of each row through the whole model at every step.

    The state is the last steps, (rows, steps, ...), one more than the window for its previous action and reward. A
    step's action and reward are filled in once they are known.

    Args:
        model: to act with.
        rows: number of environments.
        device: of the model.
        acting: the window's steps, and whether it is closed.
    """

    def __init__(self, model: DecisionModel, rows: int, device: torch.device, acting: Acting) -> None:
        super().__init__(model, rows, device)
        self.steps, self.closed = acting.steps, acting.mode == "closed-window"
        example = model.inputs.observation.examples(rows, torch.Generator())
        self.kept: dict[str, Any] = {
            "observations": map_packed(lambda part: part.unsqueeze(1)[:, :0].to(device), example),
            "timesteps": torch.zeros(rows, 0, dtype=torch.long, device=device),
            "actions": torch.zeros(rows, 0, *model.action_space.shape, device=device),
            "rewards": torch.zeros(rows, 0, device=device),
            "returns_to_go": torch.zeros(rows, 0, device=device),
            "valid": torch.zeros(rows, 0, dtype=torch.bool, device=device),
        }
        self._start_shapes = [tuple(part.shape) for part in self._tensors()]

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        super().restart(rows, target)
        self.kept["valid"][self.to_device(rows)] = False

    def forget(self, rows: Array) -> None:
        """See `ActingState.forget`."""
        raise InvalidInput("a window forgets by itself")

    def replace_action(self, action: Array) -> None:
        """See `ActingState.replace_action`."""
        self.kept["actions"][:, -1] = self.to_device(action)

    def step(self, observation: Packed, reward: Array, noise: Array | None = None) -> Array:
        """See `ActingState.step`."""
        return_to_go, timestep = self._count(reward)
        if self.kept["rewards"].shape[1]:
            self.kept["rewards"][:, -1] = self.to_device(reward)
        now = {
            "observations": map_packed(self.to_device, observation),
            "timesteps": timestep,
            "actions": return_to_go.new_zeros(len(reward), *self.model.action_space.shape),
            "rewards": torch.zeros_like(return_to_go),
            "returns_to_go": return_to_go,
            "valid": torch.ones_like(timestep, dtype=torch.bool),
        }
        self.kept = {name: map_packed(self._appended, part, now[name]) for name, part in self.kept.items()}
        window = Segment(**self.kept).map(lambda part: part[:, -self.steps :])  # (rows, steps, ...)
        if self.kept["timesteps"].shape[1] > self.steps and not self.closed:
            actions, rewards = self.kept["actions"], self.kept["rewards"]
            window = window._replace(previous_action=actions[:, 0], previous_reward=rewards[:, 0])
        with torch.inference_mode():
            prediction = self.model.act(window)[0]
            if noise is None:
                acted = prediction.mode
            else:
                # The actions before are not drawn again: only the last one is taken.
                drawn = self.to_device(noise).unsqueeze(1).expand(-1, window.timesteps.shape[1], -1)
                acted = prediction.sampled(drawn)
        self.kept["actions"][:, -1] = acted[:, -1]
        return acted[:, -1].cpu().numpy()

    def _appended(self, kept: Tensor, now: Tensor) -> Tensor:
        return torch.cat([kept[:, -self.steps :], now.unsqueeze(1)], 1)

    def _tensors(self) -> list[Tensor]:
        return [part for kept in self.kept.values() for part in arrays_of(kept).values()]

    def _set_tensors(self, tensors: list[Tensor]) -> None:
        given = iter(tensors)
        self.kept = {name: map_packed(lambda _: next(given), kept) for name, kept in self.kept.items()}

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return state_bytes(self._tensors())
