"""Training batches drawn from trajectories that lie on the training device."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import InvalidInput

Weighting = Literal["length", "uniform"]


@dataclass(frozen=True)
class Context:
    """What of its episode a model is trained on at once.

    Attributes:
        kind: "window" is some consecutive steps of an episode (Chen et al. 2021); "episode" whole episodes, one in a
            row; "packed" whole episodes, as many in a row as fit, with resets between them; "carry" the next steps of
            an endless row of episodes, from the state that the steps before left, which is not differentiated through
            (truncated backpropagation through time; Williams and Peng 1990).
        steps: of a segment, for "window" and "carry".
        burn_in: steps before a window that only fill the state, and on which no loss is taken (Kapturowski et al. 2019,
            "R2D2"; unlike there, gradients flow through them).
    """

    kind: Literal["window", "episode", "packed", "carry"]
    steps: int = 0
    burn_in: int = 0

    @classmethod
    def parse(cls, written: int | str) -> Context:
        """From its written form: 20, "10+20" (a burn-in of 10 before 20), "episode", "packed" or "carry:20".

        Raises:
            InvalidInput: it is none of these.
        """
        text = str(written)
        if text in ("episode", "packed"):
            return cls("episode" if text == "episode" else "packed")
        if found := re.fullmatch(r"carry:([1-9]\d*)", text):
            return cls("carry", int(found[1]))
        if found := re.fullmatch(r"(?:([1-9]\d*)\+)?([1-9]\d*)", text):
            return cls("window", int(found[2]), int(found[1] or 0))
        raise InvalidInput(
            f'context is {written!r}; expected steps of a window (20), with a burn-in before it ("10+20"), "episode", '
            '"packed", or "carry:STEPS"'
        )


class Batch(NamedTuple):
    """Segments of episodes, in raw units; the fields are the arguments of `DecisionModel.loss`.

    Attributes:
        states: (batch, time, observation size).
        actions: (batch, time, action size).
        returns_to_go: (batch, time).
        timesteps: (batch, time).
        previous_action: (batch, action size); zero where the segment starts its episode.
        valid: (batch, time) bool; padding is on the right, and zero.
        rewards: (batch, time).
        previous_reward: (batch,); zero where the segment starts its episode.
        counted: (batch, time) bool, the valid steps that the loss is taken on.
    """

    states: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    previous_action: Tensor
    valid: Tensor
    rewards: Tensor
    previous_reward: Tensor
    counted: Tensor


class Sampler:
    """Draws batches by index, without a Python loop over samples.

    A window starts at any step of its episode with the same probability and ends with the episode at the latest, so
    every step, the last one included, is trained on. Packed rows are put together once: what shares a row makes no
    difference, since resets part it.

    Args:
        trajectories: where from.
        episodes: numbers of the episodes to use, (n,).
        batch_size: segments in a batch.
        context: what a segment is, as `Context.parse` takes it.
        weighting: choose the episodes of windows, or those to train on whole, in proportion to their length, or all
            alike; packed rows and carried segments take all episodes alike, and know no other weighting.
        device: where the data lie and the batches appear.
        seed: of the sampler's own random numbers.

    Raises:
        InvalidInput: no episodes, fewer than rows that carry a state, a size below 1, or a context that is not
            understood.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        episodes: np.ndarray,
        batch_size: int,
        context: int | str = 20,
        weighting: Weighting = "length",
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if len(episodes) == 0 or batch_size < 1:
            raise InvalidInput(f"{len(episodes)} episodes, batches of {batch_size}; expected at least 1 of each")
        self.batch_size, self.context, self.weighting = batch_size, Context.parse(context), weighting
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        # Steps that whole episodes are padded to; None for the longest one drawn.
        self.pad_to: int | None = None
        self._observations = self._there(trajectories.observations)
        self._actions = self._there(trajectories.actions)
        self._rewards = self._there(trajectories.rewards)
        self._returns_to_go = self._there(trajectories.returns_to_go)
        self._choose(trajectories, episodes)

    def over(self, trajectories: Trajectories, episodes: np.ndarray) -> Sampler:
        """One to sweep over other episodes of the same trajectories, which shares this one's data on the device."""
        other = copy.copy(self)
        if self.context.kind != "window":
            other.context = Context("episode")
        other.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        other._choose(trajectories, episodes)
        return other

    def _there(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _choose(self, trajectories: Trajectories, episodes: np.ndarray) -> None:
        starts, lengths = trajectories.offsets[:-1][episodes], trajectories.lengths[episodes]
        self._starts, self._lengths = self._there(starts), self._there(lengths)
        self._cumulative = self._lengths.cumsum(0)
        self._total = int(self._cumulative[-1])
        self.longest = int(self._lengths.max())
        order = np.random.default_rng(self.generator.initial_seed()).permutation(len(episodes))
        if self.context.kind == "packed":
            # As wide as the longest episode of all, so that samplers of different episodes have rows of one shape.
            size = int(trajectories.lengths.max())
            rows = _packed(lengths[order], size)
            steps, timesteps = np.zeros((2, len(rows), size), np.int64)
            valid = np.zeros((len(rows), size), np.bool_)
            for row, places in enumerate(rows):
                own, within = _laid_out(starts[order[places]], lengths[order[places]])
                steps[row, : len(own)], timesteps[row, : len(own)], valid[row, : len(own)] = own, within, True
            self._rows = self._there(steps), self._there(timesteps), self._there(valid)
        elif self.context.kind == "carry":
            stream, within = _laid_out(starts[order], lengths[order])
            self._stream = self._there(stream), self._there(within)
            if len(order) < self.batch_size:
                raise InvalidInput(
                    f"batches of {self.batch_size} segments that carry a state, and {len(order)} episodes to start "
                    f"them with; expected a batch size of at most {len(order)}"
                )
            # Each row of the batch starts with an episode of its own, so that no state is missing, nothing comes twice.
            begins = np.flatnonzero(within == 0)
            self.cursor = self._there(begins[np.arange(self.batch_size) * len(begins) // self.batch_size])

    @property
    def steps_per_segment(self) -> float:
        """Mean number of steps that one segment is trained on."""
        if self.context.kind == "episode":
            return self._total / len(self._lengths)
        return self._total / len(self._rows[0]) if self.context.kind == "packed" else float(self.context.steps)

    @property
    def longest_segment(self) -> int:
        """Steps of the longest segment that can come."""
        if self.context.kind == "packed":
            return self._rows[0].shape[1]
        return self.longest if self.context.kind == "episode" else self.context.burn_in + self.context.steps

    def sample(self) -> Batch:
        """The next random batch; for "carry" the segments that follow those of the last one."""
        if self.context.kind == "packed":
            steps, timesteps, valid = self._rows
            row = self._random(torch.full((self.batch_size,), len(steps), device=self.device))
            return self._take(steps[row], timesteps[row], valid[row])
        if self.context.kind == "carry":
            steps, timesteps = self._stream
            place = (self.cursor.unsqueeze(1) + torch.arange(self.context.steps, device=self.device)) % self._total
            self.cursor.copy_((self.cursor + self.context.steps) % self._total)
            return self._take(steps[place], timesteps[place], torch.ones_like(place, dtype=torch.bool))
        if self.weighting == "length":
            step = self._random(torch.full((self.batch_size,), self._total, device=self.device))
            episode = torch.searchsorted(self._cumulative, step, right=True)
        else:
            episode = self._random(torch.full((self.batch_size,), len(self._lengths), device=self.device))
        if self.context.kind == "episode":
            longest = self.pad_to or int(self._lengths[episode].max())
            return self._gather(episode, torch.zeros_like(episode), longest)
        return self._gather(episode, self._random(self._lengths[episode]), self.context.steps)

    def sweep(self, steps: int) -> Iterator[Batch]:
        """Windows or whole episodes of about `steps` steps in all, spread evenly, none twice; the same each time."""
        stride = self.context.steps if self.context.kind == "window" else self.longest
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
        """Windows of so many steps, with what there is of the burn-in before them."""
        start, length = start.unsqueeze(1), self._lengths[episode].unsqueeze(1)
        begin = (start - self.context.burn_in).clamp(min=0)
        timesteps = begin + torch.arange(self.context.burn_in + time, device=self.device)
        valid = timesteps < torch.minimum(length, start + time)
        timesteps = timesteps.clamp(max=length - 1)
        return self._take(self._starts[episode].unsqueeze(1) + timesteps, timesteps, valid, timesteps >= start)

    def _take(self, steps: Tensor, timesteps: Tensor, valid: Tensor, counted: Tensor | None = None) -> Batch:
        before, none = (steps[:, 0] - 1).clamp(min=0), timesteps[:, 0] == 0
        return Batch(
            self._observations[steps].masked_fill(~valid.unsqueeze(-1), 0.0),
            self._actions[steps].masked_fill(~valid.unsqueeze(-1), 0.0),
            self._returns_to_go[steps].masked_fill(~valid, 0.0),
            timesteps,
            self._actions[before].masked_fill(none.unsqueeze(-1), 0.0),
            valid,
            self._rewards[steps].masked_fill(~valid, 0.0),
            self._rewards[before].masked_fill(none, 0.0),
            valid if counted is None else valid & counted,
        )


def _packed(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Numbers of the episodes in each row: they fill rows in their order, and open a new one where they do not fit."""
    rows: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths.tolist()):
        if length > room:
            rows.append([])
            room = size
        rows[-1].append(number)
        room -= length
    return rows


def _laid_out(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of episodes one after another, as numbers of the packed arrays and within their episodes."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within, within


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
