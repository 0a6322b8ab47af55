"""A dataset ready to train on: which episodes, in which environment, asked for which returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.hindsight import Relabelling, with_goal_scaling
from aaren_rl.data.oddities import describe_oddities
from aaren_rl.data.reference import Reference
from aaren_rl.data.spaces import Space
from aaren_rl.data.storage import blocks
from aaren_rl.data.trajectories import Floats, Trajectories, among_best
from aaren_rl.envs import catalogue
from aaren_rl.envs.catalogue import Entry
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.environments import is_special
from aaren_rl.envs.fitting import Fitted, fit_to_data, fit_to_environment
from aaren_rl.envs.goals import Goals, Relabelled, has_goals, relabelled, with_goals
from aaren_rl.envs.keeping import Keeping
from aaren_rl.envs.readers.recording import Recording
from aaren_rl.envs.references import find_reference
from aaren_rl.errors import InvalidInput
from aaren_rl.model.scaling import Scaling, largest

FoundSource: TypeAlias = Literal[
    "minari", "d4rl", "bundled", "arrays", "ogbench", "robomimic", "lerobot", "rlds", "d3rlpy", "npz"
]
Say: TypeAlias = Callable[[str], object]
"""Takes a line on what is done."""

ARRAYS = "arrays"
"""Name of a dataset of a person's own trajectories."""


@dataclass(frozen=True)
class Dataset:
    """Data ready to train on.

    Attributes:
        name: the name that the user gave.
        source: where the data come from: "minari", "d4rl", "bundled", "arrays", or the format of their file.
        id: Minari id, name of the file, or "arrays".
        trajectories: the data.
        environment: the environment to act in; None for none.
        collected_in: the environment that the data are from, where they say so and another one is acted in.
        observation_space: of the model's observations.
        action_space: that actions are scaled by, inside the environment's.
        reference: returns for normalised scores; None for none.
        reference_reason: one sentence: why that one, or why none.
        own_reference: returns for normalised scores that the data record of `environment`; None for none.
        target_returns: returns to ask an agent for.
        return_scale: number that a model divides returns-to-go by: the user's, the catalogue's, or the data's largest
            return.
        relabelling: how segments get other goals; None for the data's own alone.
        returns: of the episodes, (episodes,); with a relabelling those that `aaren_rl.envs.goals.Relabelled` has.
    """

    name: str
    source: FoundSource
    id: str
    trajectories: Trajectories
    environment: EnvironmentSpec | None
    collected_in: EnvironmentSpec | None
    observation_space: Space
    action_space: Space
    reference: Reference | None
    target_returns: tuple[float, ...]
    return_scale: float
    relabelling: Relabelling | None
    returns: Floats
    reference_reason: str = ""
    own_reference: Reference | None = None

    def scaling(self) -> Scaling:
        """The scaling that fits the data, and the goals that segments get."""
        found = Scaling.of(self.trajectories, self.return_scale)
        if self.relabelling is None:
            return found
        statistics = with_goal_scaling(self.observation_space, found.observation_mean, found.observation_std)
        return replace(found, observation_mean=statistics[0], observation_std=statistics[1])


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Attributes:
        environment: what the user says of the environment to act in.
        clip_actions: clip actions that lie outside the environment's bounds; True for "its environment clips them too".
        keep_best: share of the episodes with the highest returns to keep, above 0 and up to 1.
        least_return: least return of the episodes to keep; None for any.
        return_scale: number that a model divides returns-to-go by; None for the catalogue's or the data's.
        goals: how segments get other goals; None for the goals, or none, that the data have.
        keeping: where the data lie.

    Raises:
        InvalidInput: the share or the scale is out of range.
    """

    environment: EnvironmentChoice = field(default_factory=EnvironmentChoice)
    clip_actions: bool = False
    keep_best: float = 1.0
    least_return: float | None = None
    return_scale: float | None = None
    goals: Goals | None = None
    keeping: Keeping = field(default_factory=Keeping)

    def __post_init__(self) -> None:
        if not 0 < self.keep_best <= 1:
            raise InvalidInput(f"keep_best is {self.keep_best}; expected a share above 0, up to 1")
        if self.return_scale is not None and not self.return_scale > 0:
            raise InvalidInput(f"return_scale is {self.return_scale}; expected a positive number")


@dataclass(frozen=True)
class Arrays:
    """Trajectories that record no environment; otherwise as `Recording`."""

    id: str
    trajectories: Trajectories
    collected_in: None = None
    evaluated_in: None = None
    reference: None = None


def of_trajectories(
    trajectories: Trajectories,
    environment: EnvironmentSpec | None = None,
    reading: Reading | None = None,
    say: Say = lambda line: None,
) -> Dataset:
    """A dataset of a person's own trajectories.

    Args:
        trajectories: the data.
        environment: the environment to act in; None for none. Without one the data's least and greatest actions are the
            bounds of the action space.
        reading: how the data are taken; None for the defaults.
        say: as for `load`.

    Raises:
        InvalidInput: the environment is unknown or cannot be made.
        DataError: the data do not fit the environment.
    """
    reading, known = reading or Reading(), () if environment is None else (environment,)
    if environment is not None:
        # The caller's own words, which may name files.
        choice = reading.environment
        choice = replace(choice, kwargs=choice.kwargs if choice.is_none else environment.kwargs | choice.kwargs)
        reading = replace(reading, environment=choice)
    return assemble(ARRAYS, "arrays", Arrays(ARRAYS, trajectories), known, reading, say)


def assemble(
    name: str,
    source: FoundSource,
    read: Recording | Arrays,
    known: tuple[EnvironmentSpec, ...],
    reading: Reading,
    say: Say,
) -> Dataset:
    """The dataset of what was read.

    Args:
        name: the name that the user gave.
        source: where the data come from.
        read: the data, and what is recorded beside them.
        known: environments that the catalogue knows for them, the likeliest first.
        reading: what the user says of data and environment.
        say: called with a line on all that is chosen, changed, left out or odd.

    Raises:
        InvalidInput: the environment is unknown, cannot be made, or lacks a time limit that the data need.
        DataError: the data do not fit it.
    """
    say(f"data: {read.id} (source {source}), {read.trajectories.episodes} episodes, {read.trajectories.steps} steps")
    environment = _environment(name, source, read, known, reading, say)
    trajectories = _kept(read.trajectories, reading, say)
    own, goals = has_goals(trajectories.observation_space), reading.goals
    if goals is not None:
        trajectories, environment = with_goals(read.id, trajectories, environment, goals, say)
    if environment is None:
        fitted = fit_to_data(trajectories)
    else:
        choice = reading.environment
        # An environment for evaluation may well have a limit of its own.
        limited = choice.horizon is not None or environment == read.evaluated_in != read.collected_in
        told = choice.names_one, limited
        fitted = fit_to_environment(read.id, trajectories, environment, *told, reading.clip_actions, say)
    again = None if goals is None else relabelled(read.id, fitted.trajectories, environment, goals, own, say)
    dataset = _described(name, source, read, environment, fitted, again, reading, say)
    for line in _oddities(dataset):
        say(f"data: {line}")
    return dataset


def _oddities(dataset: Dataset) -> list[str]:
    """What is odd in the data as they are trained on."""
    if dataset.relabelling is None:
        return describe_oddities(dataset.trajectories, dataset.return_scale)
    scaling = dataset.scaling()
    # Returns-to-go end at goals, so those of the data say nothing of their scale.
    return describe_oddities(dataset.trajectories, statistics=(scaling.observation_mean, scaling.observation_std))


def _described(
    name: str,
    source: FoundSource,
    read: Recording | Arrays,
    environment: EnvironmentSpec | None,
    fitted: Fitted,
    again: Relabelled | None,
    reading: Reading,
    say: Say,
) -> Dataset:
    trajectories = fitted.trajectories if again is None else again.trajectories
    returns = trajectories.returns if again is None else again.returns
    # The catalogue's returns count what the environment pays at a goal that is held; those of drawn goals end there.
    entry = None if environment is None else catalogue.by_environment(environment)
    counted = entry if again is None else None
    # Of chosen episodes the median is about the best, and what is typical would be asked for twice.
    chosen = reading.keep_best < 1 or reading.least_return is not None
    ambition = None if counted is None or chosen else counted.ambition
    found = find_reference(environment, read.reference, read.evaluated_in or read.collected_in)
    return Dataset(
        name=name,
        source=source,
        id=read.id,
        trajectories=trajectories,
        environment=environment,
        collected_in=read.collected_in if read.collected_in != environment else None,
        observation_space=fitted.observation_space,
        action_space=fitted.action_space,
        reference=found.reference,
        target_returns=(counted and counted.target_returns) or _targets(trajectories, returns, ambition, say),
        return_scale=_scale(returns, counted) if reading.return_scale is None else reading.return_scale,
        relabelling=None if again is None else again.relabelling,
        returns=returns,
        reference_reason=found.reason,
        own_reference=found.reference if found.reference is read.reference else None,
    )


def _environment(
    name: str,
    source: FoundSource,
    read: Recording | Arrays,
    known: tuple[EnvironmentSpec, ...],
    reading: Reading,
    say: Say,
) -> EnvironmentSpec | None:
    """The environment to act in, and a line on why it is that one."""
    choice = reading.environment
    recorded = read.evaluated_in or read.collected_in
    named = [spec for spec in (read.evaluated_in, read.collected_in, *known) if spec is not None]
    # Where the user names one of them, its arguments, limit and wrappers come with it.
    named.sort(key=lambda spec: choice.id is None or spec.registered_id != choice.id.rpartition(":")[2])
    spec = choice.over(named[0] if named else None)
    if spec is None:
        why = "as asked" if choice.is_none else "the data name none; name one with --env-id, as --env-id Hopper-v4"
        say(f"environment: none ({why}); the agent is trained and saved, and not rolled out")
        return None
    why = ""
    if spec == read.evaluated_in and read.evaluated_in != read.collected_in:
        why = f", which the data name for evaluation (collected in {read.collected_in})"
    elif recorded is not None and spec != recorded:
        why = f" (the data record {recorded})"
    if why or is_special(spec):
        say(f"environment: {spec}{why}")
    return spec


def _kept(trajectories: Trajectories, reading: Reading, say: Say) -> Trajectories:
    """The episodes that are to be learned from."""
    returns = trajectories.returns
    keep = np.ones(len(returns), dtype=np.bool_)
    if reading.least_return is not None:
        keep = returns >= reading.least_return
    if reading.keep_best < 1:
        keep &= among_best(returns, reading.keep_best)
    if keep.all():
        return trajectories
    if not keep.any():
        raise InvalidInput(f"no episode has a return of {reading.least_return}; the best has {returns.max():.6g}")
    say(
        f"data: kept {keep.sum()} of {len(keep)} episodes, with returns from {returns[keep].min():.6g} to "
        f"{returns[keep].max():.6g}"
    )
    return trajectories.select(np.flatnonzero(keep))


def _scale(returns: Floats, entry: Entry | None) -> float:
    """Return scale where the user gives none: the catalogue's, or the largest return."""
    return (entry and entry.return_scale) or largest(returns)


def _targets(trajectories: Trajectories, returns: Floats, ambition: float | None, say: Say) -> tuple[float, ...]:
    """Targets where the catalogue has none: returns of the best episode, of the best tenth, the median.

    With an ambition, what lies so many medians beyond the best comes before these. Where goals pay 0 or 1, or -1 or 0,
    the best return alone: others ask for a later goal, or for none.
    """
    best = float(returns.max())
    paid = _paid(trajectories) if has_goals(trajectories.observation_space) else {np.nan}
    if paid <= {0.0, 1.0} or paid <= {-1.0, 0.0}:
        words = " or ".join(f"{reward:g}" for reward in sorted(paid))
        say(f"target: {best:g}, the best return in the data, whose goals pay {words} a step")
        return (best,)
    chosen = [float(target) for target in np.quantile(returns, [1.0, 0.9, 0.5])]
    if ambition and chosen[-1] > 0:
        beyond = max(best, float(f"{best + ambition * chosen[-1]:.4g}"))
        say(
            f"target: {beyond:g}, the best return in the data ({best:.4g}) and {ambition:g} times the median "
            f"({chosen[-1]:.4g}); --target asks for another"
        )
        chosen.insert(0, beyond)
    return tuple(dict.fromkeys(chosen))


def _paid(trajectories: Trajectories) -> set[float]:
    """The rewards that occur."""
    return set().union(*(np.unique(block).tolist() for _, block in blocks(trajectories.rewards)))
