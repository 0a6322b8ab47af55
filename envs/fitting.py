"""Fits data to the environment that an agent is to act in: spaces, bounds, clipped actions, time limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aaren_rl.data.bounds import action_space_of, bounds_of, first_no_value
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import (
    BinarySpace,
    Box,
    DiscreteSpace,
    ImageSpace,
    Part,
    Space,
    TextSpace,
    differences,
    map_parts,
)
from aaren_rl.data.spaces.image import SYMBOLS
from aaren_rl.data.storage import blocks
from aaren_rl.data.trajectories import Floats, Trajectories
from aaren_rl.envs.environments import OWN_PACKAGES, Description, describe, registering_package
from aaren_rl.errors import DataError, InvalidInput

TOLERANCE = 1e-3
"""Share of the range by which a recorded action may lie outside its bounds, from rounding."""


@dataclass(frozen=True)
class Fitted:
    """Data and the spaces of a model for them.

    Attributes:
        trajectories: the data, their actions inside the bounds.
        observation_space: of the model's observations; its texts have the words of the data.
        action_space: that actions are scaled by.
    """

    trajectories: Trajectories
    observation_space: Space
    action_space: Space


def fit_to_data(trajectories: Trajectories) -> Fitted:
    """Spaces of data without an environment: those that are recorded with them, else what the data show."""
    observed = trajectories.observation_space or Box.unbounded(trajectories.numbers.shape[1:])
    return Fitted(
        trajectories,
        _with_symbols(observed, trajectories),
        action_space_of(trajectories.actions, trajectories.action_space),
    )


def fit_to_environment(
    name: str,
    trajectories: Trajectories,
    environment: EnvironmentSpec,
    named: bool,
    limited: bool,
    clip: bool,
    say: Callable[[str], object],
) -> Fitted:
    """Checks that data and environment fit, part by part, and clips actions where their environment does.

    Args:
        name: of the data, for messages.
        trajectories: what is to be learned from.
        environment: to act in.
        named: True if the user named the environment.
        limited: True if its time limit is meant, whatever the data's was.
        clip: clip actions outside the bounds, whatever is recorded.
        say: called with a line on what is changed, and on what looks wrong in an environment that the user named.

    Raises:
        InvalidInput: the environment cannot be made, or has no time limit that the data need.
        DataError: the data do not fit it.
    """
    described = describe(environment)
    way_out = (
        f"give the arguments of {environment.registered_id} with --env-kwargs, or train without roll-outs (--env-id "
        "none)"
        if named
        else "name the environment that the data are from with --env-id and --env-kwargs, or train without roll-outs "
        "(--env-id none)"
    )
    _check_shapes(name, trajectories, environment, described, way_out)
    doubt = _other_meaning(name, trajectories, environment, described)
    if doubt and not named:
        raise DataError(f"{doubt}: {way_out}")
    if doubt:
        say(f"warning: {doubt}")
    _check_limit(trajectories, environment, described)
    limited_somehow = described.limit is not None or described.limits_itself
    if not limited_somehow and registering_package(environment.registered_id) not in OWN_PACKAGES:
        say(f"warning: {environment} has no time limit; an episode without an end is broken off late; pass --horizon")
    longest = int(trajectories.lengths.max())
    if described.limit is not None and longest > described.limit:
        cut = f"episodes of {environment} end after {described.limit} steps, and the data have some of {longest}"
        if not (named or limited):
            raise InvalidInput(f"{cut}; pass the limit that the data had as --horizon, as --horizon {longest}")
        say(f"warning: {cut}, so their returns are of other lengths")
    trajectories = _inside(name, trajectories, environment, described, clip, say)
    actions = action_space_of(trajectories.actions, described.action_space)
    _say_narrowed(actions, described.action_space, say)
    observed = _with_words(described.observation_space, trajectories.observation_space)
    _check_observations(name, trajectories, observed, environment)
    return Fitted(trajectories, _with_symbols(observed, trajectories), actions)


def _with_symbols(space: Space, trajectories: Trajectories) -> Space:
    """A space whose images of bytes are symbols where the data show no greater ones."""

    def fitted(part: Part) -> Space:
        if not isinstance(part.space, ImageSpace) or part.space.dtype != "uint8":
            return part.space
        assert isinstance(trajectories.observations, dict), "images stand in a dict"
        greatest = trajectories.observations[part.path].max()
        return dataclasses.replace(part.space, high=float(SYMBOLS) if greatest <= SYMBOLS else 255.0)

    return map_parts(space, fitted)


def _check_observations(name: str, trajectories: Trajectories, space: Space, environment: EnvironmentSpec) -> None:
    """Refuses discrete numbers and bits that are no values of the environment's space.

    Raises:
        DataError: there are some.
    """
    found = first_no_value(trajectories.numbers, space)
    if found is not None:
        where = f", part {found.part.path!r}," if found.part.path else ""
        raise DataError(
            f"{name} has {found.numbers} in the observation{where} at step {found.step}; {environment} shows values of "
            f"{found.part.space}"
        )


def _with_words(space: Space, recorded: Space | None) -> Space:
    """An environment's observation space, its texts with the vocabulary of the data."""
    if recorded is None:
        return space
    known = {part.path: part.space for part in recorded.parts()}
    return map_parts(space, lambda part: known[part.path] if isinstance(part.space, TextSpace) else part.space)


def _check_shapes(
    name: str, trajectories: Trajectories, environment: EnvironmentSpec, described: Description, way_out: str
) -> None:
    found: list[str] = []
    for what, needed, given, shapes in (
        ("observations", described.observation_space, trajectories.observation_space, trajectories.observation_shapes),
        ("actions", described.action_space, trajectories.action_space, trajectories.actions.shape[1:]),
    ):
        # Texts have as many numbers as the longest one has words.
        if given is None and shapes != needed.packed_shapes():
            found.append(f"{what} of shape {shapes}, the environment {needed.packed_shapes()}")
        found += [] if given is None else differences(needed, _widened(given, needed), what)
    if found:
        raise DataError(f"{name} does not fit {environment}: its {'; its '.join(found)}; {way_out}")


def _widened(given: Space, needed: Space) -> Space:
    """Data's space, its whole numbers as the environment has them: data need not use all values, nor say their kind."""
    if len(given.parts()) != len(needed.parts()):
        return given
    wider = iter(part.space for part in needed.parts())

    def widened(part: Part) -> Space:
        ours, theirs = part.space, next(wider)
        whole = isinstance(ours, Box) and ours.is_whole and not np.isfinite([*ours.low, *ours.high]).any()
        if whole and isinstance(theirs, DiscreteSpace | BinarySpace) and ours.shape == theirs.shape:
            # Arrays of whole numbers do not say whether they are choices; their values are checked.
            return theirs
        if not isinstance(ours, DiscreteSpace) or not isinstance(theirs, DiscreteSpace) or ours.shape != theirs.shape:
            return ours
        (low, high), (least, greatest) = bounds_of(ours), bounds_of(theirs)
        return theirs if (low >= least).all() and (high <= greatest).all() else ours

    return map_parts(given, widened)


def _other_meaning(
    name: str, trajectories: Trajectories, environment: EnvironmentSpec, described: Description
) -> str | None:
    """What is wrong where actions were recorded between other bounds; None where nothing is."""
    space = trajectories.action_space
    if space is None or described.clips_actions:
        return None
    for ours, theirs in zip(
        bounds_of(described.action_space), bounds_of(_widened(space, described.action_space)), strict=True
    ):
        both = np.isfinite(ours) & np.isfinite(theirs)
        if not np.allclose(ours[both], theirs[both], rtol=TOLERANCE, atol=1e-6):
            return (
                f"{name} was recorded with actions from {_words(space)}; those of {environment} are from "
                f"{_words(described.action_space)}, where the same numbers do something else"
            )
    return None


def _check_limit(trajectories: Trajectories, environment: EnvironmentSpec, described: Description) -> None:
    """Refuses an environment without a time limit for data that were cut off by one."""
    cut = trajectories.truncated & ~trajectories.terminated
    if described.limit is None and not described.limits_itself and cut.any():
        longest = int(trajectories.lengths[cut].max())
        raise InvalidInput(
            f"{environment} has no time limit, and {cut.sum()} of the data's {len(cut)} episodes were cut off, after"
            f" up to {longest} steps; pass the limit as --horizon, as --horizon {longest}"
        )


def _inside(
    name: str,
    trajectories: Trajectories,
    environment: EnvironmentSpec,
    described: Description,
    clip: bool,
    say: Callable[[str], object],
) -> Trajectories:
    """The trajectories with actions inside the environment's bounds, clipped only where something says so.

    Raises:
        DataError: actions are outside, and nothing says that their environment clips them; or discrete ones are none.
    """
    space, actions = described.action_space, trajectories.actions
    _check_whole(name, actions, space, environment)
    outside = _outside(actions, space)
    if not outside.any():
        return trajectories
    recorded = trajectories.action_space
    wider = recorded is not None and not _outside(actions, recorded).any()
    if not (clip or described.clips_actions or wider):
        raise DataError(
            f"{name} has actions from {actions.min(0)} to {actions.max(0)}, outside the action space of {environment}, "
            f"from {_words(space)}; if that environment clips what it is given, pass --clip-actions True"
        )
    why = "as asked" if clip else "as a wrapper does" if described.clips_actions else "since wider ones were recorded"
    say(f"data: {outside.sum()} of {len(outside)} actions are clipped into the bounds of {environment.id}, {why}")
    clipped = (np.clip(block, *bounds_of(space)) for _, block in blocks(actions))
    return dataclasses.replace(trajectories, actions=trajectories.storage.array(actions.shape, np.float32, clipped))


def _check_whole(name: str, actions: Floats, space: Space, environment: EnvironmentSpec) -> None:
    """Refuses discrete actions that are no values of their space; those are never clipped.

    Raises:
        DataError: there are some.
    """
    found = first_no_value(actions, space)
    if found is not None:
        low, high = bounds_of(found.part.space)
        raise DataError(
            f"{name} has the action {found.numbers}{found.where} at step {found.step}; {environment} takes whole "
            f"numbers from {low.tolist()} to {high.tolist()}"
        )


def _say_narrowed(actions: Space, space: Space, say: Callable[[str], object]) -> None:
    """Says in which components an agent acts in the data's range alone, since the environment's is far wider."""
    (low, high), (least, greatest) = bounds_of(actions), bounds_of(space)
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


def out_of_bounds(name: str, actions: Floats, space: Space) -> str | None:
    """What is wrong with actions that lie outside the bounds of a space by more than rounding; None where none do."""
    if not _outside(actions, space).any():
        return None
    return f"{name} are from {actions.min(0)} to {actions.max(0)}, outside the action space, from {_words(space)}"


def _outside(actions: Floats, space: Space) -> np.ndarray:
    """Steps whose action is outside the bounds by more than rounding, (steps,) bool."""
    low, high = (bound.astype(np.float64) for bound in bounds_of(space))
    with np.errstate(invalid="ignore"):  # Infinite bounds have no range.
        margin = TOLERANCE * np.minimum(np.nan_to_num(high - low, posinf=1.0), 1.0)
    found = np.empty(len(actions), np.bool_)
    for start, block in blocks(actions):
        wrong = (block < low - margin) | (block > high + margin)
        found[start : start + len(block)] = wrong.reshape(len(block), -1).any(1)
    return found


def _words(space: Space) -> str:
    low, high = bounds_of(space)
    return f"{low} to {high}"
