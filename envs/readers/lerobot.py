"""Reads LeRobot's data (versions 2.0 to 3.0): folders with meta/info.json, tables in data/ and videos."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers import lerobot_videos, parquet
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.envs.readers.images import decode
from aaren_rl.envs.readers.json_files import read_json
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    Values,
    bytes_of_episode,
    numbers,
    parsed_of_values,
    require_finite,
)
from aaren_rl.errors import DataError, InvalidInput

INFO = Path("meta", "info.json")
ACTION, REWARD, DONE = "action", "next.reward", "next.done"
OBSERVATION, TASK = "observation.", "task"
EPISODE, FRAME, TASK_NUMBER, TIME = "episode_index", "frame_index", "task_index", "timestamp"
VERSIONS = ("v2.0", "v2.1", "v3.0")

_Table = Mapping[str, Any]
"""Columns of all steps, by their name."""


class _Steps(NamedTuple):
    """What is read of all steps.

    Attributes:
        features: of the action and the observations, as info.json describes them.
        table: columns of all steps.
        rewards: None where there are none.
        dones: likewise.
        tasks: text of each step's task; None where there is one task.
    """

    features: Mapping[str, Mapping[str, Any]]
    table: _Table
    rewards: npt.NDArray[np.float32] | None
    dones: npt.NDArray[np.bool_] | None
    tasks: list[str] | None


def parse(path: Path, say: Say, videos: bool = True) -> Parsed:
    """The episodes of a LeRobot folder.

    Observations are the features under "observation."; of one alone, as "observation.state", they are its array, of
    several a Dict by the rest of their names. Where the data have several tasks, their texts are the part "task".
    Actions are the feature "action", rewards "next.reward", 0 where that is missing. An episode is terminated where its
    last "next.done" is true, else truncated. There are no final observations. Frames of videos are decoded by the
    lerobot package.

    Args:
        path: the folder.
        say: called with a line on what is made up, left out or added.
        videos: False leaves out the features that are videos.

    Raises:
        DataError: the folder is not whole, or its tables do not hold what meta/info.json says.
        InvalidInput: pyarrow is missing, or lerobot for videos, or the folder is of another version.
    """
    info = _info(path)
    features = {name: feature for name, feature in info["features"].items() if isinstance(feature, dict)}
    filmed = sorted(name for name, feature in features.items() if feature.get("dtype") == "video")
    if videos and filmed and not lerobot_videos.is_available():
        raise InvalidInput(
            f"{path} keeps {', '.join(filmed)} as videos, which the lerobot package decodes: install it (pip install "
            "lerobot), or leave them out with aaren-convert FOLDER NEW_ID --without-videos, or videos=False in Python"
        )
    observed = [name for name in features if name.startswith(OBSERVATION) and name not in filmed]
    if not observed and not (videos and filmed):
        raise DataError(f"{path} has no feature under {OBSERVATION!r}; it has {sorted(features)}")
    if ACTION not in features:
        raise DataError(f"{path} has no feature {ACTION!r}; it has {sorted(features)}")
    if filmed and not videos:
        say(f"data: {path.name}: left out the videos {', '.join(filmed)}, as asked")
    optional = [name for name in (REWARD, DONE, TASK_NUMBER, TIME) if name in features]
    columns = list(dict.fromkeys([EPISODE, FRAME, ACTION, *optional, *observed]))
    table, bounds = _table(path, columns, info)
    columns_of_steps = _Steps(
        {name: features[name] for name in (ACTION, *observed)},
        table,
        _column(table, REWARD, path, np.float32) if REWARD in table else None,
        _column(table, DONE, path, np.bool_) if DONE in table else None,
        _tasks(path, table, say),
    )
    if REWARD not in table:
        say(f"data: {path.name}: no {REWARD!r}; every reward counts as 0")
    frames = lerobot_videos.frames(path, info, filmed, table, bounds) if videos and filmed else {}
    episodes = []
    for number, bound in enumerate(bounds):
        filmed_here = {name: of[number] for name, of in frames.items()}
        episodes.append(_episode(path, columns_of_steps, slice(*bound), filmed_here))
        if number == 0:
            # Images take many times their bytes once they are decoded.
            require_memory(2 * bytes_of_episode(episodes[0]) * bounds[-1][1] // bound[1], path.name)
    return parsed_of_values(path.name, episodes, f"{path}: observations", f"{path.name}: {ACTION}", say)


def _info(path: Path) -> dict[str, Any]:
    file = path / INFO
    info = read_json(file)
    if not isinstance(info.get("features"), dict):
        raise DataError(f"{file} lists no features; expected LeRobot's info.json")
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise InvalidInput(
            f"{path} is of LeRobot's version {reprlib.repr(version)}; expected one of {', '.join(VERSIONS)}: convert "
            "it with the lerobot package"
        )
    return info


def _table(path: Path, columns: list[str], info: Mapping[str, Any]) -> tuple[_Table, list[tuple[int, int]]]:
    """The columns of all steps in the order of the episodes, and the rows of each episode.

    Raises:
        DataError: a table is damaged, or steps are missing.
        InvalidInput: pyarrow is missing.
    """
    parquet.require_pyarrow(path)
    files = sorted((path / "data").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{path} has no tables data/*/*.parquet; fetch the folder again")
    table = parquet.concatenated([parquet.read_table(file, columns) for file in files], path)
    episode = _column(table, EPISODE, path, np.int64)
    frame = _column(table, FRAME, path, np.int64)
    order = np.lexsort((frame, episode))
    table, episode, frame = table.take(order), episode[order], frame[order]
    starts = np.flatnonzero(np.diff(episode, prepend=episode[:1] - 1))
    bounds = list(zip(starts.tolist(), [*starts[1:].tolist(), len(episode)], strict=True))
    for start, stop in bounds:
        if not np.array_equal(frame[start:stop], np.arange(stop - start)):
            raise DataError(f"{path}: episode {episode[start]} lacks frames: {FRAME} are not 0 to {stop - start - 1}")
    found, expected = (len(bounds), len(episode)), (info.get("total_episodes"), info.get("total_frames"))
    if found != expected:
        raise DataError(
            f"{path} holds {found[0]} episodes of {found[1]} frames; {INFO} lists {expected[0]} of {expected[1]}: "
            "fetch what is missing"
        )
    return {name: table[name] for name in columns}, bounds


def _tasks(path: Path, table: _Table, say: Say) -> list[str] | None:
    """The text of each step's task; None where there is one task."""
    if TASK_NUMBER not in table:
        return None
    chosen = _column(table, TASK_NUMBER, path, np.int64)
    if len(np.unique(chosen)) < 2:
        return None
    texts = _task_texts(path)
    if unknown := set(chosen.tolist()) - set(texts):
        raise DataError(f"{path} has steps of task {min(unknown)}, whose text is missing in meta/")
    say(f"data: {path.name}: {len(set(chosen.tolist()))} tasks; their texts are the part {TASK!r} of the observations")
    return [texts[number] for number in chosen.tolist()]


def _task_texts(path: Path) -> dict[int, str]:
    lines, rows = path / "meta" / "tasks.jsonl", path / "meta" / "tasks.parquet"
    if not (lines.is_file() or rows.is_file()):
        raise DataError(f"{path} has several tasks, whose texts are missing: fetch {rows} (or {lines.name})")
    try:
        if lines.is_file():
            found = [json.loads(line) for line in lines.read_text("utf-8").splitlines() if line.strip()]
            return {int(one[TASK_NUMBER]): str(one[TASK]) for one in found}
        table = parquet.read_table(rows)
        # pandas keeps the texts as the index of the table.
        (texts,) = [name for name in table.column_names if name != TASK_NUMBER]
        return dict(zip(table[TASK_NUMBER].to_pylist(), map(str, table[texts].to_pylist()), strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the texts of the tasks of {path} cannot be read: {error!r}; fetch meta/ again") from error


def _episode(path: Path, steps: _Steps, rows: slice, frames: Mapping[str, npt.NDArray[np.uint8]]) -> Episode:
    number = int(steps.table[EPISODE][rows.start].as_py())
    arrays = {
        name: _feature(steps.table[name][rows], feature, f"{path}: {name} of episode {number}")
        for name, feature in steps.features.items()
    }
    actions = arrays.pop(ACTION)
    parts: dict[str, Values] = {
        name.removeprefix(OBSERVATION): values for name, values in (arrays | {**frames}).items()
    }
    if steps.tasks is not None:
        parts[TASK] = steps.tasks[rows]
    rewards = np.zeros(len(actions), dtype=np.float32) if steps.rewards is None else steps.rewards[rows]
    require_finite(rewards, f"{path}: {REWARD} of episode {number}")
    terminated = steps.dones is not None and bool(steps.dones[rows][-1])
    observations = next(iter(parts.values())) if len(parts) == 1 else parts
    return Episode(observations, actions, rewards, terminated, not terminated)


def _feature(column: Any, feature: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    """A feature of one episode, (steps, *shape); images as (steps, height, width, channels) of bytes."""
    if feature.get("dtype") == "image":
        return decode([value and value.get("bytes") for value in column.to_pylist()], name)
    shape = feature.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise DataError(f"{name} has the shape {reprlib.repr(shape)} in {INFO}; expected whole numbers above 0")
    array = numbers(_flat(column, name, shape), name)
    if array.size != len(column) * math.prod(shape):
        raise DataError(f"{name} hold {array.size} numbers in {len(column)} steps; expected the shape {shape} for each")
    require_finite(array.reshape(len(column), -1), name)
    return array.reshape(len(column), *shape)


def _flat(column: Any, name: str, shape: list[int]) -> npt.NDArray[Any]:
    """The numbers of a column one after another, out of lists at any depth.

    Args:
        column: of pyarrow's.
        name: of the column, for messages.
        shape: of the numbers of a step.

    Raises:
        DataError: a value or a list is null, or lists are of another length than the shape has.
    """
    import pyarrow.compute as pc

    values, sizes = column.combine_chunks(), []
    while True:
        if str(values.type).startswith("extension"):
            values = values.storage
        if values.null_count:
            raise DataError(f"{name} hold {values.null_count} nulls; expected a value for every step")
        if not str(values.type).startswith(("list", "fixed_size_list", "large_list")):
            break
        lengths = np.unique(pc.list_value_length(values).to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise DataError(
                f"{name} hold lists of {lengths[0]} to {lengths[-1]} values; expected the shape {tuple(shape)} for each"
            )
        sizes += lengths.tolist()
        values = values.flatten()
    if sizes not in ([], shape, [math.prod(shape)]):
        raise DataError(
            f"{name} hold lists of the shape {tuple(sizes)} for each step; expected the shape {tuple(shape)}"
        )
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _column(table: Any, name: str, path: Path, dtype: Any) -> npt.NDArray[Any]:
    """A column of one number a step."""
    try:
        return _flat(table[name], f"{path}: {name}", [1]).astype(dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {name} is no column of one number a step: {error}") from error
