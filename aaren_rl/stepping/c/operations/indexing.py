"""Operations whose places in an array depend on input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aaren_rl.stepping.c.arrays import Array
from aaren_rl.stepping.c.operations.registry import (
    assign,
    literal,
    operation,
    result_of,
)
from aaren_rl.stepping.c.writer import Writer


def _inside(index: str, length: int) -> str:
    """An index that depends on input, kept in the array: input that no space has must not reach other memory."""
    return f"inside({index}, {length})"


@operation("aten.gather")
def _gather(writer: Writer, meta: Any, x: Array, axis: int, index: Array, **more: Any) -> Array:
    type, shape = result_of(meta)
    axis %= len(shape)
    out = writer.temporary(type, shape)

    def body(at: list[str]) -> str:
        inside = list(at)
        inside[axis] = _inside(index.at(at), x.shape[axis])
        return f"{out.at(at)} = {x.at(inside)};"

    writer.loop(shape, body)
    return out


@operation("aten.scatter")
def _scatter(writer: Writer, meta: Any, x: Array, axis: int, index: Array, value: Any) -> Array:
    return _scattered(writer, meta, x, axis, index, value, "=")


@operation("aten.scatter_add")
def _scatter_add(writer: Writer, meta: Any, x: Array, axis: int, index: Array, value: Array) -> Array:
    return _scattered(writer, meta, x, axis, index, value, "+=")


def _scattered(writer: Writer, meta: Any, x: Array, axis: int, index: Array, value: Any, sign: str) -> Array:
    type, shape = result_of(meta)
    axis %= len(shape)
    out = writer.temporary(type, shape)
    assign(writer, out, x)

    def body(at: list[str]) -> str:
        inside = list(at)
        inside[axis] = _inside(index.at(at), shape[axis])
        return f"{out.at(inside)} {sign} {value.at(at) if isinstance(value, Array) else literal(value, type)};"

    writer.loop(index.shape, body)
    return out


@operation("aten.index")
def _index(writer: Writer, meta: Any, x: Array, indices: Sequence[Array | None]) -> Array:
    type, shape = result_of(meta)
    given = [(axis, one) for axis, one in enumerate(indices) if one is not None]
    axes = [axis for axis, _ in given]
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise NotImplementedError("indices with a gap between their axes")
    common = np.broadcast_shapes(*(one.shape for _, one in given))
    out = writer.temporary(type, shape)

    def body(at: list[str]) -> str:
        first, count = axes[0], len(common)
        picked = at[first : first + count]
        inside = [
            *at[:first],
            *(_inside(one.broadcast(common).at(picked), x.shape[axis]) for axis, one in given),
            *at[first + count :],
        ]
        return f"{out.at(at)} = {x.at(inside)};"

    writer.loop(shape, body)
    return out


@operation("aten.embedding")
def _embedding(writer: Writer, meta: Any, table: Array, rows: Array, *more: Any) -> Array:
    type, shape = result_of(meta)
    out = writer.temporary(type, shape)
    writer.loop(shape, lambda at: f"{out.at(at)} = {table.at([_inside(rows.at(at[:-1]), table.shape[0]), at[-1]])};")
    return out
