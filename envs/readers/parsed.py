"""What a reader finds in a file, with every value as it was, and the spaces that values show where none is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, Space, space_of
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.readers.recording import Recording
from aaren_rl.errors import DataError, InvalidInput

Say: TypeAlias = Callable[[str], object]
"""Takes a line on what is made up, left out or chosen."""
Values: TypeAlias = "npt.NDArray[Any] | list[str] | Mapping[str, Values] | tuple[Values, ...]"
"""Observations or actions of an episode as an environment has them, stacked over its steps."""

_Leaf: TypeAlias = "Callable[[list[npt.NDArray[Any]], str], gym.Space[Any]]"
"""Takes the arrays of all episodes and their name."""

MOST_CHOICES = 10_000
"""Most values of a discrete action; each takes a feature of the model."""


@dataclass(frozen=True)
class Parsed:
    """The whole episodes of a dataset.

    Attributes:
        id: of the dataset.
        episodes: in the data's order.
        observation_space: recorded, or what the values show.
        action_space: likewise.
        environment: that the data name; None for none.
        records_spaces: True if the spaces are recorded; False if they are what the values show.
    """

    id: str
    episodes: list[Episode]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    environment: EnvironmentSpec | None = None
    records_spaces: bool = False


def parsed_of_values(
    dataset_id: str,
    episodes: Sequence[Episode],
    observations: str,
    actions: str,
    say: Say,
    environment: EnvironmentSpec | None = None,
) -> Parsed:
    """A dataset that records no spaces: they are what its values show.

    Args:
        dataset_id: of the dataset.
        episodes: at least one; choices that are stored as a column become one number a step.
        observations: name of the observations, for messages, as "maze.npz: observations".
        actions: likewise.
        say: called with a line on choices, since the environment may have more.
        environment: that the data name; None for none.

    Raises:
        DataError: episodes differ in parts, shapes or dtypes, values are no numbers, or actions too large for choices.
    """
    found = [replace(episode, actions=map_values(without_column, episode.actions)) for episode in episodes]
    return Parsed(
        dataset_id,
        found,
        observation_space_of([episode.observations for episode in found], observations),
        action_space_of([episode.actions for episode in found], actions, say),
        environment,
    )


def recording(parsed: Parsed, name: str) -> Recording:
    """The dataset packed for training.

    Args:
        parsed: what was read.
        name: of the file or folder, for messages.

    Raises:
        DataError: there is no episode, or values do not fit their space or are not finite.
        InvalidInput: a space is of a type that no model takes.
    """
    try:
        spaces = recorded_spaces(parsed)
    except InvalidInput as error:
        raise InvalidInput(f"{name} cannot be learned from: {error}") from error
    try:
        trajectories = Trajectories.from_episodes(parsed.episodes, *spaces)
    except (DataError, InvalidInput) as error:
        raise DataError(f"{name}: {error}") from error
    return Recording(parsed.id, trajectories, parsed.environment, None)


def recorded_spaces(parsed: Parsed) -> tuple[Space | None, Space | None]:
    """The spaces of observations and actions; None for mere numbers, whose bounds nobody recorded.

    Raises:
        InvalidInput: a space is of a type that no model takes.
    """
    observation_space, action_space = space_of(parsed.observation_space), space_of(parsed.action_space, image=False)
    if parsed.records_spaces:
        return observation_space, action_space
    return (
        None if isinstance(observation_space, Box) else observation_space,
        None if isinstance(action_space, Box) else action_space,
    )


def observation_space_of(episodes: Sequence[Values], name: str) -> gym.Space[Any]:
    """The space of the observations of all episodes, where the data record none.

    Arrays of numbers are a Box of their dtype without bounds, bytes one from 0 to 255, bools a MultiBinary, texts a
    Text, mappings a Dict, tuples a Tuple.

    Args:
        episodes: observations of each episode.
        name: of the values, for messages, as "maze.npz: observations".

    Raises:
        DataError: episodes differ in parts, shapes or dtypes, or values are no numbers.
    """
    return _space_of(episodes, name, _observed)


def action_space_of(episodes: Sequence[Values], name: str, say: Say) -> gym.Space[Any]:
    """The space of the actions of all episodes, where the data record none.

    Floats are a Box without bounds. Whole numbers are choices, Discrete or MultiDiscrete, up to the greatest that the
    data hold; bools are choices of two.

    Args:
        episodes: actions of each episode.
        name: of the actions, for messages.
        say: called with a line on choices, since the environment may have more.

    Raises:
        DataError: episodes differ in parts, shapes or dtypes, or actions are no numbers, or too large to be choices.
    """
    return _space_of(episodes, name, lambda arrays, name: _acted(arrays, name, say))


def _space_of(episodes: Sequence[Values], name: str, leaf: _Leaf) -> gym.Space[Any]:
    first = episodes[0]
    if isinstance(first, Mapping):
        for number, values in enumerate(episodes):
            given = sorted(values) if isinstance(values, Mapping) else "no parts"
            if given != sorted(first):
                raise DataError(f"{name} of episode {number} have the parts {given}; episode 0 has {sorted(first)}")
        return gym.spaces.Dict({key: _space_of(_part(episodes, key), f"{name}/{key}", leaf) for key in first})
    if isinstance(first, tuple):
        for number, values in enumerate(episodes):
            if not isinstance(values, tuple) or len(values) != len(first):
                raise DataError(f"{name} of episode {number} have other parts than the {len(first)} of episode 0")
        places = range(len(first))
        return gym.spaces.Tuple([_space_of(_place(episodes, at), f"{name}/{at}", leaf) for at in places])
    if isinstance(first, list):
        return _text([text for values in episodes for text in _texts(values)])
    return leaf(_alike(episodes, name), name)


def _observed(arrays: list[npt.NDArray[Any]], name: str) -> gym.Space[Any]:
    shape, dtype = arrays[0].shape[1:], arrays[0].dtype
    if dtype == np.uint8:
        return gym.spaces.Box(0, 255, shape, np.uint8)
    if dtype.kind == "b":
        return gym.spaces.MultiBinary(shape) if shape else gym.spaces.Discrete(2)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return gym.spaces.Box(limits.min, limits.max, shape, dtype.type)
    return gym.spaces.Box(-np.inf, np.inf, shape, dtype.type)


def _acted(arrays: list[npt.NDArray[Any]], name: str, say: Say) -> gym.Space[Any]:
    shape, dtype = arrays[0].shape[1:], arrays[0].dtype
    if dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, shape, dtype.type)
    if dtype.kind == "b":
        return gym.spaces.MultiDiscrete(np.full(shape, 2)) if shape else gym.spaces.Discrete(2)
    bounds = [bound for array in arrays if array.size for bound in (int(array.min()), int(array.max()))]
    # Compared before they are cast: int64 does not hold all of uint64.
    wide = bool(bounds) and max(max(bounds), -min(bounds)) > MOST_CHOICES
    least = counts = np.zeros(shape, np.int64)
    if not wide:
        least = np.minimum(0, np.min([array.min(0).astype(np.int64) for array in arrays], axis=0))
        counts = np.max([array.max(0).astype(np.int64) for array in arrays], axis=0) - least + 1
    if wide or (counts.size and counts.max() > MOST_CHOICES):
        raise DataError(
            f"{name} are whole numbers from {min(bounds)} to {max(bounds)}; expected at most {MOST_CHOICES} choices, "
            "or floats"
        )
    say(f"data: {name} are whole numbers, so they are choices: {_choices(least, counts)}, as far as the data show")
    if shape:
        return gym.spaces.MultiDiscrete(counts, start=least)
    return gym.spaces.Discrete(int(counts), start=int(least))


def map_values(function: Callable[[Any], Any], values: Values) -> Any:
    """Values with a function of each array, or list of texts, in its place."""
    if isinstance(values, Mapping):
        return {key: map_values(function, part) for key, part in values.items()}
    if isinstance(values, tuple):
        return tuple(map_values(function, part) for part in values)
    return function(values)


def leaves_of(values: Values) -> Iterator[npt.NDArray[Any] | list[str]]:
    """The arrays, and lists of texts, that values are made of."""
    if isinstance(values, Mapping | tuple):
        for part in values.values() if isinstance(values, Mapping) else values:
            yield from leaves_of(part)
    else:
        yield values


def bytes_of_episode(episode: Episode) -> int:
    """Bytes of an episode's values, in UTF-8 for texts of plain letters."""
    leaves = [*leaves_of(episode.observations), *leaves_of(episode.actions), episode.rewards]
    return sum(leaf.nbytes if isinstance(leaf, np.ndarray) else sum(map(len, leaf)) for leaf in leaves)


def without_column(actions: Any) -> Any:
    """Choices of shape (steps, 1) as (steps,): files often store one choice a step as a column."""
    column = isinstance(actions, np.ndarray) and is_choice(actions.dtype) and actions.shape[1:] == (1,)
    return actions[:, 0] if column else actions


def is_choice(dtype: np.dtype[Any]) -> bool:
    """True for actions of whole numbers or bools."""
    return dtype.kind in "iub"


def joined(values: npt.NDArray[Any], final: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Observations of an episode, and after them its final one.

    Args:
        values: (steps, *shape).
        final: (1, *shape).
        name: of the final observation, for messages.

    Raises:
        DataError: their shapes or dtypes differ.
    """
    if values.shape[1:] != final.shape[1:] or values.dtype != final.dtype:
        raise DataError(
            f"{name} are {final.dtype} of shape {final.shape[1:]}; expected {values.dtype} of shape "
            f"{values.shape[1:]}, as the other observations: write both alike"
        )
    return np.concatenate([values, final])


def require_finite(values: npt.NDArray[Any], name: str) -> None:
    """Refuses a NaN or an infinite value of one episode, with its step.

    Raises:
        DataError: there is one.
    """
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    if bad.any():
        step = int(np.flatnonzero(bad.reshape(len(values), -1).any(1))[0])
        value = np.asarray(values[step])[np.asarray(bad[step])].ravel()[0]
        raise DataError(f"{name} hold {value} at step {step}; mend the value, or leave the episode out")


def require_steps(values: npt.NDArray[Any] | list[str], steps: int, name: str) -> None:
    """Refuses values that are not one for each step.

    Raises:
        DataError: they are not.
    """
    if np.ndim(values) < 1 or len(values) != steps:
        found = len(values) if np.ndim(values) else "one value"
        raise DataError(f"{name} hold {found} for {steps} steps; expected one for each")


def numbers(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """An array of numbers or bools.

    Raises:
        DataError: it holds something else.
    """
    if values.dtype.kind not in "fiub":
        raise DataError(f"{name} have the dtype {values.dtype}; expected numbers")
    return values


def _part(episodes: Sequence[Values], key: str) -> list[Values]:
    return [values[key] for values in episodes if isinstance(values, Mapping)]


def _place(episodes: Sequence[Values], place: int) -> list[Values]:
    return [values[place] for values in episodes if isinstance(values, tuple)]


def _alike(episodes: Sequence[Any], name: str) -> list[npt.NDArray[Any]]:
    arrays = [np.asarray(values) for values in episodes]
    first = arrays[0]
    for number, array in enumerate(arrays):
        numbers(array, f"{name} of episode {number}")
        if array.ndim < 1 or array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise DataError(
                f"{name} of episode {number} are {array.dtype} of shape {array.shape[1:]} per step; episode 0 has "
                f"{first.dtype} of shape {first.shape[1:]}"
            )
    return arrays


def _texts(values: Values) -> list[str]:
    return values if isinstance(values, list) else []


def _text(texts: list[str]) -> gym.spaces.Text:
    letters = frozenset("".join(set(texts))) | frozenset(map(chr, range(32, 127)))
    return gym.spaces.Text(max(1, *map(len, texts)) if texts else 1, min_length=0, charset=letters)


def _choices(least: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> str:
    if counts.ndim == 0:
        return f"{least} to {least + counts - 1}"
    return f"counts {counts.tolist()} from {least.tolist()}"
