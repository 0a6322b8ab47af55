"""Downloads datasets: D4RL's files from their host, Minari's datasets from its hub."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import h5py
import minari
from tqdm import tqdm

from aaren_rl.envs import minari_reader
from aaren_rl.errors import DataError

D4RL_HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"
MINARI_HOST = "https://huggingface.co"
PATIENCE = 2.4
"""Seconds within which a host must answer. At most two hosts are tried, so a missing network costs under five."""


class Unreachable(DataError):
    """A host does not answer, most often because the network is missing."""


def d4rl_folder() -> Path:
    """The folder of D4RL's files: D4RL_DATASET_DIR, or ~/.d4rl/datasets, as in D4RL itself."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def fetch_d4rl(name: str, host: str = D4RL_HOST) -> Path:
    """Downloads a D4RL HDF5 file, or the rest of it, and puts it in place once it is whole.

    Args:
        name: name of the file, as "hopper_medium-v2.hdf5".
        host: address of the folder that holds it.

    Returns:
        The file in `d4rl_folder()`.

    Raises:
        Unreachable: the host does not answer.
        DataError: the download broke off (the next try goes on from there) or is not HDF5.
    """
    folder = d4rl_folder()
    target, partial = folder / name, folder / f".{name}.partial"
    url = f"{host}/{name}"
    _check_reachable(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error}; set D4RL_DATASET_DIR to another folder") from error
    total = _download_rest(url, partial)
    size = partial.stat().st_size
    if total is not None and size > total:
        partial.unlink()
        raise DataError(f"{url} has {total} bytes, {size} had come; nothing was kept, run again")
    if total is not None and size < total:
        raise DataError(f"{url} broke off after {size} of {total} bytes; run again to go on from there")
    _check_hdf5(url, partial)
    os.replace(partial, target)
    return target


def _download_rest(url: str, partial: Path) -> int | None:
    """Appends what a partial file lacks; returns the size of the whole, None where the host does not say.

    Raises:
        DataError: the host refuses, or the download breaks off.
    """
    here = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            # A host that ignores the range sends the file from its start.
            begin = here if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else int(length) + begin
            name = url.rpartition("/")[2]
            with (
                partial.open("ab" if answer.status == 206 else "wb") as file,
                tqdm(total=total, initial=begin, unit="B", unit_scale=True, desc=name) as bar,
            ):
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
            return total
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise DataError(f"{url} answered {error.code} {error.reason}") from error
        # The range starts beyond the file's end, and the answer gives the file's size.
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        return int(size) if size.isdigit() else None
    except (OSError, HTTPException) as error:
        raise DataError(f"{url} broke off: {error}; run again to go on from where it stopped") from error


def _check_hdf5(url: str, partial: Path) -> None:
    """Opens a downloaded file, and deletes it if it is damaged.

    Raises:
        DataError: it is not HDF5, or damaged.
    """
    if not h5py.is_hdf5(partial):
        size = partial.stat().st_size
        partial.unlink()
        raise DataError(f"{url} is not an HDF5 file ({size} bytes); nothing was kept")
    try:
        h5py.File(partial, "r").close()
    except OSError as error:
        partial.unlink()
        raise DataError(f"{url} is damaged: {error}; nothing was kept, run again") from error


def fetch_minari(dataset_id: str) -> Path:
    """Downloads a dataset from the Minari hub and puts it in place once it is whole.

    Downloaded files stay in a hidden folder beside the datasets; a second try fetches only the rest.

    Returns:
        The dataset's folder under the local Minari root.

    Raises:
        Unreachable: the hub does not answer.
        DataError: the hub has no such dataset, or the download broke off.
    """
    target, staging = minari_reader.local_folder(dataset_id), minari_reader.local_folder(".downloads")
    if target.exists():
        raise DataError(f"{target} is in the way: it is not a whole Minari dataset; move it elsewhere and run again")
    _check_reachable(os.environ.get("HF_ENDPOINT", MINARI_HOST))
    try:
        with _minari_root(staging):
            # Without force, Minari takes the folder of an interrupted download for the dataset.
            minari.download_dataset(dataset_id, force_download=True)
            steps = minari.load_dataset(dataset_id).total_steps
    except Exception as error:
        raise DataError(f"Minari's hub did not give {dataset_id}: {error}") from error
    if steps < 1:
        raise DataError(f"Minari's hub gave an empty {dataset_id}; its files are in {staging}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / dataset_id, target)
    except OSError as error:
        raise DataError(f"{dataset_id} came, but cannot be put in place at {target}: {error}") from error
    return target


@contextmanager
def _minari_root(folder: Path) -> Iterator[None]:
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _check_reachable(url: str) -> None:
    """Asks for a page's head, within PATIENCE seconds even where the look-up of the host's name hangs.

    Raises:
        Unreachable: the host does not answer; an error page is an answer.
    """
    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
            outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)
        except (OSError, HTTPException) as error:
            outcome.append(error)

    _run_within(PATIENCE, ask)
    if not outcome:
        raise Unreachable(f"{url} did not answer within {PATIENCE} seconds")
    if outcome[0] is not None:
        raise Unreachable(f"{url} cannot be reached: {outcome[0]}")


def _run_within(seconds: float, call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
