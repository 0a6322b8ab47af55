"""Finds the reader of a file or folder by what is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py

from aaren_rl.envs.readers import d3rlpy, d4rl, lerobot, npz, ogbench, rlds, robomimic
from aaren_rl.envs.readers.hdf5 import open_checked
from aaren_rl.envs.readers.parsed import Parsed, Say
from aaren_rl.envs.readers.signatures import READ, describe, is_hdf5, is_zip
from aaren_rl.envs.readers.zipped_arrays import open_npz
from aaren_rl.errors import DataError

MINARI = "minari"
"""Format of a Minari dataset's folder, which `aaren_rl.envs.readers.minari` reads."""

METADATA = Path("data", "metadata.json")


READERS: Mapping[str, Callable[[Path, Say], Parsed]] = {
    "d4rl": d4rl.parse,
    "ogbench": ogbench.parse,
    "robomimic": robomimic.parse,
    "lerobot": lerobot.parse,
    "rlds": rlds.parse,
    "d3rlpy": d3rlpy.parse,
    "npz": npz.parse,
}
"""What reads each format, beside Minari's."""


def format_of(path: Path) -> str:
    """The format of a file or folder: `MINARI`, or a key of `READERS`.

    Raises:
        DataError: it does not exist, is cut off, or is of no format that is read; the message says what it is.
        InvalidInput: it holds several versions of a dataset.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected {READ}")
    try:
        if is_hdf5(path):
            return _of_hdf5(path)
        if is_zip(path):
            return _of_zip(path)
        if ".tfrecord" in path.name:
            return "rlds"
        raise DataError(f"{path} is {describe(path)}; data are read from {READ}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _of_folder(path: Path) -> str:
    if (path / METADATA).is_file():
        return MINARI
    if (path / lerobot.INFO).is_file():
        return "lerobot"
    if rlds.folder_of(path) is not None:
        return "rlds"
    if (path / "data").is_dir():
        raise DataError(
            f"{path} is not a Minari dataset: it has no {METADATA.as_posix()}, and no {lerobot.INFO.as_posix()} of "
            "LeRobot either"
        )
    inside = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    holds = f"it holds {', '.join(inside[:5])}{' and more' if len(inside) > 5 else ''}" if inside else "it is empty"
    raise DataError(
        f"{path} is not a Minari dataset's folder ({METADATA.as_posix()}), LeRobot's ({lerobot.INFO.as_posix()}) or "
        f"RLDS's ({rlds.FEATURES}): {holds}; give such a folder, or one file"
    )


def _of_hdf5(path: Path) -> str:
    with open_checked(path) as file:
        # Names that are not UTF-8 are bytes.
        keys = set(map(str, file))
        if {"columns", "num_episodes"} <= keys or set(d3rlpy.FIRST_VERSION) <= keys:
            return "d3rlpy"
        if isinstance(file.get("data"), h5py.Group):
            return "robomimic"
        if keys & set(d4rl.KEYS):
            return "d4rl"
        if "episode_0" in keys and isinstance(file["episode_0"], h5py.Group):
            raise DataError(
                f"{path} is the data of a Minari dataset; give its folder, which holds {METADATA.as_posix()}"
            )
        raise DataError(
            f"{path} is an HDF5 file with the keys {_some(keys)}; expected D4RL's {list(d4rl.KEYS)}, robomimic's "
            "data/demo_0 or d3rlpy's columns"
        )


def _of_zip(path: Path) -> str:
    what = describe(path)
    if what != "an npz file":
        raise DataError(f"{path} is {what}; data are read from {READ}")
    with open_npz(path) as file:
        keys = set(file)
    if keys & {npz.TERMINATED, npz.TRUNCATED, npz.OFFSETS, npz.SPACES}:
        return "npz"
    if d4rl.is_d4rl(keys):
        return "d4rl"
    if set(ogbench.KEYS) <= keys:
        return "ogbench"
    raise DataError(
        f"{path} is an npz file with the keys {_some(keys)}; expected OGBench's {list(ogbench.KEYS)}, D4RL's "
        f"{[*d4rl.KEYS, d4rl.TIMEOUTS]}, or this project's "
        f"{[npz.OBSERVATIONS, npz.ACTIONS, npz.REWARDS, npz.TERMINATED, npz.TRUNCATED, npz.OFFSETS]} (docs/data.md)"
    )


def _some(keys: set[str]) -> str:
    names = sorted(keys)
    return f"{names[:8]}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
