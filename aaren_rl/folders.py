"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aaren_rl.errors import AarenError


@contextmanager
def whole_folder(folder: Path, error: type[AarenError], replace: bool = True) -> Iterator[Path]:
    """Yields an empty folder to write into, which takes the given name once the block ends.

    Args:
        folder: the name.
        error: raised where the folder cannot be written.
        replace: replace a folder of that name; False for an error.

    Raises:
        AarenError: the given `error`, on a full disk for instance; an earlier folder is still in place.
    """
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if replace and folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except OSError as reason:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise error(f"{folder} could not be written: {reason}; nothing was changed there") from reason
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def clean_up(parent: Path) -> None:
    """Undoes what a killed `whole_folder` left: partial folders go, a folder that was set aside comes back."""
    for partial in parent.glob(".*.partial-*"):
        shutil.rmtree(partial)
    for old in parent.glob(".*.old-*"):
        folder = parent / old.name[1:].rpartition(".old-")[0]
        if folder.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, folder)


def replace_file(path: Path, content: str) -> None:
    """Writes a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write_file(partial, content.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
