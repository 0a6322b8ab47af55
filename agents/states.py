"""What an agent carries from step to step, for all rows of a batch: one class for each way of stepping a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aaren_rl.cuda_graph import CudaGraph
from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import State, state_bytes
from aaren_rl.model import DecisionModel
from aaren_rl.model.inputs_stepper import RETURN_TO_GO
from aaren_rl.stepping import Step

Array: TypeAlias = npt.NDArray[Any]


class ActingState(Protocol):
    """The state of all rows of a batch; it owns the return-to-go of each."""

    def restart(self, rows: Array, target: Array) -> None:
        """Puts rows at the start of an episode.

        Args:
            rows: which, (batch,) bool.
            target: the return to ask for in each row, (batch,) float64.
        """
        ...

    def forget(self, rows: Array) -> None:
        """Empties what the mixers remember of the rows marked in `rows`, (batch,) bool, whose episodes go on."""
        ...

    def ask(self, rows: Array, target: Array) -> None:
        """Sets the return-to-go of rows in mid-episode, as it is before the next reward.

        Args:
            rows: which, (batch,) bool.
            target: in each row, (batch,) float64.
        """
        ...

    def step(self, observation: Array, reward: Array) -> Array:
        """The next actions, (batch, *action shape).

        Args:
            observation: float32, (batch, *observation shape).
            reward: of the last actions, float32, (batch,); 0 at the first step of an episode. It is taken off the
                return-to-go.
        """
        ...

    @property
    def return_to_go(self) -> Array:
        """What is still asked for in each row, (batch,) float64."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all rows."""
        ...


class Rows:
    """Steps a function of arrays, its state one row of numbers for each environment (see `aaren_rl.stepping.Step`).

    Args:
        function: (observation, reward, state) to (action, state); the state is float64.
        start: the row before an episode, (state size,).
        mixed: column at which the mixers' states start.
        rows: number of environments.
    """

    def __init__(
        self, function: Callable[[Array, Array, Array], tuple[Array, Array]], start: Array, mixed: int, rows: int
    ) -> None:
        self.function, self.start, self.mixed = function, start, mixed
        self.state = np.tile(start, (rows, 1))

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        self.state[rows] = self.start
        self.ask(rows, target)

    def forget(self, rows: Array) -> None:
        """See `ActingState.forget`."""
        self.state[rows, self.mixed :] = self.start[self.mixed :]

    def ask(self, rows: Array, target: Array) -> None:
        """See `ActingState.ask`."""
        self.state[rows, RETURN_TO_GO] = target[rows]

    def step(self, observation: Array, reward: Array) -> Array:
        """See `ActingState.step`."""
        action, self.state = self.function(observation, reward, self.state)
        return action

    @property
    def return_to_go(self) -> Array:
        """See `ActingState.return_to_go`."""
        return self.state[:, RETURN_TO_GO].copy()

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return self.state.nbytes


class _OnDevice:
    """A state that lies on torch's device.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def _to_device(self, array: Array) -> Tensor:
        # A copy, since torch takes neither read-only arrays nor reversed ones.
        return torch.from_numpy(array.copy()).to(self.device)

    def _set_where(self, rows: Array, values: Tensor | Array, kept: Tensor) -> None:
        """Writes values, (batch, ...) or broadcast to it, into the rows of a tensor."""
        marked = self._to_device(rows).view(-1, *[1] * (kept.ndim - 1))
        given = values if isinstance(values, Tensor) else self._to_device(values)
        kept.copy_(torch.where(marked, given.to(kept.dtype), kept))


class DeviceRows(_OnDevice):
    """Steps a `Step`, its rows of state on the model's device; on a GPU as a CUDA graph.

    Args:
        step: to be stepped.
        rows: number of environments.
        device: of the step.
    """

    def __init__(self, step: Step, rows: int, device: torch.device) -> None:
        super().__init__(device)
        self.module = step
        # Under inference mode they could not be written to outside of it.
        with torch.inference_mode(False):
            self.state = step.start.repeat(rows, 1)
            self.observation = torch.zeros(rows, *step.observation_space.shape, device=device)
            self.reward = torch.zeros(rows, device=device)
        self._forward = CudaGraph(self._do_step, [], device)

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        self._set_where(rows, self.module.start, self.state)
        self.ask(rows, target)

    def forget(self, rows: Array) -> None:
        """See `ActingState.forget`."""
        mixed = self.module.mixed
        self._set_where(rows, self.module.start[mixed:], self.state[:, mixed:])

    def ask(self, rows: Array, target: Array) -> None:
        """See `ActingState.ask`."""
        self._set_where(rows, target, self.state[:, RETURN_TO_GO])

    def step(self, observation: Array, reward: Array) -> Array:
        """See `ActingState.step`."""
        self.observation.copy_(self._to_device(observation))
        self.reward.copy_(self._to_device(reward))
        with torch.no_grad():
            acted: Array = self._forward().cpu().numpy()
        return acted

    def _do_step(self) -> Tensor:
        action, after = self.module(self.observation, self.reward, self.state)
        self.state.copy_(after)
        return cast(Tensor, action)

    @property
    def return_to_go(self) -> Array:
        """See `ActingState.return_to_go`."""
        found: Array = self.state[:, RETURN_TO_GO].cpu().numpy()
        return found.copy()

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return state_bytes(self.state)


class _Counted(_OnDevice):
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

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        self._timestep[rows] = 0
        self.ask(rows, target)

    def ask(self, rows: Array, target: Array) -> None:
        """See `ActingState.ask`."""
        self._return_to_go[rows] = target[rows]

    @property
    def return_to_go(self) -> Array:
        """See `ActingState.return_to_go`."""
        return self._return_to_go.copy()

    def _count(self, reward: Array) -> tuple[Tensor, Tensor]:
        """Return-to-go after the reward, and timestep, of the step that is acted on now, (batch,) each."""
        self._return_to_go = self._return_to_go - reward
        now = self._timestep.copy()
        self._timestep = self._timestep + 1
        return self._to_device(self._return_to_go.astype(np.float32)), self._to_device(now)


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

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        super().restart(rows, target)
        self.forget(rows)

    def forget(self, rows: Array) -> None:
        """See `ActingState.forget`."""
        self.state = self.model.reset_state(self.state, self._to_device(rows))

    def step(self, observation: Array, reward: Array) -> Array:
        """See `ActingState.step`."""
        return_to_go, timestep = self._count(reward)
        now = Segment.of_one_step(
            self._to_device(observation), timestep, return_to_go, self.previous_action, self._to_device(reward)
        )
        with torch.inference_mode():
            self.previous_action, self.state = self.model.step(now, self.state)
        return self.previous_action.cpu().numpy()

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
        steps: of the window.
    """

    def __init__(self, model: DecisionModel, rows: int, device: torch.device, steps: int) -> None:
        super().__init__(model, rows, device)
        self.steps = steps
        self.kept = {
            "observations": torch.zeros(rows, 0, *model.observation_space.shape, device=device),
            "timesteps": torch.zeros(rows, 0, dtype=torch.long, device=device),
            "actions": torch.zeros(rows, 0, *model.action_space.shape, device=device),
            "rewards": torch.zeros(rows, 0, device=device),
            "returns_to_go": torch.zeros(rows, 0, device=device),
            "valid": torch.zeros(rows, 0, dtype=torch.bool, device=device),
        }

    def restart(self, rows: Array, target: Array) -> None:
        """See `ActingState.restart`."""
        super().restart(rows, target)
        self.kept["valid"][self._to_device(rows)] = False

    def forget(self, rows: Array) -> None:
        """See `ActingState.forget`."""
        raise InvalidInput("a window forgets by itself")

    def step(self, observation: Array, reward: Array) -> Array:
        """See `ActingState.step`."""
        return_to_go, timestep = self._count(reward)
        if self.kept["rewards"].shape[1]:
            self.kept["rewards"][:, -1] = self._to_device(reward)
        now = {
            "observations": self._to_device(observation),
            "timesteps": timestep,
            "actions": return_to_go.new_zeros(len(reward), *self.model.action_space.shape),
            "rewards": torch.zeros_like(return_to_go),
            "returns_to_go": return_to_go,
            "valid": torch.ones_like(timestep, dtype=torch.bool),
        }
        self.kept = {
            name: torch.cat([part[:, -self.steps :], now[name].unsqueeze(1)], 1) for name, part in self.kept.items()
        }
        window = Segment(**{name: part[:, -self.steps :] for name, part in self.kept.items()})  # (rows, steps, ...)
        if self.kept["timesteps"].shape[1] > self.steps:
            actions, rewards = self.kept["actions"], self.kept["rewards"]
            window = window._replace(previous_action=actions[:, 0], previous_reward=rewards[:, 0])
        with torch.inference_mode():
            action = self.model(window)[0].mode[:, -1]
        self.kept["actions"][:, -1] = action
        return cast(Array, action.cpu().numpy())

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return state_bytes(list(self.kept.values()))
