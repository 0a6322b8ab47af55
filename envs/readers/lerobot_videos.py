"""Frames of LeRobot's videos, decoded by the lerobot package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.envs.readers import parquet
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.errors import DataError

TOLERANCE = 1e-4
"""Seconds by which a frame may lie beside the time of its step, as in LeRobot's loader."""

_Bounds = list[tuple[int, int]]


def is_available() -> bool:
    """True if the lerobot package is installed."""
    return importlib.util.find_spec("lerobot") is not None


def frames(
    path: Path, info: Mapping[str, Any], keys: list[str], table: Mapping[str, Any], bounds: _Bounds
) -> dict[str, list[npt.NDArray[np.uint8]]]:
    """The frames of each video feature, an array (steps, height, width, channels) of bytes for each episode.

    Args:
        path: the dataset's folder.
        info: contents of meta/info.json.
        keys: features that are videos.
        table: columns of all steps, with "timestamp" and "episode_index".
        bounds: first row of each episode, and the row after its last.

    Raises:
        DataError: a video is missing, damaged, or lacks frames.
    """
    from lerobot.datasets.video_utils import decode_video_frames

    if "timestamp" not in table:
        raise DataError(f"{path} has no feature 'timestamp', which says where the frames of its videos lie")
    times = np.asarray(table["timestamp"].to_pylist(), dtype=np.float64).reshape(-1)
    numbers = np.asarray(table["episode_index"].to_pylist()).reshape(-1)
    found: dict[str, list[npt.NDArray[np.uint8]]] = {}
    for key in keys:
        if "/" in key or "\\" in key or ".." in key:
            raise DataError(f"{path} lists the video {key!r}, whose name leads to another folder")
        places = _places(path, info, key)
        for start, stop in bounds:
            number = int(numbers[start])
            if number not in places:
                raise DataError(f"{path}: no video of {key} is listed for episode {number}")
            file, begins = places[number]
            if not file.is_file():
                raise DataError(
                    f"{file} does not exist: the video of {key} in episode {number}; fetch the folder again"
                )
            try:
                decoded = decode_video_frames(file, (begins + times[start:stop]).tolist(), TOLERANCE)
            except Exception as error:
                # Decoders pass on what their C libraries say as errors of many types.
                raise DataError(f"{file} cannot be decoded for episode {number}: {error}") from error
            # (steps, channels, height, width) in [0, 1]
            pixels = (decoded.numpy() * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
            found.setdefault(key, []).append(np.ascontiguousarray(pixels))
            if start == 0:
                require_memory(2 * pixels.nbytes * len(keys) * bounds[-1][1] // stop, path.name)
    return found


def _places(path: Path, info: Mapping[str, Any], key: str) -> dict[int, tuple[Path, float]]:
    """File of each episode's video, and the second at which the episode begins in it."""
    if info["codebase_version"] != "v3.0":
        files = sorted((path / "videos").glob(f"*/{key}/episode_*.mp4"))
        return {int(file.stem.rpartition("_")[2]): (file, 0.0) for file in files}
    columns = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    places = {}
    for table in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        for row in parquet.read_table(table, ["episode_index", *columns]).to_pylist():
            chunk, file, begins = (row[column] for column in columns)
            name = path / "videos" / key / f"chunk-{int(chunk):03d}" / f"file-{int(file):03d}.mp4"
            places[int(row["episode_index"])] = name, float(begins)
    return places
