"""Hindsight relabelling: training on the goals that were reached in place of those that were wanted.

After Andrychowicz et al. 2017 (arXiv 1707.01495). A segment has one goal from its first step on, as an episode has when
an agent acts. Under a drawn goal the task ends where the goal is reached, whether or not the environment goes on: the
return-to-go of a step is the sum of the rewards from it to the next step that reaches the goal, that step included, or
to the episode's end. So it is 1 before a goal that is reached and pays 1, and minus the steps that it takes where every
other step pays -1. An agent that is asked for 1 asks for just that. Segments that keep their own goals count likewise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aaren_rl.data.packed import numbers_of
from aaren_rl.data.segment import Observations, Segment
from aaren_rl.data.spaces import NUMBERS, Box, NestedSpace, Space
from aaren_rl.data.trajectories import Floats, Trajectories, returns_to_go
from aaren_rl.errors import DataError, InvalidInput, unknown_name

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
"""Parts of an observation that say what is reached, and what is to be reached, as Gymnasium-Robotics names them."""

DRAWS = ("future", "geometric", "random")
"""Ways of drawing a goal."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hindsight:
    """Which segments get another goal, and how it is drawn.

    The goal is what an episode had achieved after one of its steps. A window's goal is drawn from its first step that
    counts, that of a whole episode from the episode's first step.

    Attributes:
        share: of the segments' episodes that get a drawn goal; the others keep their own.
        future: share of the drawn goals that come from a later step of the same episode, each with equal probability.
        geometric: share that come from the step k steps later with a probability of (1 - discount) discount^(k - 1),
            from the last step where that is beyond it (as in HIQL, Park et al. 2023, arXiv 2307.11949).
        random: share that come from any step of the data.
        discount: of the geometric draws.

    Raises:
        InvalidInput: a share is not from 0 to 1, those of the draws do not sum to 1, or the discount is not between 0
            and 1.
    """

    share: float = 0.8
    future: float = 1.0
    geometric: float = 0.0
    random: float = 0.0
    discount: float = 0.99

    def __post_init__(self) -> None:
        for name in ("share", *DRAWS):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"hindsight's {name} is {getattr(self, name)}; expected a share from 0 to 1")
        if not math.isclose(self.future + self.geometric + self.random, 1.0, abs_tol=1e-6):
            raise InvalidInput(
                f"hindsight draws {self.future:g} future, {self.geometric:g} geometric and {self.random:g} random "
                "goals; expected shares that sum to 1"
            )
        if not 0 < self.discount < 1:
            raise InvalidInput(f"hindsight's discount is {self.discount}; expected a number between 0 and 1")

    @classmethod
    def parse(cls, share: float, draws: Sequence[str]) -> Hindsight:
        """Reads the written form of the draws.

        Args:
            share: as the attribute.
            draws: each "future=SHARE", "geometric:DISCOUNT=SHARE" or "random=SHARE"; "geometric=SHARE" has a discount
                of 0.99.

        Raises:
            InvalidInput: it is written otherwise, names another way of drawing or one twice, or as the class.
        """
        shares: dict[str, float] = dict.fromkeys(DRAWS, 0.0)
        discount, named = cls.discount, set[str]()
        for text in draws:
            written, _, given = text.partition("=")
            name, colon, number = written.partition(":")
            if name not in DRAWS:
                raise unknown_name("draw of goals", name, DRAWS)
            if name in named or not _is_number(given) or (colon and not (name == "geometric" and _is_number(number))):
                raise InvalidInput(
                    f"a draw of goals is {text!r}; expected each once, as future=0.5 geometric:0.99=0.3 random=0.2"
                )
            named.add(name)
            shares[name] = float(given)
            discount = float(number) if colon else discount
        return cls(share, shares["future"], shares["geometric"], shares["random"], discount)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) is not None


@dataclass(frozen=True)
class GoalRewards:
    """What a step is paid under a goal, and when the goal counts as reached.

    Attributes:
        compute: rewards of achieved and desired goals, each (n, size) in float64, (n,); it runs on the CPU. None: 1 at
            a step that reaches the goal, 0 at all others.
        hit: reward that means that the goal is reached, where `compute` pays two rewards alone; None elsewhere.
        distance: greatest distance between an achieved goal and the desired one, if it is reached; None for `hit`. With
            neither, `compute` rewards are summed to the episode's end; without `compute` the step that a goal was drawn
            from reaches it and no other does (as in OGBench, Park et al. 2025, arXiv 2410.20092), and an episode's own
            goal is what it achieves at its end.
    """

    compute: Callable[[Doubles, Doubles], Doubles] | None = None
    hit: float | None = None
    distance: float | None = None

    def __post_init__(self) -> None:
        if self.distance is not None and not 0 <= self.distance < math.inf:
            raise InvalidInput(f"goal_distance is {self.distance}; expected a number from 0 on")

    @property
    def by_step(self) -> bool:
        """True if only the step that a goal was drawn from reaches it."""
        return self.compute is None and self.distance is None

    def outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (...) float64, and whether the goal is reached (...), of goals (..., size); not where `by_step`."""
        distance = torch.linalg.vector_norm(achieved.double() - desired.double(), dim=-1)
        near = distance <= (-1.0 if self.distance is None else self.distance)
        if self.compute is None:
            return near.double(), near
        size = achieved.shape[-1]
        pair = (part.double().reshape(-1, size).cpu().numpy() for part in (achieved, desired.expand_as(achieved)))
        paid = np.asarray(self.compute(*pair), np.float64)
        rewards = torch.from_numpy(paid.copy()).to(achieved.device).reshape(achieved.shape[:-1])
        if self.distance is None and self.hit is not None:
            near = rewards == self.hit
        return rewards, near


class Relabelling(NamedTuple):
    """How a sampler relabels.

    Attributes:
        hindsight: which segments, and with which goals.
        rewards: of a goal.
    """

    hindsight: Hindsight
    rewards: GoalRewards


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


class OwnOutcome(NamedTuple):
    """Rewards of data under the goals that they have.

    Attributes:
        rewards: (steps,) float64.
        reached: whether the step reaches the goal, (steps,).
        returns: of each episode to where it first reaches its goal, (episodes,) float32.
    """

    rewards: Doubles
    reached: npt.NDArray[np.bool_]
    returns: Floats


def own_outcome(trajectories: Trajectories, rewards: GoalRewards) -> OwnOutcome:
    """What the steps of data are paid under the goals that stand in their observations.

    Raises:
        DataError: the data have no goals, or lack the observation after an episode's last action.
    """
    columns = goal_columns(trajectories.observation_space)
    last = np.zeros(trajectories.steps, np.bool_)
    last[trajectories.offsets[1:] - 1] = True
    if rewards.by_step:
        paid, reached = last.astype(np.float64), last
    else:
        after = torch.from_numpy(achieved_after(trajectories))
        outcome = rewards.outcome(after, torch.from_numpy(trajectories.numbers[:, columns[DESIRED]]))
        paid, reached = outcome[0].numpy(), outcome[1].numpy()
    # Every step that reaches the goal ends a piece.
    pieces = np.concatenate([[0], np.flatnonzero(last | reached) + 1])
    to_go = returns_to_go(paid.astype(np.float32), pieces)
    return OwnOutcome(paid, reached, to_go[trajectories.offsets[:-1]])


def goal_columns(space: Space | None) -> dict[str, slice]:
    """Where the numbers of the achieved and of the desired goal stand in a row of an observation's numbers.

    Raises:
        DataError: the observations have no such parts, or these are no vectors of one size.
    """
    names = [name for name, _ in space.named_parts] if isinstance(space, NestedSpace) else []
    if ACHIEVED not in names or DESIRED not in names:
        raise DataError(
            f"hindsight needs observations with the parts {ACHIEVED!r} and {DESIRED!r}; these have "
            f"{names or 'no parts'}"
        )
    assert space is not None, "it has parts"
    found = {part.path: part for part in space.parts() if part.path in (ACHIEVED, DESIRED)}
    if len(found) < 2 or not all(isinstance(part.space, Box) for part in found.values()):
        raise DataError(
            "hindsight needs goals that are vectors of numbers; those of the data are images or have parts themselves"
        )
    sizes = [found[name].space.size for name in (ACHIEVED, DESIRED)]
    if sizes[0] != sizes[1]:
        raise DataError(f"achieved goals have {sizes[0]} numbers and desired ones {sizes[1]}; expected as many")
    return {name: part.columns for name, part in found.items()}


def achieved_after(trajectories: Trajectories) -> Floats:
    """What is achieved after each step, (steps, size).

    Raises:
        DataError: the data have no goals, or lack the observation after an episode's last action.
    """
    columns = goal_columns(trajectories.observation_space)[ACHIEVED]
    if trajectories.final_observations is None:
        raise DataError(
            "hindsight needs the observation after each episode's last action, which these data lack; take data that "
            "have it, or pass final_observations"
        )
    after = np.empty((trajectories.steps, columns.stop - columns.start), np.float32)
    after[:-1] = trajectories.numbers[1:, columns]
    after[trajectories.offsets[1:] - 1] = numbers_of(trajectories.final_observations)[:, columns]
    return after


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
        ends = np.repeat(trajectories.offsets[1:], trajectories.lengths)
        # An episode that ended since it reached its own goal would have gone on under another one.
        terminal = (ends == np.arange(1, len(ends) + 1)) & np.repeat(trajectories.terminated, trajectories.lengths)
        self._desired = goal_columns(trajectories.observation_space)[DESIRED]
        self._after = torch.as_tensor(achieved_after(trajectories), device=device)
        self._ends = torch.as_tensor(ends, device=device)
        self._own_rewards = torch.as_tensor(own.rewards, device=device)
        self._own_reached = torch.as_tensor(own.reached, device=device)
        self._terminal = torch.as_tensor(terminal & ~own.reached, device=device)

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
        stops = (reached | (path + 1 == self._ends[path])) & real
        now, begins = slice(1, 1 + steps.shape[1]), segment.timesteps[:, 0] == 0
        to_go = _until(rewards[:, 1:], stops[:, 1:])[:, : steps.shape[1]]
        return segment._replace(
            observations=self._with_goals(segment.observations, goal, valid),
            next_observations=None
            if segment.next_observations is None
            else self._with_goals(segment.next_observations, goal, valid),
            rewards=rewards[:, now].float().masked_fill(~valid, 0),
            returns_to_go=to_go.float().masked_fill(~valid, 0),
            terminated=(reached[:, now] | self._terminal[steps]) & valid,
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
        left = self._ends[steps] - steps
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
        end = self._ends[step]
        most = self.longest - 1 if self.device.type == "cuda" else int((end - 1 - step).max())
        beyond = step + 1 + torch.arange(most, device=self.device)
        return beyond.clamp(max=len(self._ends) - 1), beyond < end, last

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


def with_goal_scaling(space: Space, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
    """Statistics of observations in which a desired goal is scaled as an achieved one.

    Goals are drawn from those achieved, and the data's own goals may all be one.
    """
    columns, parts = goal_columns(space), (mean.copy(), std.copy())
    for part in parts:
        part[columns[DESIRED]] = part[columns[ACHIEVED]]
    return parts


def describe(relabelling: Relabelling) -> str:
    """One line on what is relabelled and when a goal counts as reached."""
    how, rewards = relabelling
    draws = [f"{getattr(how, name):.0%} {name}" for name in DRAWS if getattr(how, name)]
    text = f"goals: {how.share:.0%} of the segments get another one ({', '.join(draws)}"
    text += f", discount {how.discount:g})" if how.geometric else ")"
    text += "; rewards are " + ("the environment's" if rewards.compute else "1 at the goal and 0 elsewhere")
    if rewards.distance is not None:
        return f"{text}; a goal is reached within a distance of {rewards.distance:g}, and the task ends there"
    if rewards.hit is not None:
        return f"{text}; a goal is reached where they are {rewards.hit:g}, and the task ends there"
    if rewards.compute is None:
        return f"{text}; a goal is reached at the step that it is from, and the task ends there"
    return f"{text}, summed to the episode's end"
