"""The metadata of a Minari dataset: its spaces and its environments, read without running what the data name."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from minari.serialization import deserialize_space

from aaren_rl.data.environment_spec import EnvironmentSpec, file_arguments
from aaren_rl.data.reference import Reference, recorded_reference
from aaren_rl.envs.environments import OWN_PACKAGES
from aaren_rl.envs.readers.json_files import read_json
from aaren_rl.envs.readers.recorded_spec import spec_from_data
from aaren_rl.envs.wrappers import Recorded, rebuildable
from aaren_rl.errors import DataError, InvalidInput


class UnusableRecord(DataError):
    """What data record of their environment cannot be used; an environment that the user names can."""


LONGEST_NAME = 300


def read(folder: Path) -> dict[str, Any]:
    """The metadata of a dataset's folder.

    Raises:
        DataError: they are missing, too large, or no JSON object.
    """
    file = folder / "data" / "metadata.json"
    if not file.is_file():
        raise DataError(f"{folder} is not a Minari dataset: it has no data/metadata.json")
    content = read_json(file)
    name = content.get("dataset_id")
    # Minari's own check of a name takes time with the square of its length.
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise DataError(
            f"{file} names the dataset {reprlib.repr(name)}; expected a text of up to {LONGEST_NAME} letters"
        )
    return content


def environment(metadata: Mapping[str, Any], entry: str, where: str) -> EnvironmentSpec | None:
    """The environment that metadata record under "env_spec" or "eval_env_spec"; None where they record none.

    Id, arguments, time limit and wrappers are taken; the render mode is not, and entry points only for their package,
    which the user is asked to import.

    Args:
        metadata: of the dataset.
        entry: key of the record.
        where: name of the dataset, for messages.

    Raises:
        UnusableRecord: the record is damaged, names a file, or has wrappers that cannot be built again.
    """
    text = metadata.get(entry)
    if text is None:
        return None
    try:
        record = json.loads(text)
        wrappers = [Recorded(one["name"], one["entry_point"], one["kwargs"]) for one in record["additional_wrappers"]]
        saved = {
            "id": _id(record["id"], record.get("entry_point"), where),
            "kwargs": record["kwargs"],
            "max_episode_steps": record.get("max_episode_steps"),
        }
        spec = spec_from_data(saved)
        rebuilt = rebuildable(wrappers, where)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnusableRecord(
            f"{where} has a damaged record of its environment under {entry!r}: {error!r}; name one with --env-id"
        ) from error
    except DataError as error:
        raise UnusableRecord(str(error)) from error
    arguments = [spec.kwargs, *(wrapper.kwargs for wrapper in rebuilt)]
    if names := [name for kwargs in arguments for name in file_arguments(kwargs)]:
        raise UnusableRecord(
            f"{where} records {', '.join(names)} for its environment, which names a file; data may not say which file "
            "to read: name the environment yourself with --env-id and --env-kwargs, or train with --env-id none"
        )
    return EnvironmentSpec(spec.id, spec.kwargs, spec.max_episode_steps, rebuilt)


def reference(metadata: Mapping[str, Any], where: str) -> Reference | None:
    """The returns for normalised scores that metadata record; None where they record none.

    Raises:
        UnusableRecord: one is missing or not finite, or the expert's is not above the random one.
    """
    try:
        return recorded_reference(metadata, "ref_min_score", "ref_max_score")
    except InvalidInput as error:
        raise UnusableRecord(
            f"{where} has a damaged record of its reference returns: {error}; name its environment with --env-id"
        ) from error


def space(metadata: Mapping[str, Any], entry: str, where: str) -> gym.Space[Any] | None:
    """The space that metadata record under "observation_space" or "action_space"; None where they record none.

    Raises:
        DataError: the record is damaged, or claims a size that its own length denies.
    """
    text = metadata.get(entry)
    if text is None:
        return None
    try:
        saved = json.loads(text)
        _check_size(saved, len(text))
        # Minari's function passes on whatever the constructors of Gymnasium raise.
        return deserialize_space(saved)  # type: ignore[no-any-return]
    except Exception as error:
        raise DataError(f"{where} has a damaged record of its {entry}: {error!r}; fetch it again") from error


def _id(recorded: Any, entry_point: Any, where: str) -> str:
    if not isinstance(recorded, str) or ":" in recorded:
        raise UnusableRecord(f"{where} names the environment {recorded!r}; expected a Gymnasium id without a package")
    package = entry_point.partition(":")[0].partition(".")[0] if isinstance(entry_point, str) else ""
    known = not package.isidentifier() or package in OWN_PACKAGES
    return recorded if known else f"{package}:{recorded}"


def _check_size(saved: Any, length: int) -> None:
    """Makes sure that a space has no more numbers than characters."""
    if isinstance(saved, list):
        for part in saved:
            _check_size(part, length)
    elif isinstance(saved, dict):
        shape = saved.get("shape")
        if isinstance(shape, list) and math.prod(shape) > length:
            raise DataError(f"shape {shape} in a record of {length} characters")
        for part in (saved.get("subspaces") or {}).values() if isinstance(saved.get("subspaces"), dict) else ():
            _check_size(part, length)
        if isinstance(saved.get("subspaces"), list):
            _check_size(saved["subspaces"], length)
