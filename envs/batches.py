"""Batches of an environment's values, which may be nested as its spaces: rows of them, and stacks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def row_of(batch: Any, row: int) -> Any:
    """The value of one row, a copy."""
    if isinstance(batch, Mapping):
        return {key: row_of(part, row) for key, part in batch.items()}
    if isinstance(batch, tuple) and not _is_texts(batch):
        return tuple(row_of(part, row) for part in batch)
    return copy.copy(batch[row])


def where(rows: npt.NDArray[np.bool_], chosen: Any, other: Any) -> Any:
    """Some rows of one batch, the rest of another.

    Args:
        rows: those of the first, (rows,).
        chosen: a batch.
        other: a batch of the same space.
    """
    if isinstance(chosen, Mapping):
        return {key: where(rows, part, other[key]) for key, part in chosen.items()}
    if isinstance(chosen, tuple):
        if _is_texts(chosen):
            return tuple(np.where(rows, np.array(chosen, dtype=object), np.array(other, dtype=object)))
        return tuple(where(rows, *parts) for parts in zip(chosen, other, strict=True))
    return np.where(rows.reshape(-1, *[1] * (np.ndim(chosen) - 1)), chosen, other)


def stacked(values: Sequence[Any]) -> Any:
    """Values one after another along a new first dimension, as `aaren_rl.data.trajectories.Episode` has them."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: stacked([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        return tuple(stacked(parts) for parts in zip(*values, strict=True))
    return list(values) if isinstance(first, str) else np.stack(values)


def _is_texts(batch: tuple[Any, ...]) -> bool:
    """True for texts, which Gymnasium batches as a tuple."""
    return bool(batch) and isinstance(batch[0], str)
