"""Downloads datasets: D4RL's and OGBench's files from their host, Minari's datasets from its hub."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import minari

from aaren_rl.envs.partial import Partial, Say, open_url
from aaren_rl.envs.readers import json_files
from aaren_rl.envs.readers.hdf5 import checked
from aaren_rl.envs.readers.minari import is_local, local_folder
from aaren_rl.envs.readers.zipped_arrays import open_npz
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import DataError
from aaren_rl.folders import replace_file

D4RL_HOST = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
OGBENCH_HOST = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MINARI_HOST = "https://huggingface.co"
PATIENCE = 2.4
"""Seconds within which a host must answer. At most two hosts are tried, so a missing network costs under five."""

_SUMS = "SHA256SUMS"
_fetching = threading.Lock()


class Unreachable(DataError):
    """A host does not answer, most often because the network is missing."""


def d4rl_folder() -> Path:
    """The folder of D4RL's files: D4RL_DATASET_DIR, or ~/.d4rl/datasets, as in D4RL itself."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def ogbench_folder() -> Path:
    """The folder of OGBench's files: OGBENCH_DATASET_DIR, or ~/.ogbench/data, as in OGBench itself."""
    return Path(os.environ.get("OGBENCH_DATASET_DIR") or Path.home() / ".ogbench" / "data")


def fetch_d4rl(path: str, host: str = D4RL_HOST, say: Say = print) -> Path:
    """Downloads a D4RL HDF5 file, or the rest of it, and puts it in place once it is whole.

    What the host calls the version of the file (its ETag, or else its date) is kept beside the part that has come. A
    part is gone on with only if the host has that same version still. The SHA-256 of the whole file is kept beside it,
    in `NAME.sha256`, as `sha256sum --check` reads it.

    Args:
        path: of the file on the host, as "gym_mujoco_v2/hopper_medium-v2.hdf5".
        host: address of the folder that holds it.
        say: called with lines on what came, and on a file that differs from an earlier one of its name.

    Returns:
        The file in `d4rl_folder()`.

    Raises:
        Unreachable: the host does not answer.
        DataError: the download broke off (the next try goes on from there), does not fit on the disk, or is not an
            HDF5 file that may be read.
    """
    target = d4rl_folder() / path.rpartition("/")[2]
    return _fetch_file(f"{host}/{path}", target, "D4RL_DATASET_DIR", checked, say)


def fetch_ogbench(name: str, host: str = OGBENCH_HOST, say: Say = print) -> Path:
    """Downloads an OGBench npz file, or the rest of it; otherwise as `fetch_d4rl`.

    Args:
        name: of the file, as "cube-single-play-v0.npz".
        host: address of the folder that holds it.
        say: as for `fetch_d4rl`.

    Returns:
        The file in `ogbench_folder()`.

    Raises:
        Unreachable: the host does not answer.
        DataError: as `fetch_d4rl`; or it is no npz file that may be read.
    """
    return _fetch_file(f"{host}/{name}", ogbench_folder() / name, "OGBENCH_DATASET_DIR", _check_npz, say)


def _check_npz(path: Path) -> None:
    with open_npz(path):
        pass


def _fetch_file(url: str, target: Path, variable: str, check: Callable[[Path], object], say: Say) -> Path:
    """Downloads a file, or the rest of it, and puts it in place once it is whole and checked."""
    folder, name = target.parent, target.name
    _check_reachable(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error}; set {variable} to another folder") from error
    before = _time_of(target)
    with one_at_a_time(target, say):
        if _time_of(target) != before:
            say(f"data: {target} has been downloaded meanwhile; it is taken")
            return target
        partial = Partial(folder / f".{name}.partial", url)
        partial.complete(say)
        try:
            check(partial.path)
        except DataError as error:
            partial.delete()
            raise DataError(f"{url} is damaged or not what it should be: {error}; nothing was kept") from error
        digest = _sha256(partial.path)
        _compare_with_earlier(target, digest, say)
        try:
            replace_file(_digest_file(target), f"{digest}  {name}\n")
            os.replace(partial.path, target)
        except OSError as error:
            raise DataError(f"{url} came, but cannot be put in place at {target}: {error}") from error
        partial.delete()
    say(f"data: {target} came from {url}: {target.stat().st_size} bytes, sha256 {digest}")
    return target


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _digest_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _compare_with_earlier(target: Path, digest: str, say: Say) -> None:
    """Says so where a file of this name was downloaded before and was another one."""
    try:
        earlier = _digest_file(target).read_text("ascii").split()[0]
    except (OSError, ValueError, IndexError):
        return
    if earlier != digest:
        say(
            f"data: {target.name} is not the file that was downloaded before: its sha256 was {earlier} and is "
            f"{digest}; results on the two are not comparable"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        # Python 3.10 lacks hashlib.file_digest.
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_minari(dataset_id: str, say: Say = print) -> Path:
    """Downloads a dataset from the Minari hub and puts it in place once it is whole and checked.

    Downloaded files stay in a hidden folder beside the datasets; a second try fetches only the rest. Nothing that the
    dataset says is run: its environment is not made. The SHA-256 of its files are kept in SHA256SUMS in its folder.

    Args:
        dataset_id: id on the hub.
        say: called with a line on what came.

    Returns:
        The dataset's folder under the local Minari root.

    Raises:
        Unreachable: the hub does not answer.
        DataError: the hub has no such dataset, the download broke off, or it holds what may not be read.
    """
    # Minari's root is a variable of the process, so of all downloads one runs at a time.
    with _fetching:
        return _fetch_minari(dataset_id, say)


def _fetch_minari(dataset_id: str, say: Say) -> Path:
    target, staging = local_folder(dataset_id), local_folder(".downloads")
    if target.exists() and not is_local(dataset_id):
        raise DataError(f"{target} is in the way: it is not a whole Minari dataset; move it elsewhere and run again")
    _check_reachable(os.environ.get("HF_ENDPOINT", MINARI_HOST))
    with one_at_a_time(staging, say):
        if is_local(dataset_id):
            say(f"data: {target} has been downloaded meanwhile; it is taken")
            return target
        try:
            with minari_root(staging):
                # Without force, Minari takes the folder of an interrupted download for the dataset.
                minari.download_dataset(dataset_id, force_download=True)
        except Exception as error:
            raise DataError(f"Minari's hub did not give {dataset_id}: {error}") from error
        _check_minari(staging / dataset_id)
        try:
            sums = _write_sums(staging / dataset_id)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / dataset_id, target)
        except OSError as error:
            raise DataError(f"{dataset_id} came, but cannot be put in place at {target}: {error}") from error
    say(f"data: {target} came from Minari's hub: {sums}")
    return target


def _check_minari(folder: Path) -> None:
    """Checks a downloaded dataset without a look at what environment it names.

    Raises:
        DataError: it is empty, damaged, or leads outside its folder.
    """
    outside = [path for path in folder.rglob("*") if path.is_symlink()]
    if outside:
        raise DataError(f"Minari's hub gave {outside[0]}, a link; such datasets are not read")
    metadata_file = folder / "data" / "metadata.json"
    try:
        if metadata_file.stat().st_size > json_files.LARGEST:
            raise DataError(f"{metadata_file} has more than {json_files.LARGEST} bytes; such datasets are not read")
        metadata = json.loads(metadata_file.read_text("utf-8"))
        steps = metadata["total_steps"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"Minari's hub gave {folder} without metadata that can be read: {error!r}") from error
    if not isinstance(steps, int) or steps < 1:
        raise DataError(f"Minari's hub gave an empty dataset; its files are in {folder}")
    for path in folder.rglob("*.hdf5"):
        checked(path)


def _write_sums(folder: Path) -> str:
    """Keeps the SHA-256 of each file of a dataset, and gives the one of its data in words."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    lines = [f"{_sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    replace_file(folder / _SUMS, "".join(lines))
    return f"{len(lines)} files, sha256 of their list {hashlib.sha256(''.join(lines).encode()).hexdigest()}"


@contextmanager
def minari_root(folder: Path) -> Iterator[None]:
    """Has Minari keep its datasets in a folder meanwhile."""
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
            open_url(urllib.request.Request(url, method="HEAD"), PATIENCE).close()
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
