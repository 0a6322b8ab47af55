"""Reads RLDS data (Ramos et al. 2021, arXiv 2111.02767) as TFDS stores them: folders of TFRecord files."""

from __future__ import annotations

import math
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs.readers import tfrecord
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.envs.readers.images import decode
from aaren_rl.envs.readers.json_files import read_json
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    Values,
    bytes_of_episode,
    map_values,
    parsed_of_values,
    require_finite,
)
from aaren_rl.errors import DataError, InvalidInput

FEATURES, ABOUT = "features.json", "dataset_info.json"
OBSERVATION, ACTION, REWARD, LAST, TERMINAL = "observation", "action", "reward", "is_last", "is_terminal"
INSTRUCTION = "language_instruction"

_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
_DEEPEST = 16
"""Most Dicts above a feature."""


class _Leaf(NamedTuple):
    """A feature of a step that is not made of others.

    Attributes:
        type: "tensor", "image" or "text".
        shape: of a value.
        dtype: in NumPy's words.
    """

    type: str
    shape: tuple[int, ...]
    dtype: str


_Leaves = Mapping[str, _Leaf]
"""Features of a step by their path."""


def parse(path: Path, say: Say, part: str | None = None, last_steps: bool = False) -> Parsed:
    """The episodes of RLDS data.

    The last step of an episode ("is_last") holds its final observation; RLDS leaves the action and the reward there
    undefined, so they are left out. Rewards among them that are not 0 are said. An episode
    whose last "is_terminal" is true is terminated, else truncated. Observations and actions may be Dicts.
    "language_instruction" beside an observation becomes a part of it. Rewards that are missing count as 0.

    Args:
        path: the folder that holds features.json, the one above it, or one TFRecord file in it.
        say: called with a line on what is made up, left out or added.
        part: the split to read; None for "train", or for the only one.
        last_steps: the last steps have actions and rewards as all others, and there are no final observations.

    Raises:
        DataError: files are missing, damaged or cut off, or hold something else than features.json says.
        InvalidInput: there is no such split, or a feature is of a type that is not read.
    """
    shards, folder = _shards(path, part, say)
    leaves, total = _leaves(folder), sum(file.stat().st_size for file in shards)
    if not any(name == OBSERVATION or name.startswith(f"{OBSERVATION}/") for name in leaves) or not any(
        name == ACTION or name.startswith(f"{ACTION}/") for name in leaves
    ):
        raise DataError(f"{folder / FEATURES} lists no steps with observation and action; it lists {sorted(leaves)}")
    episodes: list[Episode] = []
    short, dropped = 0, []
    for file, number, content in _records(folder, shards):
        where = f"{file}: episode {number}"
        episode = _episode(tfrecord.example(content, where), leaves, where)
        if not last_steps:
            dropped.append(float(episode.rewards[-1]))
            episode = replace(
                episode, actions=map_values(lambda part: part[:-1], episode.actions), rewards=episode.rewards[:-1]
            )
        if not len(episode.rewards):
            short += 1
            continue
        if not episodes:
            # Images take many times their bytes once they are decoded.
            require_memory(round(2 * total * bytes_of_episode(episode) / len(content)), str(folder))
        episodes.append(episode)
    if REWARD not in leaves:
        say(f"data: {folder}: the steps have no reward; every reward counts as 0")
    if INSTRUCTION in leaves:
        say(f"data: {folder}: {INSTRUCTION!r} is a part of the observations")
    if any(dropped):
        say(
            f"warning: {folder}: left out the rewards of the last steps, which are not 0 in "
            f"{np.count_nonzero(dropped)} of {len(dropped)} episodes, {sum(dropped):g} in all: RLDS has no reward "
            "there; if these data have, keep the steps with aaren-convert FOLDER NEW_ID --last-steps, or "
            "last_steps=True in Python"
        )
    if short:
        say(f"data: {folder}: left out {short} episodes without an action")
    if not episodes:
        raise DataError(f"{folder} holds no episode with at least one action")
    name = str(folder)
    return parsed_of_values(
        f"{folder.parent.name}/{folder.name}", episodes, f"{name}: {OBSERVATION}", f"{name}: {ACTION}", say
    )


def folder_of(path: Path) -> Path | None:
    """The folder with features.json that a path means: itself, the one above a file, or the only version below it."""
    if path.is_file():
        return path.parent if (path.parent / FEATURES).is_file() else None
    if (path / FEATURES).is_file():
        return path
    versions = sorted(file.parent for file in path.glob(f"*/{FEATURES}"))
    if len(versions) > 1:
        names = ", ".join(version.name for version in versions)
        raise InvalidInput(f"{path} holds the versions {names}; give the folder of one")
    return versions[0] if versions else None


def _shards(path: Path, part: str | None, say: Say) -> tuple[list[Path], Path]:
    """The files of a split in their order, and their folder."""
    folder = folder_of(path)
    if folder is None:
        raise DataError(f"{path} has no {FEATURES} beside its TFRecord files, which says what they hold: fetch it too")
    if path.is_file():
        return [path], folder
    splits: dict[str, dict[int, Path]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for file in sorted(folder.iterdir()):
        if found := _SHARD.fullmatch(file.name):
            splits[found["split"]][int(found["number"])] = file
            counts[found["split"]] = int(found["count"])
    if not splits:
        raise DataError(f"{folder} holds no TFRecord files, as NAME-train.tfrecord-00000-of-00001; fetch them")
    chosen = part or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if chosen not in splits:
        raise InvalidInput(f"{folder} has the splits {', '.join(splits)}; choose one of them, {chosen!r} is none")
    if others := [name for name in splits if name != chosen]:
        say(f"data: {folder}: read the split {chosen}; left out {', '.join(others)}")
    if missing := [number for number in range(counts[chosen]) if number not in splits[chosen]]:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {counts[chosen]} files of the split {chosen}, the first with number "
            f"{missing[0]:05d}: fetch what is missing"
        )
    return [splits[chosen][number] for number in range(counts[chosen])], folder


def _records(folder: Path, shards: list[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Every record with its file and its number in it; their count is checked against dataset_info.json."""
    listed = _listed(folder)
    for file in shards:
        count = 0
        for count, content in enumerate(tfrecord.records(file), start=1):
            yield file, count - 1, content
        expected = listed.get(file.name)
        if expected is not None and count != expected:
            raise DataError(f"{file} holds {count} episodes; {ABOUT} lists {expected}: fetch it again")


def _listed(folder: Path) -> dict[str, int]:
    """How many records each file holds, where dataset_info.json says so."""
    if not (folder / ABOUT).is_file():
        return {}
    about = read_json(folder / ABOUT)
    listed = {}
    try:
        for split in about.get("splits", ()):
            lengths = split.get("shardLengths", ())
            for number, length in enumerate(lengths):
                name = f"{about['name']}-{split['name']}.tfrecord-{number:05d}-of-{len(lengths):05d}"
                listed[name] = int(length)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / ABOUT} does not list splits as TFDS does: {error!r}; fetch it again") from error
    return listed


def _leaves(folder: Path) -> dict[str, _Leaf]:
    """The features of a step, as features.json describes them."""
    file = folder / FEATURES
    try:
        steps = read_json(file)["featuresDict"]["features"]["steps"]
        inner = steps.get("sequence", steps.get("dataset"))["feature"]
        return dict(_walk(inner, "", file, 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} describes no steps as RLDS does: {error!r}") from error


def _walk(feature: Mapping[str, Any], path: str, file: Path, depth: int) -> Iterator[tuple[str, _Leaf]]:
    if depth > _DEEPEST:
        raise DataError(f"{file} describes features more than {_DEEPEST} levels deep")
    if "featuresDict" in feature:
        for key, inner in feature["featuresDict"].get("features", {}).items():
            yield from _walk(inner, f"{path}/{key}" if path else key, file, depth + 1)
    elif "text" in feature:
        yield path, _Leaf("text", (), "str")
    elif "image" in feature:
        yield path, _Leaf("image", _shape(feature["image"]), str(feature["image"].get("dtype", "uint8")))
    elif "tensor" in feature:
        described = feature["tensor"]
        if described.get("encoding", "none") != "none":
            raise InvalidInput(f"{file}: {path} is stored as {described['encoding']}; only plain tensors are read")
        yield path, _Leaf("tensor", _shape(described), str(described["dtype"]))
    else:
        name = str(feature.get("pythonClassName", "")).rpartition(".")[2]
        # What is neither observation nor action is not needed.
        if path.split("/")[0] in (OBSERVATION, ACTION, REWARD):
            raise InvalidInput(
                f"{file}: {path} is a {name or reprlib.repr(dict(feature))}; tensors, images and texts are read"
            )


def _shape(described: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in described.get("shape", {}).get("dimensions", ()))


def _episode(features: Mapping[str, tfrecord.Feature], leaves: _Leaves, where: str) -> Episode:
    """The episode of a record, with the actions and rewards of all its steps."""
    last = _flags(features, LAST, leaves, where)
    steps = len(last)
    if not steps:
        raise DataError(f"{where} has no steps")
    # Its last step is its end, whether the flag says so or not.
    if last[:-1].any():
        raise DataError(f"{where} goes on after step {int(np.flatnonzero(last)[0])}, which {LAST!r} says is its last")
    observations = _tree(features, leaves, OBSERVATION, steps, where)
    if INSTRUCTION in leaves:
        parts = observations if isinstance(observations, dict) else {OBSERVATION: observations}
        observations = parts | {INSTRUCTION: _values(features, INSTRUCTION, leaves[INSTRUCTION], steps, where)}
    actions = _tree(features, leaves, ACTION, steps, where)
    rewards = np.zeros(steps, dtype=np.float32)
    if REWARD in leaves:
        rewards = np.asarray(_values(features, REWARD, leaves[REWARD], steps, where)).reshape(steps)
    terminated = TERMINAL in leaves and bool(_flags(features, TERMINAL, leaves, where)[-1])
    return Episode(observations, actions, rewards, terminated, not terminated)


def _flags(features: Mapping[str, tfrecord.Feature], key: str, leaves: _Leaves, where: str) -> npt.NDArray[np.bool_]:
    found = features.get(f"steps/{key}")
    if key not in leaves or not isinstance(found, np.ndarray):
        raise DataError(f"{where} has no steps/{key}, which RLDS has")
    return found.astype(np.bool_)


def _tree(features: Mapping[str, tfrecord.Feature], leaves: _Leaves, key: str, steps: int, where: str) -> Values:
    """Values of all leaves at or below a path: an array, texts, or a Dict of such."""
    if key in leaves:
        return _values(features, key, leaves[key], steps, where)
    names = dict.fromkeys(path[len(key) + 1 :].split("/")[0] for path in leaves if path.startswith(f"{key}/"))
    return {name: _tree(features, leaves, f"{key}/{name}", steps, where) for name in names}


def _values(
    features: Mapping[str, tfrecord.Feature], key: str, leaf: _Leaf, steps: int, where: str
) -> npt.NDArray[Any] | list[str]:
    found, name = features.get(f"steps/{key}"), f"{where}: {key}"
    if found is None:
        raise DataError(f"{name} is missing, which {FEATURES} lists")
    if leaf.type == "tensor":
        if not isinstance(found, np.ndarray) or leaf.dtype in ("string", "object"):
            raise DataError(f"{name} are bytes; {FEATURES} lists {leaf.dtype} of shape {leaf.shape}")
        if found.size != steps * math.prod(leaf.shape):
            raise DataError(
                f"{name} hold {found.size} numbers in {steps} steps; expected the shape {leaf.shape} for each"
            )
        require_finite(found, name)
        # TFRecord knows float32 and int64 alone; features.json has the dtype.
        try:
            return found.reshape(steps, *leaf.shape).astype(np.dtype(leaf.dtype))
        except TypeError as error:
            raise DataError(f"{name} are listed as {leaf.dtype}; expected a dtype of NumPy's") from error
    if not isinstance(found, list) or len(found) != steps:
        size = len(found) if isinstance(found, list) else "numbers"
        raise DataError(f"{name} hold {size} for {steps} steps; expected one {leaf.type} for each")
    if leaf.type == "text":
        return [text.decode("utf-8", "replace") for text in found]
    images = decode(found, name)
    if leaf.shape[-1:] == (1,) and images.ndim == 3:
        images = images[..., None]
    if len(leaf.shape) == 3 and images.shape[1:] != leaf.shape and min(leaf.shape) > 0:
        raise DataError(f"{name} are images of {images.shape[1:]}; {FEATURES} lists {leaf.shape}")
    return images
