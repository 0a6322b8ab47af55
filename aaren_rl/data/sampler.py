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
from aaren_rl.data.packed import map_packed
from aaren_rl.data.placement import Ends, Stream, tensor_of
from aaren_rl.data.reader import Reader
from aaren_rl.data.relabeller import Pool, Relabeller
from aaren_rl.data.segment import Observations, Segment
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.errors import DataError, InvalidInput

Weighting = Literal["length", "uniform"]


class Sampler:
    """Draws segments by index, without a Python loop over rows.

    A window starts at any step of its episode with the same probability and ends with the episode at the latest, so
    every step is trained on, the last one included. Packed rows are put together once; resets separate their episodes.

    Data on disk (`Trajectories.storage`) give the same segments as those in memory on a CPU. They are drawn there, rows
    are read as they are drawn, and the next batch is read while the last one is used.

    Args:
        trajectories: the data.
        episodes: numbers of the episodes to use, (n,).
        batch_size: rows of a segment.
        context: how segments are cut, as `Context.parse` takes it.
        weighting: draws the episodes of windows and whole episodes in proportion to their length, or uniformly; packed
            and carried segments take every step equally often.
        device: where the segments appear, and where data in memory lie.
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
        on_disk = trajectories.storage.on_disk
        self.device = torch.device("cpu" if on_disk else device)
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
        self._ends = Ends(trajectories, self.device)
        self._final: Observations | None = None
        if next_observations:
            if trajectories.final_observations is None:
                raise DataError(
                    "this training needs the observation after each episode's last action, which these data lack; "
                    "take data that have it (Minari, or D4RL with next_observations), or pass final_observations"
                )
            self._final = map_packed(self._to_device, trajectories.final_observations)
        self._relabeller = None if relabelling is None else Relabeller(trajectories, relabelling, self.device)
        # Of the rows of "carry": their places in the stream, and the steps that the goals of their present episodes
        # come from.
        self.cursor: Tensor | None = None
        self.carried_goal: Tensor | None = None
        self._choose(trajectories, episodes)
        self._reader = Reader(trajectories, torch.device(device)) if on_disk else None

    def over(self, trajectories: Trajectories, episodes: np.ndarray) -> Sampler:
        """A sampler to sweep over other episodes of the same trajectories, sharing this one's data on the device."""
        other = copy.copy(self)
        other.cursor = other.carried_goal = None
        other._reader = None if self._reader is None else self._reader.alone()
        if self.context.mode != "window":
            other.context = Context("episode")
        other.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        other._choose(trajectories, episodes)
        return other

    def _to_device(self, array: np.ndarray) -> Tensor:
        return tensor_of(array, self.device)

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
            # Rows are consecutive pieces of the stream.
            self._stream, self._row_size = Stream(starts[order], lengths[order], self.device), size
            self._row_ends = self._to_device(np.cumsum([lengths[order[places]].sum() for places in rows]))
        elif self.context.mode == "carry":
            self._stream = Stream(starts[order], lengths[order], self.device)
            if len(order) < self.batch_size:
                raise InvalidInput(
                    f"batches of {self.batch_size} segments that carry a state, and {len(order)} episodes to start "
                    f"them with; expected a batch size of at most {len(order)}"
                )
            # Each row of the batch starts with an episode of its own, so that no state is missing, nothing comes twice.
            begins = np.cumsum(lengths[order]) - lengths[order]
            self.cursor = self._to_device(begins[np.arange(self.batch_size) * len(begins) // self.batch_size])
            if self._relabeller is not None:
                self.carried_goal = torch.full((self.batch_size,), -1, device=self.device)

    @property
    def steps_per_segment(self) -> float:
        """Mean number of steps that one segment is trained on."""
        if self.context.mode == "episode":
            return self._total / len(self._lengths)
        return self._total / len(self._row_ends) if self.context.mode == "packed" else float(self.context.steps)

    @property
    def longest_segment(self) -> int:
        """Steps of the longest segment that can come."""
        if self.context.mode == "packed":
            return self._row_size
        return self.longest if self.context.mode == "episode" else self.context.burn_in + self.context.steps

    def sample(self) -> Segment:
        """The next random batch, or its share; for "carry" the segments that follow those of the last one."""
        return self.draw() if self._reader is None else self._reader.next(self)

    def draw(self) -> Segment:
        """As `sample`, on the device where the data are drawn from."""
        if self.context.mode == "packed":
            row = self._random(torch.full((self.batch_size,), len(self._row_ends), device=self.device))
            return self._take(*self._packed_rows(row))
        if self.cursor is not None:
            place = (self.cursor.unsqueeze(1) + torch.arange(self.context.steps, device=self.device)) % self._total
            self.cursor.copy_((self.cursor + self.context.steps) % self._total)
            return self._take(*self._stream.at(place), torch.ones_like(place, dtype=torch.bool))
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
            segment = self._gather(episode[rows], piece[rows] * stride, stride, generator)
            yield segment if self._reader is None else self._reader.moved(segment)

    def _packed_rows(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps, timesteps and validity of packed rows, each (rows, time); 0 and 0 at padding."""
        end = self._row_ends[row].unsqueeze(1)
        begin = torch.where(row > 0, self._row_ends[row - 1], 0).unsqueeze(1)
        place = begin + torch.arange(self._row_size, device=self.device)
        valid = place < end
        steps, timesteps = self._stream.at(torch.minimum(place, end - 1))
        return steps.masked_fill(~valid, 0), timesteps.masked_fill(~valid, 0), valid

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
        if self._reader is not None:
            self._reader.fetch(steps)
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
            terminated=self._ends.terminated(steps) & valid,
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
        episode, ended = self._ends.episode_of(steps), steps + 1 == self._ends.end_of(steps)
        after = (steps + 1).clamp(max=self._ends.steps - 1)

        def following(observations: Tensor, last: Tensor) -> Tensor:
            ends = ended.view(*ended.shape, *[1] * (observations.ndim - 1))
            return _blank(torch.where(ends, last[episode], observations[after]), ~valid)

        return map_packed(following, self._observations, self._final)  # type: ignore[no-any-return]


def _blank(values: Tensor, where: Tensor) -> Tensor:
    """The values, which nobody else holds, with 0 where a mask over their first dimensions says so."""
    return values.masked_fill_(where.view(*where.shape, *[1] * (values.ndim - where.ndim)), 0)


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
