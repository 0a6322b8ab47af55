"""Training batches drawn from trajectories that lie on the training device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aaren_rl.errors import InvalidInput
from aaren_rl.trajectories import Trajectories

Weighting = Literal["length", "uniform"]


class Batch(NamedTuple):
    """Segments of episodes, in raw units; the fields are the arguments of `DecisionModel.loss`.

    Attributes:
        states: (batch, time, observation size).
        actions: (batch, time, action size).
        returns_to_go: (batch, time).
        timesteps: (batch, time).
        previous_action: (batch, action size); zero where the segment starts its episode.
        valid: (batch, time) bool; padding is on the right, and zero.
    """

    states: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    previous_action: Tensor
    valid: Tensor


class Sampler:
    """Draws batches by index, without a Python loop over samples.

    A window starts at any step of its episode with the same probability and ends with the episode at the latest, so
    every step, the last one included, is trained on.

    Args:
        trajectories: where from.
        episodes: numbers of the episodes to use, (n,).
        batch_size: segments in a batch.
        context: steps in a segment; None for whole episodes.
        weighting: choose episodes in proportion to their length, or all alike.
        device: where the data lie and the batches appear.
        seed: of the sampler's own random numbers.

    Raises:
        InvalidInput: no episodes, or a size below 1.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        episodes: np.ndarray,
        batch_size: int,
        context: int | None,
        weighting: Weighting = "length",
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if len(episodes) == 0 or batch_size < 1 or (context is not None and context < 1):
            raise InvalidInput(
                f"{len(episodes)} episodes, batches of {batch_size}, context {context}; expected at least 1 of each"
            )
        self.batch_size, self.context, self.weighting = batch_size, context, weighting
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        # Steps that whole episodes are padded to; None for the longest one drawn.
        self.pad_to: int | None = None

        def on_device(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, device=self.device)

        self._observations = on_device(trajectories.observations)
        self._actions = on_device(trajectories.actions)
        self._returns_to_go = on_device(trajectories.returns_to_go)
        self._choose(trajectories, episodes)

    def over(self, trajectories: Trajectories, episodes: np.ndarray) -> Sampler:
        """A sampler of other episodes of the same trajectories, which shares this one's data on the device."""
        other = copy.copy(self)
        other.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        other._choose(trajectories, episodes)
        return other

    def _choose(self, trajectories: Trajectories, episodes: np.ndarray) -> None:
        self._starts = torch.as_tensor(trajectories.offsets[:-1][episodes], device=self.device)
        self._lengths = torch.as_tensor(trajectories.lengths[episodes], device=self.device)
        self._cumulative = self._lengths.cumsum(0)
        self._total = int(self._cumulative[-1])
        self.longest = int(self._lengths.max())

    @property
    def mean_length(self) -> float:
        """Mean number of steps of the episodes."""
        return self._total / len(self._lengths)

    def sample(self) -> Batch:
        """The next random batch."""
        if self.weighting == "length":
            step = self._random(torch.full((self.batch_size,), self._total, device=self.device))
            episode = torch.searchsorted(self._cumulative, step, right=True)
        else:
            episode = self._random(torch.full((self.batch_size,), len(self._lengths), device=self.device))
        if self.context is None:
            longest = self.pad_to or int(self._lengths[episode].max())
            return self._gather(episode, torch.zeros_like(episode), longest)
        return self._gather(episode, self._random(self._lengths[episode]), self.context)

    def sweep(self, steps: int) -> Iterator[Batch]:
        """Segments of about `steps` steps in all, spread evenly over the episodes, none twice; the same each time."""
        stride = self.context or self.longest
        pieces = (self._lengths + stride - 1) // stride
        episode = torch.repeat_interleave(torch.arange(len(pieces), device=self.device), pieces)
        piece = torch.arange(len(episode), device=self.device) - (pieces.cumsum(0) - pieces)[episode]
        wanted = min(len(episode), max(1, math.ceil(len(episode) * steps / self._total)))
        # Spread over all episodes, not the first ones only.
        chosen = torch.linspace(0, len(episode) - 1, wanted, device=self.device).round().long()
        for rows in torch.split(chosen, self.batch_size):
            yield self._gather(episode[rows], piece[rows] * stride, stride)

    def _random(self, below: Tensor) -> Tensor:
        """Random integers from 0 up to, not including, each element of `below`."""
        drawn = torch.rand(below.shape, generator=self.generator, device=self.device, dtype=torch.float64)
        return (drawn * below).long()

    def _gather(self, episode: Tensor, start: Tensor, time: int) -> Batch:
        timesteps = start.unsqueeze(1) + torch.arange(time, device=self.device)
        length = self._lengths[episode].unsqueeze(1)
        valid = timesteps < length
        timesteps = timesteps.clamp(max=length - 1)
        steps = self._starts[episode].unsqueeze(1) + timesteps
        previous = self._actions[(steps[:, 0] - 1).clamp(min=0)]
        return Batch(
            self._observations[steps].masked_fill(~valid.unsqueeze(-1), 0.0),
            self._actions[steps].masked_fill(~valid.unsqueeze(-1), 0.0),
            self._returns_to_go[steps].masked_fill(~valid, 0.0),
            timesteps,
            previous.masked_fill((start == 0).unsqueeze(-1), 0.0),
            valid,
        )


def hold_out(episodes: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits episodes at random into those to train on and those held out for the validation loss.

    Args:
        episodes: how many there are.
        fraction: share to hold out, from 0 up to 1; with more than one episode and a positive share at least one of
            each.
        seed: of the split.

    Returns:
        Numbers of the training and of the held-out episodes, both sorted; none is held out of a single episode.

    Raises:
        InvalidInput: the fraction is not from 0 up to 1.
    """
    if not 0 <= fraction < 1:
        raise InvalidInput(f"held-out fraction {fraction}; expected a number from 0 up to but not 1")
    held = 0 if fraction == 0 or episodes == 1 else min(max(1, round(episodes * fraction)), episodes - 1)
    order = np.random.default_rng(seed).permutation(episodes)
    return np.sort(order[held:]), np.sort(order[:held])
