"""Training segments drawn from trajectories that lie on the training device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from aaren_rl.data.context import Context
from aaren_rl.data.hindsight import Relabelling
from aaren_rl.data.packed import first_of, map_packed
from aaren_rl.data.relabeller import Pool, Relabeller
from aaren_rl.data.segment import Observations, Segment
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import DataError, InvalidInput

Weighting = Literal["length", "uniform"]


class Sampler:
    """Draws segments by index, without a Python loop over rows.

    A window starts at any step of its episode with the same probability and ends with the episode at the latest, so
    every step is trained on, the last one included. Packed rows are put together once; resets separate their episodes.

    Args:
        trajectories: the data.
        episodes: numbers of the episodes to use, (n,).
        batch_size: rows of a segment.
        context: how segments are cut, as `Context.parse` takes it.
        weighting: draws the episodes of windows and whole episodes in proportion to their length, or uniformly; packed
            and carried segments take every step equally often.
        device: where the data lie and the segments appear.
        seed: of the sampler's random numbers.
        next_observations: fills `Segment.next_observations`, which costs as much memory as the observations.
        relabelling: gives segments other goals (see `aaren_rl.data.hindsight`); None for none.

    Raises:
        InvalidInput: no episodes, fewer than rows that carry a state, a size below 1, or a context that cannot be read.
        DataError: next observations or other goals are asked for, and the data lack the observations after the
            episodes' last actions, or goals.
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
        next_observations: bool = False,
        relabelling: Relabelling | None = None,
    ) -> None:
        if len(episodes) == 0 or batch_size < 1:
            raise InvalidInput(f"{len(episodes)} episodes, batches of {batch_size}; expected at least 1 of each")
        self.batch_size, self.context, self.weighting = batch_size, Context.parse(context), weighting
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        # Steps that whole episodes are padded to; None for the longest one drawn.
        self.pad_to: int | None = None
        # Rows of each drawn batch that `sample` returns, where several samplers share a batch; None for all.
        self.share: slice | None = None
        # Counted steps of those rows, as a share of the batch's.
        self.share_of_counted = torch.ones((), device=self.device)
        self._observations: Observations = map_packed(self._to_device, trajectories.observations)
        self._actions = self._to_device(trajectories.actions)
        self._rewards = self._to_device(trajectories.rewards)
        self._returns_to_go = self._to_device(trajectories.returns_to_go)
        self._terminated = self._to_device(_at_last_step(trajectories, trajectories.terminated))
        self._final: tuple[Observations, Tensor] | None = None
        if next_observations:
            if trajectories.final_observations is None:
                raise DataError(
                    "this training needs the observation after each episode's last action, which these data lack; "
                    "take data that have it (Minari, or D4RL with next_observations), or pass final_observations"
                )
            # Steps that end an episode point at its final observation, all others at row 0.
            number = _at_last_step(trajectories, np.arange(1, trajectories.episodes + 1))
            self._final = map_packed(self._to_device, trajectories.final_observations), self._to_device(number)
        self._relabeller = None if relabelling is None else Relabeller(trajectories, relabelling, self.device)
        # Of the rows of "carry": the steps that the goals of their present episodes come from.
        self.carried_goal: Tensor | None = None
        self._choose(trajectories, episodes)

    def over(self, trajectories: Trajectories, episodes: np.ndarray) -> Sampler:
        """A sampler to sweep over other episodes of the same trajectories, sharing this one's data on the device."""
        other = copy.copy(self)
        other.carried_goal = None
        if self.context.mode != "window":
            other.context = Context("episode")
        other.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        other._choose(trajectories, episodes)
        return other

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _choose(self, trajectories: Trajectories, episodes: np.ndarray) -> None:
        starts, lengths = trajectories.offsets[:-1][episodes], trajectories.lengths[episodes]
        self._starts, self._lengths = self._to_device(starts), self._to_device(lengths)
        self._cumulative = self._lengths.cumsum(0)
        self._total = int(self._cumulative[-1])
        self.longest = int(self._lengths.max())
        order = np.random.default_rng(self.generator.initial_seed()).permutation(len(episodes))
        if self.context.mode == "packed":
            # As wide as the longest episode of all, so that samplers of different episodes have rows of one shape.
            size = int(trajectories.lengths.max())
            rows = _packed(lengths[order], size)
            steps, timesteps = np.zeros((2, len(rows), size), np.int64)
            valid = np.zeros((len(rows), size), np.bool_)
            for row, places in enumerate(rows):
                own, within = _concatenate(starts[order[places]], lengths[order[places]])
                steps[row, : len(own)], timesteps[row, : len(own)], valid[row, : len(own)] = own, within, True
            self._rows = self._to_device(steps), self._to_device(timesteps), self._to_device(valid)
        elif self.context.mode == "carry":
            stream, within = _concatenate(starts[order], lengths[order])
            self._stream = self._to_device(stream), self._to_device(within)
            if len(order) < self.batch_size:
                raise InvalidInput(
                    f"batches of {self.batch_size} segments that carry a state, and {len(order)} episodes to start "
                    f"them with; expected a batch size of at most {len(order)}"
                )
            # Each row of the batch starts with an episode of its own, so that no state is missing, nothing comes twice.
            begins = np.flatnonzero(within == 0)
            self.cursor = self._to_device(begins[np.arange(self.batch_size) * len(begins) // self.batch_size])
            if self._relabeller is not None:
                self.carried_goal = torch.full((self.batch_size,), -1, device=self.device)

    @property
    def steps_per_segment(self) -> float:
        """Mean number of steps that one segment is trained on."""
        if self.context.mode == "episode":
            return self._total / len(self._lengths)
        return self._total / len(self._rows[0]) if self.context.mode == "packed" else float(self.context.steps)

    @property
    def longest_segment(self) -> int:
        """Steps of the longest segment that can come."""
        if self.context.mode == "packed":
            return self._rows[0].shape[1]
        return self.longest if self.context.mode == "episode" else self.context.burn_in + self.context.steps

    def sample(self) -> Segment:
        """The next random batch, or its share; for "carry" the segments that follow those of the last one."""
        if self.context.mode == "packed":
            steps, timesteps, valid = self._rows
            row = self._random(torch.full((self.batch_size,), len(steps), device=self.device))
            return self._take(steps[row], timesteps[row], valid[row])
        if self.context.mode == "carry":
            steps, timesteps = self._stream
            place = (self.cursor.unsqueeze(1) + torch.arange(self.context.steps, device=self.device)) % self._total
            self.cursor.copy_((self.cursor + self.context.steps) % self._total)
            return self._take(steps[place], timesteps[place], torch.ones_like(place, dtype=torch.bool))
        if self.weighting == "length":
            step = self._random(torch.full((self.batch_size,), self._total, device=self.device))
            episode = torch.searchsorted(self._cumulative, step, right=True)
        else:
            episode = self._random(torch.full((self.batch_size,), len(self._lengths), device=self.device))
        if self.context.mode == "episode":
            longest = self.pad_to or int(self._lengths[episode].max())
            return self._gather(episode, torch.zeros_like(episode), longest)
        return self._gather(episode, self._random(self._lengths[episode]), self.context.steps)

    def starting_at(self, steps: Tensor) -> Segment:
        """The windows that start at steps.

        Args:
            steps: (batch,), counted over the episodes in use, one after another.
        """
        episode = torch.searchsorted(self._cumulative, steps, right=True)
        first = (self._cumulative - self._lengths)[episode]
        return self._gather(episode, steps - first, self.context.steps)

    def sweep(self, steps: int) -> Iterator[Segment]:
        """Windows or whole episodes of about `steps` steps in all, spread evenly, none twice; the same each time.

        They are relabelled as in training, with goals that are the same each time as well.
        """
        generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        stride = self.context.steps if self.context.mode == "window" else self.longest
        pieces = (self._lengths + stride - 1) // stride
        episode = torch.repeat_interleave(torch.arange(len(pieces), device=self.device), pieces)
        piece = torch.arange(len(episode), device=self.device) - (pieces.cumsum(0) - pieces)[episode]
        wanted = min(len(episode), max(1, math.ceil(len(episode) * steps / self._total)))
        # Spread over all episodes, not the first ones only.
        chosen = torch.linspace(0, len(episode) - 1, wanted, device=self.device).round().long()
        for rows in torch.split(chosen, self.batch_size):
            yield self._gather(episode[rows], piece[rows] * stride, stride, generator)

    def _random(self, below: Tensor) -> Tensor:
        """Random integers from 0 up to, not including, each element of `below`."""
        drawn = torch.rand(below.shape, generator=self.generator, device=self.device, dtype=torch.float64)
        return (drawn * below).long()

    def _gather(self, episode: Tensor, start: Tensor, time: int, generator: torch.Generator | None = None) -> Segment:
        """Windows of so many steps, with what there is of the burn-in before them."""
        start, length = start.unsqueeze(1), self._lengths[episode].unsqueeze(1)
        begin = (start - self.context.burn_in).clamp(min=0)
        timesteps = begin + torch.arange(self.context.burn_in + time, device=self.device)
        valid = timesteps < torch.minimum(length, start + time)
        timesteps = timesteps.clamp(max=length - 1)
        steps = self._starts[episode].unsqueeze(1) + timesteps
        return self._take(steps, timesteps, valid, timesteps >= start, generator)

    def _take(
        self,
        steps: Tensor,
        timesteps: Tensor,
        valid: Tensor,
        counted: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Segment:
        counted = valid if counted is None else valid & counted
        share = self.share if generator is None else None
        if share is not None:
            self.share_of_counted = counted[share].sum() / counted.sum()
            if self._relabeller is None:
                steps, timesteps, valid, counted = steps[share], timesteps[share], valid[share], counted[share]
        before, starts = (steps[:, 0] - 1).clamp(min=0), timesteps[:, 0] == 0
        segment = Segment(
            observations=map_packed(lambda part: _blank(part[steps], ~valid), self._observations),
            timesteps=timesteps,
            actions=_blank(self._actions[steps], ~valid),
            rewards=_blank(self._rewards[steps], ~valid),
            returns_to_go=_blank(self._returns_to_go[steps], ~valid),
            valid=valid,
            counted=counted,
            previous_action=_blank(self._actions[before], starts),
            previous_reward=_blank(self._rewards[before], starts),
            terminated=self._terminated[steps] & valid,
            next_observations=self._next_observations(steps, valid),
        )
        if self._relabeller is None:
            return segment
        pool = Pool(self._starts, self._lengths, self._cumulative, self._total)
        whole = self.context.mode in ("episode", "packed")
        if generator is not None:
            # A sweep carries nothing on.
            return self._relabeller.relabel(segment, steps, pool, generator, whole)
        relabelled = self._relabeller.relabel(segment, steps, pool, self.generator, whole, self.carried_goal)
        # Goals are drawn for all rows, so that they are the same however many samplers share them.
        return relabelled if share is None else relabelled.map(lambda part: part[share])

    def _next_observations(self, steps: Tensor, valid: Tensor) -> Observations | None:
        if self._final is None:
            return None
        final, number = self._final
        ended = number[steps]
        after = (steps + 1).clamp(max=len(first_of(self._observations)) - 1)

        def following(observations: Tensor, last: Tensor) -> Tensor:
            ends = (ended > 0).view(*ended.shape, *[1] * (observations.ndim - 1))
            return _blank(torch.where(ends, last[(ended - 1).clamp(min=0)], observations[after]), ~valid)

        return map_packed(following, self._observations, final)  # type: ignore[no-any-return]


def _blank(values: Tensor, where: Tensor) -> Tensor:
    """The values, which nobody else holds, with 0 where a mask over their first dimensions says so."""
    return values.masked_fill_(where.view(*where.shape, *[1] * (values.ndim - where.ndim)), 0)


def _at_last_step(trajectories: Trajectories, values: np.ndarray) -> np.ndarray:
    """Values of the episodes at their last steps and 0 elsewhere, (steps,)."""
    found = np.zeros(trajectories.steps, values.dtype)
    found[trajectories.offsets[1:] - 1] = values
    return found


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


def _concatenate(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
