"""One episode as anyone's arrays, and the checks before episodes are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import DataError

Floats: TypeAlias = npt.NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
"""Largest number that float32 holds."""

WAY_OUT = "mend the value, or leave the episode out"
"""What to do about a value that is refused."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, recorded in an environment or made from anyone's NumPy arrays.

    Attributes:
        observations: (T, *observation shape), or (T + 1, *observation shape) with the one after the last action.
        actions: (T, *action shape).
        rewards: (T,).
        terminated: True if the episode ended in a state that the task calls final.
        truncated: True if the episode was cut off, by a time limit for instance.
    """

    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[Any]
    terminated: bool = False
    truncated: bool = False


def checked(number: int, episode: Episode) -> Episode:
    """The episode with arrays of numbers for its fields, of lengths that fit.

    Raises:
        DataError: they are something else.
    """
    names = ("observations", "actions", "rewards")
    observations, actions, rewards = (_numbers(number, name, getattr(episode, name)) for name in names)
    if min(observations.ndim, actions.ndim) < 1 or rewards.ndim != 1:
        raise DataError(
            f"episode {number} has observations {observations.shape}, actions {actions.shape} and rewards "
            f"{rewards.shape}; expected (T or T + 1, *observation shape), (T, *action shape) and (T,)"
        )
    steps = len(rewards)
    if steps < 1 or len(actions) != steps or len(observations) not in (steps, steps + 1):
        raise DataError(
            f"episode {number} has {len(observations)} observations, {len(actions)} actions and {steps} rewards; "
            "expected T or T + 1, T and T, with T at least 1"
        )
    for name in ("terminated", "truncated"):
        if np.shape(getattr(episode, name)):
            raise DataError(
                f"{name} of episode {number} has shape {np.shape(getattr(episode, name))}; expected one bool, which "
                "says how the episode ended"
            )
    if actions.ndim == 1 and actions.dtype.kind in "iub":
        raise DataError(
            f"actions of episode {number} are {actions.dtype} numbers, one a step, so they seem discrete; this version "
            "learns continuous actions (pass floats if they are)"
        )
    return Episode(observations, actions, rewards, bool(episode.terminated), bool(episode.truncated))


def _numbers(number: int, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} of episode {number} are not an array: {error}; expected numbers") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} of episode {number} have the dtype {array.dtype}; expected numbers")
    return array


def check_alike(number: int, episode: Episode, first: Episode) -> None:
    """Makes sure that an episode can be packed with the first one.

    Raises:
        DataError: shapes differ, or one of the two alone has a final observation.
    """
    for name in ("observations", "actions"):
        given, expected = getattr(episode, name).shape[1:], getattr(first, name).shape[1:]
        if given != expected:
            raise DataError(
                f"{name} of episode {number} have shape {given} per step; expected {expected}, as episode 0"
            )
    if has_final(episode) != has_final(first):
        raise DataError(
            f"episode {number} has {len(episode.observations)} observations for {len(episode.rewards)} steps, episode "
            f"0 has {len(first.observations)} for {len(first.rewards)}; expected the observation after the last action "
            "in all episodes (T + 1 observations) or in none (T)"
        )


def refuse_beyond_float32(episodes: list[Episode]) -> None:
    """Names the first finite value that float32 does not hold.

    Raises:
        DataError: there is one.
    """
    for number, episode in enumerate(episodes):
        for name in ("observations", "actions", "rewards"):
            values = getattr(episode, name)
            beyond = np.isfinite(values) & ~np.isfinite(float32(name, values))
            if beyond.any():
                step = int(np.flatnonzero(beyond.reshape(len(values), -1).any(1))[0])
                found = not_finite(np.where(beyond[step], values[step], 0.0))
                raise DataError(f"{name} of episode {number} hold {found} at step {step}; {WAY_OUT}")


def has_final(episode: Episode) -> bool:
    """True if the episode has the observation after its last action."""
    return len(episode.observations) > len(episode.rewards)


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
