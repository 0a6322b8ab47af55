"""What an agent carries from step to step, for all rows of a batch, when it steps rows of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aaren_rl.cuda_graph import CudaGraph
from aaren_rl.data.packed import map_packed
from aaren_rl.data.spaces import Packed
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import state_bytes
from aaren_rl.model.inputs_stepper import ACTION, RETURN_TO_GO
from aaren_rl.stepping import ModelStepper

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

    def replace_action(self, action: Array) -> None:
        """Makes something else the last action of every row, (batch, *action shape) float32."""
        ...

    def step(self, observation: Packed, reward: Array, noise: Array | None = None) -> Array:
        """The next actions, packed, (batch, *action shape).

        Args:
            observation: packed, (batch, *observation shape) float32, or a dict where there are images.
            reward: of the last actions, float32, (batch,); 0 at the first step of an episode. It is taken off the
                return-to-go.
            noise: random numbers of sampled actions, (batch, noise size) float32; None for the most likely ones.
        """
        ...

    def save(self) -> tuple[Array, ...]:
        """A copy of all that is carried, arrays whose first dimension is the batch."""
        ...

    def restore(self, saved: tuple[Array, ...]) -> None:
        """Goes on from what `save` returned for as many rows.

        Raises:
            InvalidInput: it is not a state of this agent.
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


def like(kept: tuple[Array, ...], saved: tuple[Array, ...]) -> tuple[Array, ...]:
    """Copies of saved arrays, of the dtypes of those that are kept.

    Raises:
        InvalidInput: their number or a shape differs.
    """
    shapes, found = ([np.shape(part) for part in parts] for parts in (kept, saved))
    if shapes != found:
        raise InvalidInput(f"the state has arrays of shapes {found}; this agent carries {shapes}")
    return tuple(np.array(part, dtype=one.dtype) for part, one in zip(saved, kept, strict=True))


class Rows:
    """Steps a function of arrays, its state one row of numbers for each environment (see `ModelStepper`).

    Args:
        function: (observation, reward, state, noise) to (action, state); the state is float64.
        start: the row before an episode, (state size,).
        mixed: column at which the mixers' states start.
        rows: number of environments.
    """

    def __init__(
        self,
        function: Callable[[Any, Array, Array, Array | None], tuple[Array, Array]],
        start: Array,
        mixed: int,
        rows: int,
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

    def replace_action(self, action: Array) -> None:
        """See `ActingState.replace_action`."""
        self.state[:, ACTION : self.mixed] = action.reshape(len(action), -1)

    def step(self, observation: Packed, reward: Array, noise: Array | None = None) -> Array:
        """See `ActingState.step`."""
        action, self.state = self.function(observation, reward, self.state, noise)
        return action

    def save(self) -> tuple[Array, ...]:
        """See `ActingState.save`."""
        return (self.state.copy(),)

    def restore(self, saved: tuple[Array, ...]) -> None:
        """See `ActingState.restore`."""
        (self.state,) = like((self.state,), saved)

    @property
    def return_to_go(self) -> Array:
        """See `ActingState.return_to_go`."""
        return self.state[:, RETURN_TO_GO].copy()

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return self.state.nbytes


class OnDevice:
    """A state that lies on torch's device.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def to_device(self, array: Array) -> Tensor:
        """The array as a tensor on the device."""
        # A copy, since torch takes neither read-only arrays nor reversed ones.
        return torch.from_numpy(array.copy()).to(self.device)

    def _set_where(self, rows: Array, values: Tensor | Array, kept: Tensor) -> None:
        """Writes values, (batch, ...) or broadcast to it, into the rows of a tensor."""
        marked = self.to_device(rows).view(-1, *[1] * (kept.ndim - 1))
        given = values if isinstance(values, Tensor) else self.to_device(values)
        kept.copy_(torch.where(marked, given.to(kept.dtype), kept))


class DeviceRows(OnDevice):
    """Steps a `ModelStepper`, its rows of state on the model's device; on a GPU as a CUDA graph.

    Args:
        step: to be stepped.
        rows: number of environments.
        device: of the step.
        noise_size: random numbers of a sampled action; 0 for agents that do not sample.
    """

    def __init__(self, step: ModelStepper, rows: int, device: torch.device, noise_size: int = 0) -> None:
        super().__init__(device)
        self.module = step
        # Under inference mode they could not be written to outside of it.
        with torch.inference_mode(False):
            self.state = step.start.repeat(rows, 1)
            example = step.inputs.observation.examples(rows, torch.Generator())
            self.observation = map_packed(lambda part: torch.zeros_like(part, device=device), example)
            # As many random numbers as the head takes, of which a captured graph reads the buffer.
            self.noise = torch.zeros(rows, noise_size, device=device) if noise_size else None
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

    def replace_action(self, action: Array) -> None:
        """See `ActingState.replace_action`."""
        flat = action.reshape(len(action), -1)
        self._set_where(np.ones(len(action), dtype=np.bool_), flat, self.state[:, ACTION : self.module.mixed])

    def step(self, observation: Packed, reward: Array, noise: Array | None = None) -> Array:
        """See `ActingState.step`."""
        map_packed(lambda kept, now: kept.copy_(self.to_device(now)), self.observation, observation)
        if self.noise is not None:
            self.noise.copy_(torch.zeros_like(self.noise) if noise is None else self.to_device(noise))
        self.reward.copy_(self.to_device(reward))
        with torch.no_grad():
            acted: Array = self._forward().cpu().numpy()
        return acted

    def _do_step(self) -> Tensor:
        action, after = self.module(self.observation, self.reward, self.state, self.noise)
        self.state.copy_(after)
        return cast(Tensor, action)

    def save(self) -> tuple[Array, ...]:
        """See `ActingState.save`."""
        return (self.state.cpu().numpy().copy(),)

    def restore(self, saved: tuple[Array, ...]) -> None:
        """See `ActingState.restore`."""
        (rows,) = like(self.save(), saved)
        # In place: a captured graph reads this tensor.
        self.state.copy_(self.to_device(rows))

    @property
    def return_to_go(self) -> Array:
        """See `ActingState.return_to_go`."""
        found: Array = self.state[:, RETURN_TO_GO].cpu().numpy()
        return found.copy()

    @property
    def state_bytes(self) -> int:
        """See `ActingState.state_bytes`."""
        return state_bytes(self.state)
