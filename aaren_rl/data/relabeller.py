"""Gives segments other goals on the device where they lie (see `aaren_rl.data.hindsight`)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aaren_rl.data.hindsight import DESIRED, Relabelling, achieved_after, goal_columns, own_outcome
from aaren_rl.data.mapped import Mapped
from aaren_rl.data.packed import numbers_of
from aaren_rl.data.placement import Ends, tensor_of
from aaren_rl.data.segment import Observations, Segment
from aaren_rl.data.spaces import NUMBERS
from aaren_rl.data.trajectories import Trajectories


class Pool(NamedTuple):
    """Episodes that random goals are drawn from.

    Attributes:
        starts: first step of each, (episodes,).
        lengths: steps of each, (episodes,).
        cumulative: sum of the lengths up to and with each, (episodes,).
        total: of all steps.
    """

    starts: Tensor
    lengths: Tensor
    cumulative: Tensor
    total: int


class Relabeller:
    """Relabels segments of trajectories that lie on a device, without a Python loop over rows.

    Args:
        trajectories: the data.
        relabelling: which segments, with which goals and rewards.
        device: where the segments lie.

    Raises:
        DataError: the data have no goals, or lack the observation after an episode's last action.
    """

    def __init__(self, trajectories: Trajectories, relabelling: Relabelling, device: torch.device) -> None:
        self.hindsight, self.rewards = relabelling
        self.device, self.longest = device, int(trajectories.lengths.max())
        own = own_outcome(trajectories, self.rewards)
        self._ends = Ends(trajectories, device)
        self._desired = goal_columns(trajectories.observation_space)[DESIRED]
        after = achieved_after(trajectories)
        for array in (after, own.rewards):
            if (mapped := Mapped.of(array)) is not None:
                mapped.read_at_random()
        self._after, self._own_reached = tensor_of(after, device), tensor_of(own.reached, device)
        self._own_rewards = tensor_of(own.rewards, device)

    def relabel(
        self,
        segment: Segment,
        steps: Tensor,
        pool: Pool,
        generator: torch.Generator,
        whole: bool,
        carried: Tensor | None = None,
    ) -> Segment:
        """The segment with other goals in some episodes, and their rewards and returns-to-go.

        Args:
            segment: as the sampler cuts it.
            steps: numbers of its steps in the data, (batch, time).
            pool: episodes that random goals come from.
            generator: of the random numbers.
            whole: True if every episode of a row ends within it.
            carried: steps that the goals of the segment before came from, (batch,), -1 for own ones; an episode that
                goes on keeps its goal. It is replaced by those of this segment.
        """
        valid = segment.valid
        assert valid is not None, "the sampler says which steps are valid"
        goal = self._goals(segment, steps, pool, generator, carried)  # (batch, time)
        before = (steps[:, :1] - 1).clamp(min=0)
        paths, goals = [before, steps], [goal[:, :1], goal]
        inside = [torch.ones_like(before, dtype=torch.bool), valid]
        if not whole:
            beyond, there, last = self._beyond(steps, valid)
            paths, inside = [*paths, beyond], [*inside, there]
            goals = [*goals, goal.gather(1, last).expand_as(beyond)]
        path, asked, real = torch.cat(paths, 1), torch.cat(goals, 1), torch.cat(inside, 1)
        rewards, reached = self._outcome(path, asked, real)
        # Padding may stand between a row's last step and those beyond it.
        stops = (reached | (path + 1 == self._ends.end_of(path))) & real
        now, begins = slice(1, 1 + steps.shape[1]), segment.timesteps[:, 0] == 0
        to_go = _until(rewards[:, 1:], stops[:, 1:])[:, : steps.shape[1]]
        return segment._replace(
            observations=self._with_goals(segment.observations, goal, valid),
            next_observations=None
            if segment.next_observations is None
            else self._with_goals(segment.next_observations, goal, valid),
            rewards=rewards[:, now].float().masked_fill(~valid, 0),
            returns_to_go=to_go.float().masked_fill(~valid, 0),
            # An episode that ended since it reached its own goal would have gone on under another one.
            terminated=(reached[:, now] | (self._ends.terminated(steps) & ~self._own_reached[steps])) & valid,
            previous_reward=rewards[:, 0].float().masked_fill(begins, 0),
        )

    def _goals(
        self, segment: Segment, steps: Tensor, pool: Pool, generator: torch.Generator, carried: Tensor | None
    ) -> Tensor:
        """Steps that the goals come from, (batch, time); -1 for the episode's own goals."""
        counted = segment.counted
        assert counted is not None, "the sampler says which steps count"
        # 1. Where in the row each step's episode begins: place 0, or the last step of number 0 up to it.
        place = torch.arange(steps.shape[1], device=self.device).expand_as(steps)
        first = torch.where(segment.timesteps == 0, place, 0).cummax(1).values
        # 2. A goal is drawn at that place, after a burn-in at the first step that counts.
        origin = torch.maximum(first, counted.long().argmax(1, keepdim=True))
        goal = self._draw(steps, pool, generator).gather(1, origin)
        # 3. The rest of an episode that began in an earlier segment keeps its goal.
        if carried is not None:
            continued = (first == 0) & (segment.timesteps[:, :1] != 0)
            goal = torch.where(continued, carried.unsqueeze(1), goal)
            carried.copy_(goal[:, -1])
        return goal

    def _draw(self, steps: Tensor, pool: Pool, generator: torch.Generator) -> Tensor:
        """A goal for an episode that would begin at each of the steps."""
        how = self.hindsight
        chance, way, where = torch.rand((3, *steps.shape), generator=generator, device=self.device, dtype=torch.float64)
        left = self._ends.end_of(steps) - steps
        future = steps + (where * left).long()
        later = (torch.log1p(-where) / math.log(how.discount)).long()
        geometric = steps + torch.minimum(later, left - 1)
        place = (where * pool.total).long()
        episode = torch.searchsorted(pool.cumulative, place, right=True)
        anywhere = pool.starts[episode] + place - (pool.cumulative[episode] - pool.lengths[episode])
        drawn = torch.where(way < how.future + how.geometric, geometric, anywhere)
        drawn = torch.where(way < how.future, future, drawn)
        return torch.where(chance < how.share, drawn, -1)

    def _beyond(self, steps: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The steps after a row's last one, which of them its episode has, and the place of that last one, (batch, 1).

        On a GPU as many as any episode can have, since a shape that depends on values would hold it up.
        """
        place = torch.arange(steps.shape[1], device=self.device)
        last = torch.where(valid, place, 0).amax(1, keepdim=True)
        step = steps.gather(1, last)
        end = self._ends.end_of(step)
        most = self.longest - 1 if self.device.type == "cuda" else int((end - 1 - step).max())
        beyond = step + 1 + torch.arange(most, device=self.device)
        return beyond.clamp(max=self._ends.steps - 1), beyond < end, last

    def _outcome(self, path: Tensor, goal: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards and whether the goal is reached, of steps inside their episodes, under goals; 0 elsewhere."""
        own = goal < 0
        if self.rewards.by_step:
            reached = path == goal
            rewards = reached.double()
        elif self.rewards.compute is None:
            rewards, reached = self.rewards.outcome(self._after[path], self._after[goal.clamp(min=0)])
        else:
            # What the environment computes is computed for as few as possible.
            rewards, reached = torch.zeros_like(path, dtype=torch.float64), torch.zeros_like(own)
            asked = inside & ~own
            found = self.rewards.outcome(self._after[path[asked]], self._after[goal[asked]])
            rewards[asked], reached[asked] = found
        rewards = torch.where(own, self._own_rewards[path], rewards)
        reached = torch.where(own, self._own_reached[path], reached)
        return rewards.masked_fill(~inside, 0), reached & inside

    def _with_goals(self, observations: Observations, goal: Tensor, valid: Tensor) -> Observations:
        numbers = numbers_of(observations).clone()
        drawn = ((goal >= 0) & valid).unsqueeze(-1)
        numbers[..., self._desired] = torch.where(drawn, self._after[goal.clamp(min=0)], numbers[..., self._desired])
        return {**observations, NUMBERS: numbers} if isinstance(observations, dict) else numbers


def _until(rewards: Tensor, stops: Tensor) -> Tensor:
    """Sum of the rewards from each step to the next one that stops, that one included, (batch, time).

    With rewards 1 2 3 4 and a stop at the second: 3 2 7 4.
    """
    time = rewards.shape[1]
    place = torch.where(stops, torch.arange(time, device=rewards.device), time - 1)
    stop = place.flip(1).cummin(1).values.flip(1)
    sums = torch.nn.functional.pad(rewards.cumsum(1), (1, 0))
    return sums.gather(1, stop + 1) - sums[:, :-1]
