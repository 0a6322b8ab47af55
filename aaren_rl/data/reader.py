"""Reads batches of data on disk while the update before them runs."""

from __future__ import annotations

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aaren_rl.data.mapped import Mapped
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.segment import Segment
from aaren_rl.data.trajectories import Trajectories

if TYPE_CHECKING:
    from aaren_rl.data.sampler import Sampler


class _Position(NamedTuple):
    """What determines the next batch of a sampler.

    Attributes:
        random: state of the generator.
        cursor: as the sampler's, of one that carries.
        goal: as the sampler's `carried_goal`.
    """

    random: Tensor
    cursor: Tensor | None
    goal: Tensor | None

    @classmethod
    def of(cls, sampler: Sampler) -> _Position:
        parts = sampler.generator.get_state(), sampler.cursor, sampler.carried_goal
        return cls(*(None if part is None else part.clone() for part in parts))  # type: ignore[arg-type]

    def equals(self, other: _Position) -> bool:
        pairs = zip(self, other, strict=True)
        return all(one is two is None or (one is not None and torch.equal(one, two)) for one, two in pairs)  # type: ignore[arg-type]

    def give_to(self, sampler: Sampler) -> None:
        sampler.generator.set_state(self.random)
        for now, then in ((sampler.cursor, self.cursor), (sampler.carried_goal, self.goal)):
            if now is not None and then is not None:
                now.copy_(then)

    def continued(self, sampler: Sampler) -> Sampler:
        """A sampler of the same data that stands here and moves on its own."""
        other = copy.copy(sampler)
        other.generator = torch.Generator()
        other.generator.set_state(self.random)
        other.cursor, other.carried_goal = (None if part is None else part.clone() for part in (self.cursor, self.goal))
        return other


class Reader:
    """Draws the batches of a sampler whose data lie on disk, one ahead.

    A thread reads the next batch from where the sampler stands. The batch counts if the sampler still stands there when
    it is asked for, and is drawn anew otherwise, as after a resume. So what is read ahead is no part of a run's state.

    Args:
        trajectories: on disk. Passes over all of them are slow from here on: the files are then read at random.
        device: where the batches appear; for a GPU they are copied from pinned memory.
    """

    def __init__(self, trajectories: Trajectories, device: torch.device) -> None:
        self.device = device
        arrays = [*arrays_of(trajectories.observations).values(), trajectories.actions, trajectories.rewards]
        found = [Mapped.of(array) for array in (*arrays, trajectories.returns_to_go)]
        self._arrays = [mapped for mapped in found if mapped is not None]
        for mapped in self._arrays:
            mapped.read_at_random()
        self._thread = ThreadPoolExecutor(1, "reader")
        self._before: _Position | None = None
        self._ahead: Future[tuple[Segment, Tensor, _Position]]

    def fetch(self, steps: Tensor) -> None:
        """Begins to read steps, all of them at once."""
        wanted = np.unique(steps.numpy())
        cuts = np.flatnonzero(np.diff(wanted) != 1)
        starts = wanted[np.concatenate([[0], cuts + 1])].tolist()
        stops = (wanted[np.concatenate([cuts, [len(wanted) - 1]])] + 1).tolist()
        for mapped in self._arrays:
            for start, stop in zip(starts, stops, strict=True):
                mapped.fetch(start, stop)

    def next(self, sampler: Sampler) -> Segment:
        """The batch that follows from where the sampler stands, and moves it on."""
        before = _Position.of(sampler)
        if self._before is None or not self._before.equals(before):
            self._begin(sampler, before)
        segment, share_of_counted, after = self._ahead.result()
        after.give_to(sampler)
        sampler.share_of_counted = share_of_counted.to(self.device, non_blocking=True)
        self._begin(sampler, after)
        return self.moved(segment)

    def moved(self, segment: Segment) -> Segment:
        """The segment on the device."""
        return segment.map(lambda part: part.to(self.device, non_blocking=True))

    def alone(self) -> Reader:
        """The reader for another sampler of the same data."""
        other = copy.copy(self)
        other._before = None
        return other

    def _begin(self, sampler: Sampler, before: _Position) -> None:
        self._before, self._ahead = before, self._thread.submit(self._draw, before.continued(sampler))

    def _draw(self, sampler: Sampler) -> tuple[Segment, Tensor, _Position]:
        segment = sampler.draw()
        if self.device.type == "cuda":
            segment = segment.map(Tensor.pin_memory)
        return segment, sampler.share_of_counted, _Position.of(sampler)
