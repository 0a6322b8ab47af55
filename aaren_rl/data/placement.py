"""Where steps stand in their episodes, on the device where segments are cut."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aaren_rl.data.trajectories import Trajectories


class Ends:
    """Which episode a step belongs to, and where that ends; of the size of the episodes, not of the steps.

    Args:
        trajectories: the data.
        device: of the steps that are asked for.
    """

    def __init__(self, trajectories: Trajectories, device: torch.device) -> None:
        self._ends = tensor_of(trajectories.offsets[1:], device)
        self._terminated = tensor_of(trajectories.terminated, device)
        self.steps = trajectories.steps

    def episode_of(self, steps: Tensor) -> Tensor:
        """The episode of each step, counted from 0 over all data."""
        return torch.searchsorted(self._ends, steps, right=True)

    def end_of(self, steps: Tensor) -> Tensor:
        """The step after the last one of each step's episode."""
        return self._ends[self.episode_of(steps)]

    def terminated(self, steps: Tensor) -> Tensor:
        """True for steps that end their episode in a final state."""
        episode = self.episode_of(steps)
        return (steps + 1 == self._ends[episode]) & self._terminated[episode]


class Stream:
    """Episodes one after another, in any order.

    Args:
        starts: first step of each episode, in the stream's order.
        lengths: steps of each.
        device: of the places that are asked for.
    """

    def __init__(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], device: torch.device) -> None:
        ends = np.cumsum(lengths)
        self._ends = tensor_of(ends, device)
        # What is to be added to a place in the stream for the step, and for the timestep.
        self._to_step, self._to_timestep = (
            tensor_of(starts - (ends - lengths), device),
            tensor_of(lengths - ends, device),
        )

    def at(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """The steps at places in the stream, as numbers of the packed arrays and within their episodes."""
        episode = torch.searchsorted(self._ends, place, right=True)
        return place + self._to_step[episode], place + self._to_timestep[episode]


def tensor_of(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor, which shares its memory or its file on a CPU; nothing writes into it."""
    with warnings.catch_warnings():
        # torch has no tensors that cannot be written.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(array, device=device)
