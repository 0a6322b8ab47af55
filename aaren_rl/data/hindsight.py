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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aaren_rl.data.packed import numbers_of
from aaren_rl.data.spaces import Box, NestedSpace, Space
from aaren_rl.data.storage import episode_blocks
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


def own_outcome(trajectories: Trajectories, rewards: GoalRewards, ends_as_goals: bool = False) -> OwnOutcome:
    """What the steps of data are paid under the goals that stand in their observations.

    Args:
        trajectories: with goals.
        rewards: of a goal.
        ends_as_goals: takes what an episode achieves at its end for its goal instead.

    Raises:
        DataError: the data have no goals, or lack the observation after an episode's last action.
    """
    columns, storage = goal_columns(trajectories.observation_space), trajectories.storage
    returns = np.empty(trajectories.episodes, np.float32)
    reached = np.empty(trajectories.steps, np.bool_)

    def paid() -> Iterator[Doubles]:
        for episodes, steps in episode_blocks(trajectories.offsets):
            offsets = trajectories.offsets[episodes.start : episodes.stop + 1] - steps.start
            last = np.zeros(offsets[-1], np.bool_)
            last[offsets[1:] - 1] = True
            if rewards.by_step:
                found, there = last.astype(np.float64), last
            else:
                after = _achieved_in(trajectories, episodes, steps)
                desired = trajectories.numbers[steps, columns[DESIRED]]
                if ends_as_goals:
                    desired = np.repeat(after[last], np.diff(offsets), axis=0)
                outcome = rewards.outcome(torch.from_numpy(after), torch.from_numpy(np.array(desired)))
                found, there = outcome[0].numpy(), outcome[1].numpy()
            reached[steps] = there
            # Every step that reaches the goal ends a piece.
            pieces = np.concatenate([[0], np.flatnonzero(last | there) + 1])
            returns[episodes] = returns_to_go(found.astype(np.float32), pieces)[offsets[:-1]]
            yield found

    return OwnOutcome(storage.array((trajectories.steps,), np.float64, paid()), reached, returns)


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
    parts = (_achieved_in(trajectories, *block) for block in episode_blocks(trajectories.offsets))
    shape = trajectories.steps, columns.stop - columns.start
    return trajectories.storage.array(shape, np.float32, parts)


def _achieved_in(trajectories: Trajectories, episodes: slice, steps: slice) -> Floats:
    """What is achieved after each step of consecutive episodes; as `achieved_after`."""
    columns = goal_columns(trajectories.observation_space)[ACHIEVED]
    if trajectories.final_observations is None:
        raise DataError(
            "hindsight needs the observation after each episode's last action, which these data lack; take data that "
            "have it, or pass final_observations"
        )
    after = np.empty((steps.stop - steps.start, columns.stop - columns.start), np.float32)
    after[:-1] = trajectories.numbers[steps.start + 1 : steps.stop, columns]
    ends = trajectories.offsets[episodes.start + 1 : episodes.stop + 1] - 1 - steps.start
    after[ends] = numbers_of(trajectories.final_observations)[episodes, columns]
    return after


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
