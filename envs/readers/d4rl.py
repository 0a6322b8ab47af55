"""Reads D4RL's data: HDF5 files, npz files of the same arrays, and dicts as `env.get_dataset()` returns them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from aaren_rl.data.converted import Counts, Rows
from aaren_rl.data.episode import refuse_inexact
from aaren_rl.data.spaces import Space, gymnasium_space, space_of
from aaren_rl.data.spaces.image import image_of
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.data.unpacking import episodes_of
from aaren_rl.envs.readers.hdf5 import open_checked, require_memory
from aaren_rl.envs.readers.parsed import (
    Parsed,
    Say,
    action_space_of,
    is_choice,
    observation_space_of,
    without_column,
)
from aaren_rl.envs.readers.signatures import is_zip
from aaren_rl.envs.readers.streamed import Keep, Streamed, in_memory
from aaren_rl.envs.readers.zipped_arrays import open_npz, shapes
from aaren_rl.errors import DataError, InvalidInput

KEYS = ("observations", "actions", "rewards", "terminals")
TIMEOUTS = "timeouts"
NEXT = "next_observations"

_Array: TypeAlias = "h5py.Dataset | npt.NDArray[Any]"
_Bools: TypeAlias = npt.NDArray[np.bool_]

_ROWS = 4_096
"""Rows of a file that are read at once where only some of them are kept."""
_FLAGS = 1 << 18
"""Flags of a file that are read at once."""
_LEAST_FIT = 0.5
"""Least share of steps that go on in `next_observations`; with fewer the key does not fit the observations."""


class _Ends(NamedTuple):
    """Where episodes end.

    Attributes:
        last: last step of each episode, in rising order.
        terminated: (episodes,) bool.
        truncated: (episodes,) bool.
        rule: how the ends were found, for the log; empty where each flag is an end.
    """

    last: npt.NDArray[np.intp]
    terminated: _Bools
    truncated: _Bools
    rule: str = ""


def is_d4rl(keys: Collection[str]) -> bool:
    """True for the keys of D4RL's arrays, and not of OGBench's, which are named alike.

    OGBench's arrays have rewards only beside "masks" or "valids", and no timeouts.
    """
    return "terminals" in keys and (
        TIMEOUTS in keys or ("rewards" in keys and "masks" not in keys and "valids" not in keys)
    )


def read_file(path: Path, horizon: int | None = None, say: Say = print, keep: Keep = in_memory) -> Trajectories:
    """Reads a D4RL HDF5 file (Fu et al. 2020, arXiv 2004.07219), straight into float32, or an npz file of such arrays.

    Args:
        path: the file.
        horizon: as in `from_arrays`.
        say: as in `from_arrays`.
        keep: makes the trajectories of an HDF5 file; those of an npz file lie in memory.

    Raises:
        DataError: the file is missing, cut off, not HDF5, refers to other files, asks for more memory than it can fill,
            or its contents do not fit.
        InvalidInput: the horizon is below 1.
    """
    if is_zip(path):
        return from_arrays(_npz_arrays(path), str(path), horizon, say)
    with open_checked(path) as file:
        try:
            return _from_arrays(file, path.stem, (path,), str(path), horizon, say, keep)
        except (OSError, RuntimeError, KeyError, MemoryError) as error:
            raise DataError(
                f"{path} ({path.stat().st_size} bytes) cannot be read as HDF5: {error}; it may be cut off or damaged: "
                "fetch it again"
            ) from error


def parse(path: Path, say: Say, horizon: int | None = None) -> Parsed:
    """The episodes of a file that `read_file` reads; floats are float32, as in `read_file`.

    Args:
        path: the file.
        say: as in `from_arrays`.
        horizon: as in `from_arrays`.

    Raises:
        DataError: as in `read_file`.
        InvalidInput: the horizon is below 1.
    """
    data = read_file(path, horizon, say)
    episodes = episodes_of(data)
    return Parsed(
        path.stem,
        episodes,
        observation_space_of([one.observations for one in episodes], f"{path}: observations"),
        action_space_of([one.actions for one in episodes], f"{path.name}: actions", say)
        if data.action_space is None
        else gymnasium_space(data.action_space),
    )


def from_arrays(
    data: Mapping[str, Any], name: str = "the dataset", horizon: int | None = None, say: Say = print
) -> Trajectories:
    """Trajectories from D4RL's arrays, in memory or in an open file.

    Where episodes end:

    1. With "timeouts": at each timeout, and at each terminal after which the data do not go on. They go on if
       "next_observations" equals the next row of "observations". Where that key is missing or does not tell, a run of
       terminals is one end.
    2. Without "timeouts", with "next_observations" that tell: where the data do not go on, at the last step, and at
       every `horizon` steps between.
    3. Without both: at the end of each run of terminals, and at every `horizon` steps after the last end.

    "next_observations" do not tell where they equal the next row from one episode to the next, or differ from it at
    most steps. With rules 1 and 3 the unfinished tail is dropped. The final observation of an episode is the one under
    "next_observations" at its last step; None without that key.

    Floats are read as float32. Observations that are images of bytes stay bytes. Actions of whole numbers or bools are
    choices. Whole numbers that float32 does not hold are refused.

    Args:
        data: arrays of equal length under "observations", "actions", "rewards" and "terminals", and perhaps "timeouts"
            and "next_observations"; other keys are ignored.
        name: of the data, for messages.
        horizon: greatest number of steps of an episode; ignored where the data have "timeouts".
        say: called with a line on the rule, where it is not that each flag is an end.

    Raises:
        DataError: keys are missing, lengths or shapes do not fit, nothing tells where episodes end, no episode is
            whole, or values are not finite.
        InvalidInput: the horizon is below 1.
    """
    return _from_arrays(data, name, (), name, horizon, say, in_memory)


def _from_arrays(
    data: Mapping[str, Any],
    dataset_id: str,
    files: tuple[Path, ...],
    name: str,
    horizon: int | None,
    say: Say,
    keep: Keep,
) -> Trajectories:
    if horizon is not None and horizon < 1:
        raise InvalidInput(f"the horizon is {horizon}; expected at least 1 step")
    missing = [key for key in KEYS if key not in data]
    if missing:
        raise DataError(
            f"{name} lacks {missing}; expected D4RL's keys {[*KEYS, TIMEOUTS]}, it has {sorted(map(str, data.keys()))}"
        )
    with _named(name):
        length = _length(data)
        _refuse_inexact(data)
        ends = _ends(data, length, horizon)
        if len(ends.last) == 0:
            horizon_too = "" if TIMEOUTS in data else f", and there are fewer steps than the horizon of {horizon}"
            raise DataError(
                f"it holds no whole episode: none of {length} steps is a terminal or a timeout{horizon_too}"
            )
        if ends.rule:
            say(f"data: {name}: {ends.rule}")
        if TIMEOUTS in data and NEXT in data and (doubt := _doubt(data, ends.last)):
            say(f"warning: {name}: {doubt}")
        steps = int(ends.last[-1]) + 1
        space = None
        if is_choice(data["actions"].dtype):
            space = space_of(action_space_of(_extremes(data["actions"], steps), f"{name}: actions", say), image=False)

    def whole() -> Trajectories:
        with _named(name):
            _require_memory(data, length, name)
            return _in_memory(data, ends, space)

    return keep(
        Streamed(
            dataset_id,
            files,
            f"horizon {horizon}",
            Counts(steps, len(ends.last)),
            _bytes(data, length),
            (None, space),
            lambda: _blocks_of_rows(data, ends),
            whole,
        )
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Names the data in errors on their arrays."""
    try:
        yield
    except (DataError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name} does not hold D4RL's arrays: {error}") from error


def _in_memory(data: Mapping[str, Any], ends: _Ends, space: Space | None) -> Trajectories:
    bounds = np.concatenate([[0], ends.last + 1])
    every = slice(0, int(bounds[-1]))
    return Trajectories(
        _values(data["observations"], every),
        _actions(data["actions"], every),
        _float32(data["rewards"], every).reshape(every.stop),
        bounds,
        ends.terminated,
        ends.truncated,
        _rows(data[NEXT], ends.last) if NEXT in data else None,
        action_space=space,
    )


def _npz_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an npz file that are read."""
    with open_npz(path) as file:
        sizes = {key: size for key, size in shapes(path).items() if key in (*KEYS, TIMEOUTS, NEXT)}
        require_memory(2 * sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes.values()), path.name)
        return {key: file[key] for key in sizes}


def _ends(data: Mapping[str, Any], length: int, horizon: int | None) -> _Ends:
    """Chooses one of the rules of `from_arrays`.

    Raises:
        DataError: nothing tells where episodes end.
    """
    terminals = _flags(data, "terminals", length)
    if TIMEOUTS in data:
        return _ends_by_flags(data, terminals, _flags(data, TIMEOUTS, length))
    if NEXT in data:
        blocks = (np.arange(first, min(first + _ROWS, length)) for first in range(0, length, _ROWS))
        goes_on = np.concatenate([_goes_on(data, block) for block in blocks])
        if not goes_on[:-1].all() and goes_on.mean() >= _LEAST_FIT:
            return _ends_by_breaks(terminals, goes_on, horizon)
    if horizon is None:
        raise DataError(
            f"it lacks {TIMEOUTS!r}, which say where an episode was cut off, and no {NEXT!r} show it; pass --horizon "
            "(in Python: horizon=) with the greatest number of steps of an episode"
        )
    runs = np.flatnonzero(_ends_of_runs(terminals))
    # The unfinished tail is cut as well, up to its last whole episode.
    cuts = _cut(runs, length, horizon)
    last = np.union1d(runs, cuts)
    truncated = np.diff(last, prepend=-1) == horizon
    rule = f"no {TIMEOUTS!r}: episodes end at a terminal or after {horizon} steps"
    return _Ends(last, terminals[last], truncated, rule + _passed_over(terminals, last))


def _ends_by_flags(data: Mapping[str, Any], terminals: _Bools, timeouts: _Bools) -> _Ends:
    flagged = np.flatnonzero(terminals | timeouts)
    ends = timeouts | _ends_of_runs(terminals)
    how = "a run of terminals is one end"
    if NEXT in data and terminals.any():
        goes_on = _goes_on(data, flagged)
        # Some make next_observations by shifting observations: such data go on even from one episode to the next.
        shifted = goes_on[flagged < len(terminals) - 1].all()
        inside = np.flatnonzero(~(terminals | timeouts)[:_ROWS])
        if not shifted and (len(inside) == 0 or _goes_on(data, inside).mean() >= _LEAST_FIT):
            ends = timeouts.copy()
            ends[flagged] |= ~goes_on
            how = f"a terminal is an end where {NEXT!r} show that the data do not go on"
    last = np.flatnonzero(ends)
    passed_over = _passed_over(terminals, last)
    return _Ends(last, terminals[last], timeouts[last], how + passed_over if passed_over else "")


def _doubt(data: Mapping[str, Any], last: npt.NDArray[np.intp]) -> str | None:
    """What is wrong where the data jump inside episodes and go on at their ends; None where nothing shows."""
    ends = last[last < _length(data) - 1]
    inside = np.setdiff1d(np.arange(min(int(last[-1]), 25 * _ROWS)), last)
    if not len(ends) or not len(inside):
        return None
    jumps = inside[~_goes_on(data, inside)]
    # Observations that were normalised after the next ones were taken differ everywhere; that shows nothing.
    if not len(jumps) or len(jumps) > (1 - _LEAST_FIT) * len(inside):
        return None
    episodes = len(np.unique(np.searchsorted(last, jumps)))
    return (
        f"inside {episodes} of {len(last)} episodes {NEXT!r} are not the next observations, first at step "
        f"{jumps[0]}: are the ends marked at another step, or {NEXT!r} shifted?"
    )


def _ends_by_breaks(terminals: _Bools, goes_on: _Bools, horizon: int | None) -> _Ends:
    breaks = np.flatnonzero(~goes_on)
    last = breaks if horizon is None else np.union1d(breaks, _cut(breaks, len(terminals), horizon))
    rule = f"no {TIMEOUTS!r}: episodes end where {NEXT!r} show that the data do not go on"
    rule += "" if horizon is None else f", or after {horizon} steps"
    return _Ends(last, terminals[last], ~terminals[last], rule + _passed_over(terminals, last))


def _passed_over(terminals: _Bools, last: npt.NDArray[np.intp]) -> str:
    count = int(terminals.sum() - terminals[last].sum())
    return f"; {count} terminals inside episodes are no ends" if count else ""


def _ends_of_runs(terminals: _Bools) -> _Bools:
    """True at the last of consecutive terminals."""
    ends = terminals.copy()
    ends[:-1] &= ~terminals[1:]
    return ends


def _cut(last: npt.NDArray[np.intp], length: int, horizon: int) -> npt.NDArray[np.intp]:
    """Every `horizon`-th step after an end, up to the next end or the data's end."""
    starts = np.concatenate([[0], last + 1])
    stops = np.concatenate([last + 1, [length]])
    cuts = [np.arange(start + horizon - 1, stop, horizon) for start, stop in zip(starts, stops, strict=True)]
    return np.concatenate(cuts).astype(np.intp)


def _goes_on(data: Mapping[str, Any], steps: npt.NDArray[np.intp]) -> _Bools:
    """True for steps whose next observation is the observation of the next row; False for the last row of all."""
    found = np.zeros(len(steps), dtype=np.bool_)
    observations, following = data["observations"], data[NEXT]
    for block in _blocks(steps):
        first, last = int(steps[block[0]]), int(steps[block[-1]])
        here = steps[block] - first
        expected = np.asarray(following[first : last + 1], dtype=np.float32)[here]
        rows = np.asarray(observations[first + 1 : last + 2], dtype=np.float32)
        known = here < len(rows)
        same = rows[here[known]] == expected[known]
        found[block[known]] = same.all(axis=tuple(range(1, same.ndim)))
    return found


def _length(data: Mapping[str, Any]) -> int:
    """Number of steps, the same in all arrays that are read.

    Raises:
        DataError: a key holds no array of numbers, shapes do not fit, or lengths differ.
    """
    keys = [*KEYS, *(key for key in (TIMEOUTS, NEXT) if key in data)]
    for key in keys:
        numeric = getattr(getattr(data[key], "dtype", None), "kind", "?") in "fiub"
        if not numeric or not getattr(data[key], "shape", ()):
            raise DataError(f"{data[key]!r} lies under {key!r}; expected an array of numbers, one entry per step")
    lengths = {key: len(data[key]) for key in keys}
    if len(set(lengths.values())) != 1:
        raise DataError(f"its arrays differ in length: {lengths}; expected one entry per step in each")
    length = lengths["rewards"]
    if length == 0:
        raise DataError("its arrays are empty; expected at least one step")
    for key in keys:
        shape = tuple(data[key].shape)
        vectors = key in ("observations", "actions", NEXT)
        one_choice = key == "actions" and len(shape) == 1 and is_choice(data[key].dtype)
        if vectors and (len(shape) < 2 or 0 in shape) and not one_choice:
            raise DataError(f"{key} have shape {shape}; expected (steps, numbers), with at least one number a step")
        if not vectors and math.prod(shape) != length:
            raise DataError(f"{key} have shape {shape}; expected ({length},), one number per step")
    if NEXT in data and data[NEXT].shape != data["observations"].shape:
        found = tuple(data[NEXT].shape), tuple(data["observations"].shape)
        raise DataError(f"{NEXT} have shape {found[0]}; expected {found[1]}, as observations")
    if NEXT in data and _width(data[NEXT]) != _width(data["observations"]):
        dtypes = data[NEXT].dtype, data["observations"].dtype
        raise DataError(f"{NEXT} are {dtypes[0]}; expected {dtypes[1]}, as the images under observations")
    return length


def _refuse_inexact(data: Mapping[str, Any]) -> None:
    """Refuses whole numbers that float32 does not hold, some rows at a time; actions of whole numbers are choices."""
    for key in ("observations", "rewards", NEXT):
        if key in data and data[key].dtype.kind in "iu":
            for start in range(0, len(data[key]), _ROWS):
                refuse_inexact(key, np.asarray(data[key][start : start + _ROWS]))


def _require_memory(data: Mapping[str, Any], length: int, name: str) -> None:
    """Refuses an open file whose arrays do not fit into memory as float32, before they are allocated."""
    if isinstance(data["observations"], h5py.Dataset):
        require_memory(_bytes(data, length), name, "keep the data on disk (--data disk)")


def _bytes(data: Mapping[str, Any], length: int) -> int:
    """Bytes that an open file's arrays take in memory."""
    needed: int = sum(math.prod(data[key].shape) * _width(data[key]) for key in KEYS[:3])
    # Returns-to-go in float64 and float32, flags, and the sums that they come from.
    return needed + 32 * length


def _blocks_of_rows(data: Mapping[str, Any], ends: _Ends) -> Iterator[Rows]:
    """All steps, some rows of the file at a time."""
    starts = np.concatenate([[0], ends.last + 1])
    for first in range(0, int(starts[-1]), _ROWS):
        rows = slice(first, min(first + _ROWS, int(starts[-1])))
        here = slice(*np.searchsorted(ends.last, [rows.start, rows.stop]).tolist())
        yield Rows(
            _values(data["observations"], rows),
            _actions(data["actions"], rows),
            _float32(data["rewards"], rows).reshape(-1),
            np.diff(starts[here.start : here.stop + 1]).tolist(),
            ends.terminated[here].tolist(),
            ends.truncated[here].tolist(),
            _rows(data[NEXT], ends.last[here]) if NEXT in data else None,
        )


def _flags(data: Mapping[str, Any], key: str, length: int) -> _Bools:
    """(steps,) bool of an array that holds 0 and 1.

    Raises:
        DataError: it holds something else, NaN for instance, which would count as True.
    """
    found = np.empty(length, np.bool_)
    for start in range(0, length, _FLAGS):
        values = np.asarray(data[key][start : start + _FLAGS]).reshape(-1)
        # A bool of a file may be any byte.
        values = values.view(np.uint8) if values.dtype == np.bool_ else values
        other = np.flatnonzero((values != 0) & (values != 1))
        if len(other):
            raise DataError(f"{key} are {values[other[0]]} at step {start + other[0]}; expected 0 or 1")
        found[start : start + len(values)] = values
    return found


def _extremes(actions: _Array, steps: int) -> list[npt.NDArray[Any]]:
    """The least and the greatest of each component of the actions, for each block of rows: they show their space."""
    found = []
    for start in range(0, steps, _ROWS):
        block = np.asarray(actions[start : min(start + _ROWS, steps)])
        found.append(without_column(np.stack([block.min(0), block.max(0)])))
    return found


def _actions(array: _Array, rows: slice) -> npt.NDArray[np.float32]:
    """Some rows of the actions; choices, which HDF5 does not convert from bools, without a column."""
    if is_choice(array.dtype):
        return np.asarray(without_column(np.asarray(array[rows])), np.float32)
    return _float32(array, rows)


def _values(array: _Array, rows: slice) -> npt.NDArray[Any]:
    """Some rows as they are kept: images of bytes, else float32."""
    return np.asarray(array[rows]) if _width(array) == 1 else _float32(array, rows)


def _width(array: _Array) -> int:
    """Bytes that a number of an array takes in memory: images of bytes stay bytes."""
    return 1 if array.dtype == np.uint8 and image_of(tuple(array.shape[1:]), "uint8", 0, 255) else 4


def _float32(array: _Array, rows: slice) -> npt.NDArray[np.float32]:
    if isinstance(array, h5py.Dataset):
        # HDF5 converts while it reads, so a float64 file is never in memory in float64.
        out = np.empty((rows.stop - rows.start, *array.shape[1:]), dtype=np.float32)
        array.read_direct(out, rows)
        return out
    return np.asarray(array[rows], dtype=np.float32)


def _rows(array: _Array, rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Some rows in rising order, as they are kept, without the whole of a file's array in memory."""
    dtype = np.uint8 if _width(array) == 1 else np.float32
    if not isinstance(array, h5py.Dataset):
        return np.asarray(array[rows], dtype=dtype)
    out = np.empty((len(rows), *array.shape[1:]), dtype=dtype)
    # HDF5 takes far longer to pick many single rows than to read the blocks that hold them.
    for block in _blocks(rows):
        first, last = rows[block[0]], rows[block[-1]]
        out[block] = array[first : last + 1][rows[block] - first]
    return out


def _blocks(rows: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of rising rows, in blocks that lie within _ROWS rows of a file."""
    if len(rows):
        yield from np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows // _ROWS)) + 1)
