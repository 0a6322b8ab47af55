"""Fits data to the environment that an agent is to act in: spaces, bounds, clipped actions, time limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from aaren_rl.data.bounds import action_space_of
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, Space, differences
from aaren_rl.data.trajectories import Floats, Trajectories
from aaren_rl.envs.environments import OWN_PACKAGES, Description, describe, registering_package
from aaren_rl.errors import DataError, InvalidInput

TOLERANCE = 1e-3
"""Share of the range by which a recorded action may lie outside its bounds, from rounding."""


@dataclass(frozen=True)
class Recorded:
    """Data with the spaces that are recorded beside them.

    Attributes:
        id: of the dataset, for messages.
        trajectories: the data.
        observation_space: None where none is recorded.
        action_space: None where none is recorded.
    """

    id: str
    trajectories: Trajectories
    observation_space: Space | None
    action_space: Box | None


@dataclass(frozen=True)
class Fitted:
    """Data and the spaces of a model for them.

    Attributes:
        trajectories: the data, their actions inside the bounds.
        observation_space: flat.
        raw_observation_space: of the environment, nested where its observations are.
        action_space: that actions are scaled by.
    """

    trajectories: Trajectories
    observation_space: Box
    raw_observation_space: Space
    action_space: Box


def fit_to_data(trajectories: Trajectories, observation_space: Space | None, action_space: Box | None) -> Fitted:
    """Spaces of data without an environment: those that are recorded with them, else what the data show.

    Args:
        trajectories: the data.
        observation_space: recorded; None for none.
        action_space: recorded; None for none.
    """
    raw = observation_space or Box.unbounded(trajectories.observations.shape[1:])
    flat = raw.flat() if observation_space is not None else cast(Box, raw)
    return Fitted(trajectories, flat, raw, action_space_of(trajectories.actions, action_space))


def fit_to_environment(
    data: Recorded,
    environment: EnvironmentSpec,
    named: bool,
    limited: bool,
    clip: bool,
    say: Callable[[str], object],
) -> Fitted:
    """Checks that data and environment fit, part by part, and clips actions where their environment does.

    Args:
        data: what is to be learned from.
        environment: to act in.
        named: True if the user named the environment.
        limited: True if its time limit is meant, whatever the data's was.
        clip: clip actions outside the bounds, whatever is recorded.
        say: called with a line on what is changed, and on what looks wrong in an environment that the user named.

    Raises:
        InvalidInput: the environment cannot be made, or has no time limit that the data need.
        DataError: the data do not fit it.
    """
    described, trajectories = describe(environment), data.trajectories
    way_out = (
        f"give the arguments of {environment.registered_id} with --env-kwargs, or train without roll-outs (--env-id "
        "none)"
        if named
        else "name the environment that the data are from with --env-id and --env-kwargs, or train without roll-outs "
        "(--env-id none)"
    )
    _check_shapes(data, environment, described, way_out)
    doubt = _other_meaning(data, environment, described)
    if doubt and not named:
        raise DataError(f"{doubt}: {way_out}")
    if doubt:
        say(f"warning: {doubt}")
    _check_limit(trajectories, environment, described)
    if described.limit is None and registering_package(environment.registered_id) not in OWN_PACKAGES:
        say(f"warning: {environment} has no time limit; an episode without an end is broken off late; pass --horizon")
    longest = int(trajectories.lengths.max())
    if described.limit is not None and longest > described.limit:
        cut = f"episodes of {environment} end after {described.limit} steps, and the data have some of {longest}"
        if not (named or limited):
            raise InvalidInput(f"{cut}; pass the limit that the data had as --horizon, as --horizon {longest}")
        say(f"warning: {cut}, so their returns are of other lengths")
    trajectories = _inside(data, environment, described, clip, say)
    actions = action_space_of(trajectories.actions, described.action_space)
    _say_narrowed(actions, described.action_space, say)
    return Fitted(trajectories, described.observation_space, described.raw_observation_space, actions)


def _check_shapes(data: Recorded, environment: EnvironmentSpec, described: Description, way_out: str) -> None:
    needed, given = described.raw_observation_space, data.observation_space
    found = [] if given is None else differences(needed, given, "its observations")
    shapes = data.trajectories.observations.shape[1:], data.trajectories.actions.shape[1:]
    expected = described.observation_space.shape, described.action_space.shape
    if shapes != expected or found:
        parts = f" ({'; '.join(found)})" if found else ""
        raise DataError(
            f"{data.id} has observations of shape {shapes[0]} and actions of shape {shapes[1]}; {environment} has "
            f"{expected[0]} and {expected[1]}{parts}; {way_out}"
        )


def _other_meaning(data: Recorded, environment: EnvironmentSpec, described: Description) -> str | None:
    """What is wrong where actions were recorded between other bounds; None where nothing is."""
    space = data.action_space
    if space is None or described.clips_actions:
        return None
    for ours, theirs in zip(described.action_space.bounds(), space.bounds(), strict=True):
        both = np.isfinite(ours) & np.isfinite(theirs)
        if not np.allclose(ours[both], theirs[both], rtol=TOLERANCE, atol=1e-6):
            return (
                f"{data.id} was recorded with actions from {_words(space)}; those of {environment} are from "
                f"{_words(described.action_space)}, where the same numbers do something else"
            )
    return None


def _check_limit(trajectories: Trajectories, environment: EnvironmentSpec, described: Description) -> None:
    """Refuses an environment without a time limit for data that were cut off by one."""
    cut = trajectories.truncated & ~trajectories.terminated
    if described.limit is None and cut.any():
        longest = int(trajectories.lengths[cut].max())
        raise InvalidInput(
            f"{environment} has no time limit, and {cut.sum()} of the data's {len(cut)} episodes were cut off, after"
            f" up to {longest} steps; pass the limit as --horizon, as --horizon {longest}"
        )


def _inside(
    data: Recorded, environment: EnvironmentSpec, described: Description, clip: bool, say: Callable[[str], object]
) -> Trajectories:
    """The trajectories with actions inside the environment's bounds, clipped only where something says so.

    Raises:
        DataError: actions are outside, and nothing says that their environment clips them.
    """
    trajectories, space = data.trajectories, described.action_space
    outside = _outside(trajectories.actions, space)
    if not outside.any():
        return trajectories
    wider = data.action_space is not None and not _outside(trajectories.actions, data.action_space).any()
    if not (clip or described.clips_actions or wider):
        least, greatest = trajectories.actions.min(0), trajectories.actions.max(0)
        raise DataError(
            f"{data.id} has actions from {least} to {greatest}, outside the action space of {environment}, from "
            f"{_words(space)}; if that environment clips what it is given, pass --clip-actions True"
        )
    why = "as asked" if clip else "as a wrapper does" if described.clips_actions else "since wider ones were recorded"
    say(f"data: {outside.sum()} of {len(outside)} actions are clipped into the bounds of {environment.id}, {why}")
    return dataclasses.replace(trajectories, actions=np.clip(trajectories.actions, *space.bounds()))


def _say_narrowed(actions: Box, space: Box, say: Callable[[str], object]) -> None:
    """Says in which components an agent acts in the data's range alone, since the environment's is far wider."""
    (low, high), (least, greatest) = actions.bounds(), space.bounds()
    narrowed = np.flatnonzero(
        ((low > least) | (high < greatest)) & np.isfinite(least) & np.isfinite(greatest) & (low < high)
    )
    if len(narrowed):
        first = np.unravel_index(narrowed[0], low.shape)
        say(
            f"data: {len(narrowed)} of {low.size} action components use less than a tenth of the environment's range; "
            f"the agent acts in the data's, as {low[first]:.3g} to {high[first]:.3g} of {least[first]:.3g} to "
            f"{greatest[first]:.3g}"
        )


def _outside(actions: Floats, space: Box) -> np.ndarray:
    """Steps whose action is outside the bounds by more than rounding, (steps,) bool."""
    low, high = (bound.astype(np.float64) for bound in space.bounds())
    with np.errstate(invalid="ignore"):  # Infinite bounds have no range.
        margin = TOLERANCE * np.minimum(np.nan_to_num(high - low, posinf=1.0), 1.0)
    wrong = (actions < low - margin) | (actions > high + margin)
    return cast(np.ndarray, wrong.reshape(len(actions), -1).any(1))


def _words(space: Box) -> str:
    low, high = space.bounds()
    return f"{low} to {high}"
