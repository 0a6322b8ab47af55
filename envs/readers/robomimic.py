"""Reads robomimic's data (Mandlekar et al. 2021, arXiv 2108.03298): HDF5 files of demonstrations by key."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers.hdf5 import bytes_of, open_checked, require_memory
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    Values,
    joined,
    numbers,
    parsed_of_values,
    require_finite,
    require_steps,
)
from aaren_rl.errors import DataError, InvalidInput

FLAT = "flat"
"""The one key of observations that are a vector, as robomimic's conversion of D4RL writes them."""

_DEMO = re.compile(r"demo_(\d+)")


def parse(path: Path, say: Say, part: str | None = None) -> Parsed:
    """The demonstrations of a robomimic file.

    Observations are a Dict of all keys under "obs"; cameras are images. The final observation is the last one under
    "next_obs". An episode is terminated where its last "dones" is 1, as robomimic has it, else truncated. Rewards that
    are missing count as 0, as in robomimic's loader. "env_args" is JSON text that names the environment; it is shown,
    and never used to make one.

    Args:
        path: the file.
        say: called with a line on what is made up, left out or chosen.
        part: name of a list of demonstrations under "mask", as "train"; None for all demonstrations.

    Raises:
        DataError: the file is damaged, keys are missing, lengths or shapes differ, or values are not finite.
        InvalidInput: the file has no such part.
    """
    with open_checked(path) as file:
        try:
            demos = _demos(file, path, part)
            require_memory(
                2 * sum(bytes_of(demo["obs"]) + demo["actions"].nbytes for demo in demos.values()), path.name
            )
            episodes = [_episode(name, demo, path) for name, demo in demos.items()]
            _say_what_is_left(file, demos, path, part, say)
        except (OSError, RuntimeError, KeyError, UnicodeError) as error:
            raise DataError(f"{path} cannot be read: {error}; it may be damaged: fetch it again") from error
    return parsed_of_values(path.stem, episodes, f"{path}: obs", f"{path.name}: actions", say)


def _demos(file: h5py.File, path: Path, part: str | None) -> dict[str, h5py.Group]:
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        raise DataError(f"{path} has no group 'data'; expected robomimic's data/demo_0 and so on")
    names = sorted(
        (name for name in map(str, data) if _DEMO.fullmatch(name)), key=lambda name: int(name.rpartition("_")[2])
    )
    if part is not None:
        masks = _masks(file)
        if part not in masks:
            known = f"expected one of {', '.join(sorted(masks))}" if masks else "it has no group 'mask'"
            raise InvalidInput(f"{path} has no part {part!r}; {known}")
        chosen = [name.decode() if isinstance(name, bytes) else str(name) for name in masks[part][()]]
        if unknown := [name for name in chosen if name not in names]:
            raise DataError(f"{path}: the part {part!r} lists {unknown[0]!r}, which is not among its demonstrations")
        names = [name for name in names if name in set(chosen)]
    if not names:
        raise DataError(f"{path} holds no demonstration; expected data/demo_0 and so on")
    demos = {name: data[name] for name in names}
    for name, demo in demos.items():
        if not isinstance(demo, h5py.Group) or not isinstance(demo.get("actions"), h5py.Dataset):
            raise DataError(f"{path}: data/{name} has no actions")
        if not isinstance(demo.get("obs"), h5py.Group) or not len(demo["obs"]):
            why = "it holds simulator states: make observations with robomimic's dataset_states_to_obs.py"
            raise DataError(f"{path}: data/{name} has no obs; {why if 'states' in demo else 'expected data/*/obs/KEY'}")
    return demos


def _masks(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Lists of demonstrations by their names."""
    group = file.get("mask")
    parts = group.items() if isinstance(group, h5py.Group) else ()
    return {str(name): part for name, part in parts if isinstance(part, h5py.Dataset)}


def _episode(name: str, demo: h5py.Group, path: Path) -> Episode:
    where = f"{path}: data/{name}"
    actions = _array(demo, "actions", where)
    steps = len(actions)
    if actions.ndim < 1 or not steps:
        raise DataError(f"{where}/actions have the shape {actions.shape}; expected (steps, numbers)")
    require_finite(actions, f"{where}/actions")
    observations = {key: _observed(demo, key, steps, where) for key in map(str, demo["obs"])}
    rewards, dones = (
        _array(demo, key, where).reshape(-1) if key in demo else np.zeros(steps, dtype=np.float32)
        for key in ("rewards", "dones")
    )
    for key, values in (("rewards", rewards), ("dones", dones)):
        require_steps(values, steps, f"{where}/{key}")
        require_finite(values, f"{where}/{key}")
    terminated = bool(dones[-1] > 0)
    whole: Values = observations[FLAT] if set(observations) == {FLAT} else observations
    return Episode(whole, actions, rewards, terminated, not terminated)


def _observed(demo: h5py.Group, key: str, steps: int, where: str) -> npt.NDArray[Any]:
    """Observations of one key, with the final one where the file has it."""
    values = _array(demo, f"obs/{key}", where)
    require_steps(values, steps, f"{where}/obs/{key}")
    if isinstance(demo.get("next_obs"), h5py.Group):
        if key not in demo["next_obs"]:
            raise DataError(f"{where}/next_obs has no {key!r}, which obs has")
        following = _dataset(demo, f"next_obs/{key}", where)
        if following.shape != values.shape:
            raise DataError(f"{where}/next_obs/{key} has the shape {following.shape}; expected {values.shape}, as obs")
        values = joined(values, following[-1:], f"{where}/next_obs/{key}")
    require_finite(values, f"{where}/obs/{key}")
    return values


def _array(demo: h5py.Group, key: str, where: str) -> npt.NDArray[Any]:
    return numbers(_dataset(demo, key, where)[()], f"{where}/{key}")


def _dataset(demo: h5py.Group, key: str, where: str) -> h5py.Dataset:
    found = demo[key]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{where}/{key} is a group; expected an array with one entry per step")
    return found


def _say_what_is_left(file: h5py.File, demos: Mapping[str, h5py.Group], path: Path, part: str | None, say: Say) -> None:
    if without := [name for name, demo in demos.items() if "rewards" not in demo]:
        say(f"data: {path.name}: {len(without)} of {len(demos)} demonstrations have no rewards, which count as 0")
    if part is None and (masks := sorted(_masks(file))):
        say(f"data: {path.name}: all {len(demos)} demonstrations are read; its parts are {', '.join(masks)}")
    if named := _environment(file["data"].attrs.get("env_args")):
        say(f"data: {path.name}: recorded in {named}; name an environment of Gymnasium's with --env-id to act in one")


def _environment(text: Any) -> str:
    """What "env_args" name, in words; empty where they are no JSON object."""
    try:
        named = json.loads(text)["env_name"]
    except (TypeError, ValueError, KeyError, RecursionError):
        return ""
    return reprlib.repr(named)
