"""Writes datasets of any format that is read as Minari datasets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_dataset import parse_dataset_id

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.packed import first_of
from aaren_rl.data.spaces import differences, gymnasium_space
from aaren_rl.data.trajectories import Episode
from aaren_rl.envs import minari_writer, sources
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.environments import Description, describe
from aaren_rl.envs.fitting import out_of_bounds
from aaren_rl.envs.readers import d4rl, lerobot, minari, rlds, robomimic
from aaren_rl.envs.readers.detect import READERS
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.envs.readers.minari_metadata import LONGEST_NAME
from aaren_rl.envs.readers.parsed import Parsed, bytes_of_episode, leaves_of, map_values, recorded_spaces
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.console import progress, say
from aaren_rl.folders import whole_folder

SUFFIX = "no observation after the last action is known: the last one stands in its place"
"""Said where Minari's T + 1 observations are made up."""


def convert(
    source: str,
    dataset_id: str,
    choice: EnvironmentChoice | None = None,
    part: str | None = None,
    videos: bool = True,
    overwrite: bool = False,
    last_steps: bool = False,
    show_progress: bool = True,
) -> Path:
    """Writes a dataset under the local Minari root.

    The folder takes its name only once it is whole. Values are written as they are read (D4RL's as float32); images are
    compressed without loss.
    Minari keeps the observation after the last action: where the data have none, the last one is repeated.

    Args:
        source: a name of the catalogue, or a path, as `aaren_rl.envs.sources.locate` takes them.
        dataset_id: of the new dataset, as "mine/cube-v0".
        choice: the environment to record; None for the one that the data name, where it can be made.
        part: which part of the data to write, a robomimic mask or a split of RLDS.
        videos: False leaves out the videos of LeRobot's data.
        overwrite: replace a dataset of this id.
        last_steps: keep the actions and rewards of the last steps of RLDS, which then have no final observations.
        show_progress: show a progress bar.

    Returns:
        The folder of the dataset.

    Raises:
        InvalidInput: the id is none, the data are Minari's already, or an option does not fit their format.
        DataError: the data are damaged or do not fit the environment, the dataset exists already, or it cannot be
            written.
    """
    choice = choice or EnvironmentChoice()
    folder = free_folder(dataset_id, overwrite)
    found = sources.locate(source, "auto", say)
    parsed = _read(source, found, choice, part, videos, last_steps)
    known = next(iter(found.environments), parsed.environment)
    environment, parsed = _fitted(parsed, choice, known)
    episodes, made_up = _with_final(parsed)
    steps = sum(len(episode.rewards) for episode in episodes)
    say(f"data: {parsed.id} ({found.source}), {len(episodes)} episodes, {steps} steps")
    described = f"Converted from {found.path.name} ({found.source}) by aaren-rl"
    described += f"; {SUFFIX}." if made_up else "."
    bar: AbstractContextManager[Callable[[int], object]] = (
        progress(len(episodes), "episode", dataset_id) if show_progress else nullcontext(lambda done: None)
    )
    with one_at_a_time(folder, say), bar as advance, whole_folder(folder, DataError, replace=overwrite) as partial:
        spaces, size = (parsed.observation_space, parsed.action_space), sum(map(bytes_of_episode, episodes))
        # The file is made in memory, and copied once.
        require_memory(2 * size, dataset_id)
        # How far images can be compressed is not known before.
        if not minari_writer.has_images(spaces[0]):
            minari_writer.require_space(folder.parent, size)
        minari_writer.write_episodes(partial, dataset_id, *spaces, episodes, "unknown", described, environment, advance)
        minari_writer.describe_namespaces(dataset_id, "Datasets converted by aaren-rl.")
    return folder


def check_id(dataset_id: str) -> None:
    """Checks that a new dataset can have an id.

    Raises:
        InvalidInput: Minari would not read it.
    """
    expected = (
        "expected NAME-vN of letters, digits, - and _, and perhaps folders in front, which Minari wants to be two "
        "letters or more, as mine/cube-v0"
    )
    if len(dataset_id) > LONGEST_NAME or ".." in dataset_id or dataset_id.startswith(("/", "~")):
        raise InvalidInput(f"{dataset_id[:LONGEST_NAME]!r} is no id of a Minari dataset; {expected}")
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        # Minari itself fails on an id without a version.
        raise InvalidInput(f"{dataset_id!r} is no id of a Minari dataset; {expected}") from error


def free_folder(dataset_id: str, overwrite: bool, option: str = "--overwrite") -> Path:
    """The folder of a new dataset.

    Args:
        dataset_id: of the dataset.
        overwrite: takes a folder that is there already.
        option: that asks for this, for the message.

    Raises:
        InvalidInput: no dataset can have the id.
        DataError: the dataset exists already.
    """
    check_id(dataset_id)
    folder = minari.local_folder(dataset_id)
    if folder.exists() and not overwrite:
        raise DataError(f"{dataset_id} exists already at {folder}; pass {option} to replace it")
    return folder


def _read(
    name: str, found: sources.Place, choice: EnvironmentChoice, part: str | None, videos: bool, last_steps: bool
) -> Parsed:
    if found.source not in READERS:
        raise InvalidInput(f"{name} is a Minari dataset already, at {found.path}; there is nothing to convert")
    if part is not None and found.source not in ("robomimic", "rlds"):
        raise InvalidInput(f"{name} is of the format {found.source}, which has no parts; leave out --part {part}")
    if not videos and found.source != "lerobot":
        raise InvalidInput(f"{name} is of the format {found.source}, which has no videos; leave out --without-videos")
    if last_steps and found.source != "rlds":
        raise InvalidInput(
            f"{name} is of the format {found.source}, whose last steps are all kept; leave out --last-steps"
        )
    if found.source == "d4rl":
        return d4rl.parse(found.path, say, choice.horizon)
    if found.source == "robomimic":
        return robomimic.parse(found.path, say, part)
    if found.source == "rlds":
        return rlds.parse(found.path, say, part, last_steps)
    if found.source == "lerobot":
        return lerobot.parse(found.path, say, videos)
    return READERS[found.source](found.path, say)


def _fitted(parsed: Parsed, choice: EnvironmentChoice, known: EnvironmentSpec | None) -> tuple[EnvSpec | None, Parsed]:
    """Gymnasium's record of the environment, and the data with its spaces; the data's own where none is recorded."""
    spec = choice.over(known)
    if spec is None:
        say(f"environment: none is recorded{'' if choice.is_none else '; name one with --env-id'}")
        return None, parsed
    try:
        described = describe(spec)
    except InvalidInput as error:
        if choice.names_one:
            raise
        say(f"warning: the data name {spec}, which is not recorded: {error}")
        return None, parsed
    spaces = described.observation_space, described.action_space
    if wrong := _misfits(parsed, described):
        raise DataError(
            f"{parsed.id} does not fit {spec}: {'; '.join(wrong)}; name another with --env-id, or record none with "
            "--env-id none"
        )
    say(f"environment: {spec}")
    fitted = replace(parsed, observation_space=gymnasium_space(spaces[0]), action_space=gymnasium_space(spaces[1]))
    return described.recorded, fitted


def _misfits(parsed: Parsed, described: Description) -> list[str]:
    """What of the data the spaces of an environment do not hold, as training finds it."""
    recorded = recorded_spaces(parsed)[0]
    if recorded is not None and (wrong := differences(described.observation_space, recorded, "observations")):
        return wrong
    for number, episode in enumerate(parsed.episodes):
        for name, space, values, bounded in (
            ("observations", described.observation_space, episode.observations, False),
            ("actions", described.action_space, episode.actions, not described.clips_actions),
        ):
            where = f"{name} of episode {number}"
            try:
                packed = space.pack(values, batch=1)
            except InvalidInput as error:
                return [f"{where}: {error}"]
            if bounded and (outside := out_of_bounds(where, first_of(packed), space)):
                return [outside]
    return []


def _with_final(parsed: Parsed) -> tuple[list[Episode], bool]:
    """Episodes of T + 1 observations, and whether the last ones are made up."""
    first = parsed.episodes[0]
    if len(next(leaves_of(first.observations))) > len(first.rewards):
        return parsed.episodes, False
    say(f"data: {SUFFIX}, since Minari keeps one")
    return repeat_last(parsed.episodes), True


def repeat_last(episodes: list[Episode]) -> list[Episode]:
    """Episodes whose last observation also stands for the one after the last action."""
    return [replace(episode, observations=map_values(_repeated, episode.observations)) for episode in episodes]


def _repeated(values: Any) -> Any:
    return [*values, values[-1]] if isinstance(values, list) else np.concatenate([values, values[-1:]])
