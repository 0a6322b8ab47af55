"""Reads and writes this project's npz files, which hold episodes of any space in NumPy's arrays.

A file holds, for N steps in E episodes:

| key | array |
|---|---|
| `observations` | (N, ...), those that an action follows; or one array a part under `observations/KEY`, at any depth |
| `actions` | (N, ...), or parts likewise |
| `rewards` | (N,) |
| `terminated`, `truncated` | (E,) of 0 and 1, with `offsets`; or (N,), then an episode ends where either is 1 |
| `offsets` | (E + 1,), the first step of each episode, and N; optional where the flags are (N,) |
| `final_observations` | (E, ...), or parts likewise: the observation after the last action; optional |
| `spaces` | JSON text: `{"observations": SPACE, "actions": SPACE}`, as `to_json` of `aaren_rl.data.spaces`; optional |
| `environment` | JSON text: `{"id": ID, "kwargs": {...}, "max_episode_steps": STEPS or null}`; optional |

Images are (N, height, width, channels) of uint8, choices whole numbers, texts NumPy's unicode strings. The keys of a
Tuple's parts are 0, 1 and so on, and `spaces` says that it is one. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from aaren_rl.data.environment_spec import EnvironmentSpec, file_arguments
from aaren_rl.data.spaces import gymnasium_space, space_from_json, space_of
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    joined,
    leaves_of,
    map_values,
    numbers,
    parsed_of_values,
    require_finite,
    require_steps,
)
from aaren_rl.envs.readers.recorded_spec import spec_from_data
from aaren_rl.envs.readers.zipped_arrays import open_npz, shapes
from aaren_rl.errors import DataError, InvalidInput

OBSERVATIONS, ACTIONS, REWARDS, FINAL = "observations", "actions", "rewards", "final_observations"
TERMINATED, TRUNCATED, OFFSETS = "terminated", "truncated", "offsets"
SPACES, ENVIRONMENT = "spaces", "environment"

_Arrays = Mapping[str, npt.NDArray[Any]]


def parse(path: Path, say: Say) -> Parsed:
    """The episodes of an npz file of this project's form.

    Args:
        path: the file.
        say: called with a line on choices whose number the file does not record.

    Raises:
        DataError: the file is damaged, keys are missing, lengths differ, or values are not finite.
    """
    with open_npz(path) as file:
        sizes = shapes(path)
        require_memory(2 * sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes.values()), path.name)
        data = {key: file[key] for key in sizes}
    rewards = _rewards(data, path)
    offsets, terminated, truncated = _ends(data, len(rewards), path)
    episodes = []
    observations, actions, final = _values(data, len(rewards), len(terminated), path)
    spaces = _recorded_spaces(data, path)
    for number, (start, stop) in enumerate(pairwise(offsets.tolist())):
        here, observed = slice(start, stop), _rows(observations, slice(start, stop))
        if final is not None:
            observed = _joined(observed, _rows(final, slice(number, number + 1)), f"{path}: {FINAL}")
        acted = _rows(actions, here)
        if spaces is not None:
            # The space says which parts are a Tuple's.
            observed, acted = _as_space(observed, spaces[0]), _as_space(acted, spaces[1])
        flags = bool(terminated[number]), bool(truncated[number])
        episodes.append(Episode(observed, acted, rewards[here], *flags))
    environment = _environment(data, path)
    if spaces is not None:
        return Parsed(path.stem, episodes, *spaces, environment, records_spaces=True)
    names = f"{path}: {OBSERVATIONS}", f"{path.name}: {ACTIONS}"
    return parsed_of_values(path.stem, episodes, *names, say, environment)


def write_npz(
    path: Path,
    episodes: Sequence[Episode],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    environment: EnvironmentSpec | None = None,
) -> None:
    """Writes episodes as an npz file of this project's form, whole or not at all.

    Args:
        path: of the file, which is replaced.
        episodes: at least one; all of them with the observation after the last action, or none.
        observation_space: of the observations.
        action_space: of the actions.
        environment: that the episodes are from; None to name none.

    Raises:
        DataError: there are no episodes, some alone have a final observation, the name of a part has a /, or the file
            cannot be written.
    """
    if not episodes:
        raise DataError(f"{path} is to hold no episodes; expected at least one")
    lengths = [len(episode.rewards) for episode in episodes]
    longer = {
        len(next(leaves_of(episode.observations))) - length for episode, length in zip(episodes, lengths, strict=True)
    }
    if longer not in ({0}, {1}):
        raise DataError("some episodes have the observation after their last action; expected it in all or in none")
    spaces = {OBSERVATIONS: space_of(observation_space), ACTIONS: space_of(action_space, image=False)}
    arrays: dict[str, npt.NDArray[Any]] = {
        REWARDS: np.concatenate([np.asarray(episode.rewards) for episode in episodes]),
        OFFSETS: np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        TERMINATED: np.array([episode.terminated for episode in episodes]),
        TRUNCATED: np.array([episode.truncated for episode in episodes]),
        SPACES: np.array(json.dumps({name: space.to_json() for name, space in spaces.items()})),
    }
    observed = [
        _rows(episode.observations, slice(0, length)) for episode, length in zip(episodes, lengths, strict=True)
    ]
    _put(arrays, OBSERVATIONS, observed)
    _put(arrays, ACTIONS, [episode.actions for episode in episodes])
    if longer == {1}:
        _put(arrays, FINAL, [_rows(episode.observations, slice(-1, None)) for episode in episodes])
    if environment is not None:
        arrays[ENVIRONMENT] = np.array(json.dumps(environment.to_json()))
    _save(path, arrays)


def _save(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error}; nothing was changed there") from error
    finally:
        partial.unlink(missing_ok=True)


def _rewards(data: _Arrays, path: Path) -> npt.NDArray[Any]:
    if REWARDS not in data:
        raise DataError(f"{path} lacks {REWARDS!r}; it has {sorted(data)}")
    rewards = _numbers(data, REWARDS, path)
    if rewards.ndim != 1:
        raise DataError(f"{path}: {REWARDS} have the shape {rewards.shape}; expected one number a step")
    require_finite(rewards, f"{path}: {REWARDS}")
    return rewards


def _values(data: _Arrays, steps: int, episodes: int, path: Path) -> tuple[Any, Any, Any]:
    """Observations, actions and final observations, or None for the last."""
    observations, actions = (_tree(data, name, path) for name in (OBSERVATIONS, ACTIONS))
    final = _tree(data, FINAL, path, needed=False)
    _check(observations, steps, f"{path}: {OBSERVATIONS}")
    _check(actions, steps, f"{path}: {ACTIONS}")
    if final is not None:
        _check(final, episodes, f"{path}: {FINAL}")
    return observations, actions, final


def _tree(data: _Arrays, name: str, path: Path, needed: bool = True) -> Any:
    """The arrays under a name, as one array or as a Dict of parts; None where there are none and none are needed."""
    if name in data:
        if both := [key for key in data if key.startswith(f"{name}/")]:
            raise DataError(f"{path} holds {name!r} and {both[0]!r}; expected one array, or parts")
        return _texts_or_numbers(data, name, path)
    found: dict[str, Any] = {}
    for key in data:
        if not key.startswith(f"{name}/"):
            continue
        *above, last = key.removeprefix(f"{name}/").split("/")
        place = found
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise DataError(f"{path}: {key!r} lies below an array")
        place[last] = _texts_or_numbers(data, key, path)
    if not found and needed:
        raise DataError(f"{path} lacks {name!r}; expected this project's keys (docs/data.md), it has {sorted(data)}")
    return found or None


def _texts_or_numbers(data: _Arrays, key: str, path: Path) -> npt.NDArray[Any] | list[str]:
    if data[key].dtype.kind == "U" and data[key].ndim == 1:
        return [str(text) for text in data[key]]
    return _numbers(data, key, path)


def _numbers(data: _Arrays, key: str, path: Path) -> npt.NDArray[Any]:
    return numbers(data[key], f"{path}: {key}")


def _check(values: Any, length: int, name: str) -> None:
    if isinstance(values, dict):
        for key, part in values.items():
            _check(part, length, f"{name}/{key}")
        return
    require_steps(values, length, name)
    if isinstance(values, np.ndarray):
        require_finite(values, name)


def _ends(
    data: _Arrays, steps: int, path: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Offsets of the episodes, and how each one ended."""
    if missing := [key for key in (TERMINATED, TRUNCATED) if key not in data]:
        raise DataError(f"{path} lacks {missing}; it has {sorted(data)}")
    flags = []
    for key in (TERMINATED, TRUNCATED):
        values = _numbers(data, key, path)
        if values.ndim != 1 or not np.isin(values, (0, 1)).all():
            raise DataError(f"{path}: {key} are {values.dtype} of shape {values.shape}; expected one row of 0 and 1")
        flags.append(values.astype(np.bool_))
    if OFFSETS not in data:
        for key, values in zip((TERMINATED, TRUNCATED), flags, strict=True):
            require_steps(values, steps, f"{path}: {key} (without {OFFSETS})")
        last = np.flatnonzero(flags[0] | flags[1])
        if not len(last) or last[-1] != steps - 1:
            raise DataError(f"{path}: the last step is neither terminated nor truncated; expected whole episodes")
        return np.concatenate([[0], last + 1]).astype(np.int64), flags[0][last], flags[1][last]
    offsets = _numbers(data, OFFSETS, path)
    whole = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 1
    if not whole or offsets[0] != 0 or offsets[-1] != steps or (np.diff(offsets.astype(np.int64)) < 1).any():
        raise DataError(f"{path}: {OFFSETS} do not rise from 0 to {steps}, the number of steps, in whole numbers")
    for key, values in zip((TERMINATED, TRUNCATED), flags, strict=True):
        if len(values) != len(offsets) - 1:
            raise DataError(f"{path}: {key} hold {len(values)} for {len(offsets) - 1} episodes; expected one for each")
    return offsets.astype(np.int64), flags[0], flags[1]


def _rows(values: Any, rows: slice) -> Any:
    return map_values(lambda part: part[rows], values)


def _joined(values: Any, more: Any, name: str) -> Any:
    """Rows after rows."""
    if isinstance(values, dict):
        if not isinstance(more, dict) or sorted(more) != sorted(values):
            raise DataError(f"{name} have other parts than {OBSERVATIONS}")
        return {key: _joined(part, more[key], f"{name}/{key}") for key, part in values.items()}
    if isinstance(values, list) and isinstance(more, list):
        return values + more
    if not isinstance(values, np.ndarray) or not isinstance(more, np.ndarray):
        raise DataError(f"{name} have other parts than {OBSERVATIONS}")
    return joined(values, more, name)


def _as_space(values: Any, space: gym.Space[Any]) -> Any:
    """Values whose parts are a tuple where the space is a Tuple; parts that differ are found when they are packed."""
    if isinstance(space, gym.spaces.Tuple) and isinstance(values, dict):
        if sorted(values) != sorted(map(str, range(len(space.spaces)))):
            return values
        return tuple(_as_space(values[str(place)], part) for place, part in enumerate(space.spaces))
    if isinstance(space, gym.spaces.Dict) and isinstance(values, dict):
        return {key: _as_space(part, space[key]) if key in space.spaces else part for key, part in values.items()}
    return values


def _json(data: _Arrays, key: str, path: Path) -> Any:
    try:
        return json.loads(str(data[key]))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {key} are no JSON text: {error}") from error


def _recorded_spaces(data: _Arrays, path: Path) -> tuple[gym.Space[Any], gym.Space[Any]] | None:
    if SPACES not in data:
        return None
    saved = _json(data, SPACES, path)
    try:
        found = [gymnasium_space(space_from_json(saved[name])) for name in (OBSERVATIONS, ACTIONS)]
    except (KeyError, TypeError, InvalidInput) as error:
        raise DataError(f"{path}: {SPACES} cannot be read: {error!r}") from error
    return found[0], found[1]


def _environment(data: _Arrays, path: Path) -> EnvironmentSpec | None:
    if ENVIRONMENT not in data:
        return None
    saved = _json(data, ENVIRONMENT, path)
    try:
        spec = spec_from_data(saved)
    except (TypeError, AttributeError, InvalidInput) as error:
        raise DataError(f"{path}: {ENVIRONMENT} cannot be read: {error}; name one with --env-id") from error
    if spec.package or spec.wrappers or (named := file_arguments(spec.kwargs)):
        what = "a package" if spec.package else "wrappers" if spec.wrappers else f"a file under {named[0]!r}"
        raise DataError(f"{path}: {ENVIRONMENT} names {what}, which data may not; name it yourself with --env-id")
    return spec


def _put(arrays: dict[str, npt.NDArray[Any]], name: str, values: Sequence[Any]) -> None:
    """Adds the values of all episodes, one array for each part."""
    first = values[0]
    if isinstance(first, Mapping | tuple):
        keys: Sequence[Any] = list(first) if isinstance(first, Mapping) else range(len(first))
        for key in keys:
            if "/" in str(key):
                raise DataError(
                    f"{name} have the part {key!r}; an npz file has a / between the names of parts: rename the part"
                )
            _put(arrays, f"{name}/{key}", [value[key] for value in values])
    else:
        arrays[name] = np.concatenate([np.asarray(value) for value in values])
