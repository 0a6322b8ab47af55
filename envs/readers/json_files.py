"""Reads JSON files that come with data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aaren_rl.errors import DataError

LARGEST = 64 * 2**20
"""Bytes of the largest JSON file that is read; those of data have some kilobytes."""


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: the file is missing, too large, or holds no JSON object.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise DataError(f"{file} has {file.stat().st_size} bytes; expected at most {LARGEST}")
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}; expected a JSON object")
    return content
