"""Reads Parquet tables with pyarrow, an extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.errors import DataError, InvalidInput

MORE = 4
"""Bytes that are taken for one of a table while it is read: nested lists are unfolded."""


def require_pyarrow(path: Path) -> None:
    """Refuses a folder of tables where nothing reads them.

    Raises:
        InvalidInput: pyarrow is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise InvalidInput(
            f"{path} holds Parquet tables; install pyarrow to read them (pip install 'aaren-rl[lerobot]')"
        )


def read_table(file: Path, columns: list[str] | None = None) -> Any:
    """A table of pyarrow's.

    Args:
        file: the Parquet file.
        columns: names of the columns to read; None for all.

    Raises:
        DataError: the file is damaged, lacks a column, or needs more memory than is free.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            if missing := [name for name in columns or () if name not in opened.schema_arrow.names]:
                raise DataError(f"{file} lacks the columns {missing}, which its dataset lists")
            groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
            require_memory(MORE * sum(group.total_byte_size for group in groups), str(file))
            return opened.read(columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        # Arrow's messages have several lines.
        why = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read as Parquet: {why}; it may be cut off: fetch it again") from error


def concatenated(tables: list[Any], path: Path) -> Any:
    """Tables one after another.

    Raises:
        DataError: their columns differ in type.
    """
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="none")
    except pa.ArrowException as error:
        why = " ".join(str(error).split())
        raise DataError(f"tables of {path} differ in their columns: {why}") from error
