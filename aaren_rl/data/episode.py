"""One episode as anyone's arrays, and the checks before episodes are packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from aaren_rl.data.packed import arrays_of, first_of, shapes_of
from aaren_rl.data.spaces import DiscreteSpace, Space, space_of_values, with_vocabularies
from aaren_rl.data.spaces.image import shows_images
from aaren_rl.data.spaces.space import refuse_inexact as check_exact
from aaren_rl.errors import DataError, InvalidInput

Floats: TypeAlias = npt.NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
"""Largest number that float32 holds."""

WAY_OUT = "mend the value, or leave the episode out"
"""What to do about a value that is refused."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, recorded in an environment or made from anyone's NumPy arrays.

    Observations and actions are as the environment has them, stacked over the steps: an array; a mapping or a tuple of
    such for Dict and Tuple spaces; a sequence of str for texts.

    Attributes:
        observations: (T, *observation shape), or (T + 1, *observation shape) with the one after the last action.
        actions: (T, *action shape).
        rewards: (T,).
        terminated: True if the episode ended in a state that the task calls final.
        truncated: True if the episode was cut off, by a time limit for instance.
    """

    observations: Any
    actions: Any
    rewards: npt.NDArray[Any]
    terminated: bool = False
    truncated: bool = False


def spaces_of(
    episodes: Sequence[Episode], observation_space: Space | None, action_space: Space | None
) -> tuple[Space | None, Space | None]:
    """The spaces to pack episodes by, their texts with the words of all episodes; None for mere numbers.

    Args:
        episodes: at least one.
        observation_space: of the observations; None for what the first episode shows.
        action_space: of the actions; None for what all episodes show. Whole numbers, one a step, are
            discrete from 0 on.

    Raises:
        DataError: the observations are nothing that has a space.
    """
    try:
        if observation_space is None and not _is_numbers(episodes[0].observations):
            observation_space = space_of_values(episodes[0].observations)
    except InvalidInput as error:
        raise DataError(f"observations of episode 0: {error}") from error
    if observation_space is not None:
        try:
            observation_space = with_vocabularies(observation_space, (episode.observations for episode in episodes))
        except InvalidInput as error:
            raise DataError(f"observations: {error}") from error
    if action_space is None:
        action_space = _discrete_actions(episodes)
    return observation_space, action_space


def _is_numbers(values: Any) -> bool:
    """True for an array of numbers that is no image; what is no array at all is refused later, with its place."""
    if isinstance(values, Mapping | tuple):
        return False
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        return True
    texts = array.dtype.kind in "US" or (array.dtype == object and all(isinstance(one, str) for one in array.ravel()))
    return not texts and not shows_images(array)


def _discrete_actions(episodes: Sequence[Episode]) -> DiscreteSpace | None:
    most = -1
    for number, episode in enumerate(episodes):
        actions = episode.actions
        if isinstance(actions, Mapping | tuple) or np.ndim(actions) != 1 or np.asarray(actions).dtype.kind not in "iub":
            return None
        if len(actions):
            most = max(most, int(np.max(actions)))
            if int(np.min(actions)) < 0:
                raise DataError(
                    f"actions of episode {number} are whole numbers from {np.min(actions)}; expected numbers from 0 "
                    "for discrete actions, floats for continuous ones, or their space in action_space"
                )
    return DiscreteSpace((), (most + 1,), (0,)) if most >= 0 else None


def packed(number: int, episode: Episode, observation_space: Space | None, action_space: Space | None) -> Episode:
    """The episode with packed values of its spaces, of lengths that fit; mere numbers stay as they are.

    Raises:
        DataError: they are something else.
    """
    rewards = _numbers(number, "rewards", episode.rewards)
    observations = _packed(number, "observations", episode.observations, observation_space)
    actions = _packed(number, "actions", episode.actions, action_space)
    first = first_of(observations)
    if min(first.ndim, actions.ndim) < 1 or rewards.ndim != 1:
        raise DataError(
            f"episode {number} has observations {first.shape}, actions {actions.shape} and rewards "
            f"{rewards.shape}; expected (T or T + 1, *observation shape), (T, *action shape) and (T,)"
        )
    steps = len(rewards)
    if steps < 1 or len(actions) != steps or len(first) not in (steps, steps + 1):
        raise DataError(
            f"episode {number} has {len(first)} observations, {len(actions)} actions and {steps} rewards; "
            "expected T or T + 1, T and T, with T at least 1"
        )
    for name in ("terminated", "truncated"):
        if np.shape(getattr(episode, name)):
            raise DataError(
                f"{name} of episode {number} has shape {np.shape(getattr(episode, name))}; expected one bool, which "
                "says how the episode ended"
            )
    return Episode(observations, actions, rewards, bool(episode.terminated), bool(episode.truncated))


def _packed(number: int, name: str, values: Any, space: Space | None) -> Any:
    if space is None:
        return _numbers(number, name, values)
    try:
        found = space.pack(values, batch=1)
    except InvalidInput as error:
        raise DataError(f"{name} of episode {number} do not fit {name[:-1]}_space: {error}") from error
    for part in arrays_of(found).values():
        refuse_inexact(f"{name} of episode {number}", part)
    return found


def _numbers(number: int, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} of episode {number} are not an array: {error}; expected numbers") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} of episode {number} have the dtype {array.dtype}; expected numbers")
    refuse_inexact(f"{name} of episode {number}", array)
    return array


def refuse_inexact(name: str, array: npt.NDArray[Any]) -> None:
    """Refuses whole numbers that float32 does not hold.

    Raises:
        DataError: there are some.
    """
    try:
        check_exact(array)
    except InvalidInput as error:
        raise DataError(f"{name} are {error}") from error


def check_alike(number: int, episode: Episode, first: Episode) -> None:
    """Makes sure that a packed episode can stand beside the first one.

    Raises:
        DataError: shapes differ, or one of the two alone has a final observation.
    """
    for name in ("observations", "actions"):
        given, expected = (shapes_of(getattr(one, name), 1) for one in (episode, first))
        if given != expected:
            raise DataError(
                f"{name} of episode {number} have shape {given} per step; expected {expected}, as episode 0"
            )
    if has_final(episode) != has_final(first):
        raise DataError(
            f"episode {number} has {len(first_of(episode.observations))} observations for {len(episode.rewards)} "
            f"steps, episode 0 has {len(first_of(first.observations))} for {len(first.rewards)}; expected the "
            "observation after the last action in all episodes (T + 1 observations) or in none (T)"
        )


def refuse_beyond_float32(episodes: list[Episode]) -> None:
    """Names the first finite value of packed episodes that float32 does not hold.

    Raises:
        DataError: there is one.
    """
    for number, episode in enumerate(episodes):
        for name in ("observations", "actions", "rewards"):
            for values in arrays_of(getattr(episode, name)).values():
                beyond = np.isfinite(values) & ~np.isfinite(float32(name, values))
                if beyond.any():
                    step = int(np.flatnonzero(beyond.reshape(len(values), -1).any(1))[0])
                    found = not_finite(np.where(beyond[step], values[step], 0.0))
                    raise DataError(f"{name} of episode {number} hold {found} at step {step}; {WAY_OUT}")


def has_final(episode: Episode) -> bool:
    """True if the episode has the observation after its last action."""
    return len(first_of(episode.observations)) > len(episode.rewards)


def float32(name: str, values: npt.ArrayLike) -> Floats:
    """The values as contiguous float32; those beyond it become infinite.

    Raises:
        DataError: they are no array of numbers.
    """
    try:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} are not an array of numbers: {error}") from error


def not_finite(values: npt.NDArray[Any]) -> str:
    """What keeps the values of a row from being finite float32 numbers, and in which component."""
    with np.errstate(over="ignore"):
        place = np.flatnonzero(~np.isfinite(values.astype(np.float32)))[0]
    value = values.ravel()[place]
    component = f" in component {place}" if values.ndim else ""
    if np.isnan(value):
        return f"a NaN{component}"
    if np.isinf(value):
        # Readers convert before, so a float32 infinity may have been a number in a file.
        beyond = f", or one beyond float32 ({LARGEST:.2g})," if values.dtype == np.float32 else ""
        return f"an infinite value{beyond}{component}"
    return f"{value:.3g}{component}, beyond float32 ({LARGEST:.2g}),"
