"""Operations that arrange numbers: views, slices, joins, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aaren_rl.stepping.c.arrays import Array
from aaren_rl.stepping.c.operations.registry import (
    assign,
    literal,
    operation,
    result_of,
)
from aaren_rl.stepping.c.writer import Writer


@operation("aten.view")
def _view(writer: Writer, meta: Any, x: Array, shape: Any) -> Array:
    return writer.whole(x).reshaped(result_of(meta)[1])


@operation("aten.expand")
def _expand(writer: Writer, meta: Any, x: Array, shape: Any) -> Array:
    return x.broadcast(result_of(meta)[1])


@operation("aten.unsqueeze")
def _unsqueeze(writer: Writer, meta: Any, x: Array, axis: int) -> Array:
    at = axis % (len(x.shape) + 1)
    return x.viewed((*x.shape[:at], 1, *x.shape[at:]), (*x.strides[:at], 0, *x.strides[at:]))


@operation("aten.squeeze")
def _squeeze(writer: Writer, meta: Any, x: Array, axes: Any = None) -> Array:
    given = range(len(x.shape)) if axes is None else [axes] if isinstance(axes, int) else axes
    gone = {axis % len(x.shape) for axis in given if x.shape[axis] == 1}
    kept = [axis for axis in range(len(x.shape)) if axis not in gone]
    return x.viewed([x.shape[axis] for axis in kept], [x.strides[axis] for axis in kept])


@operation("aten.permute")
def _permute(writer: Writer, meta: Any, x: Array, order: Sequence[int]) -> Array:
    return x.viewed([x.shape[axis] for axis in order], [x.strides[axis] for axis in order])


@operation("aten.slice")
def _slice(
    writer: Writer, meta: Any, x: Array, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    axis %= len(x.shape)
    first, last, step = slice(start, end, step).indices(x.shape[axis])
    shape, strides = list(x.shape), list(x.strides)
    shape[axis], strides[axis] = len(range(first, last, step)), x.strides[axis] * step
    return x.viewed(shape, strides, first * x.strides[axis])


@operation("aten.select")
def _select(writer: Writer, meta: Any, x: Array, axis: int, index: int) -> Array:
    axis %= len(x.shape)
    offset = (index % x.shape[axis]) * x.strides[axis]
    rest = [other for other in range(len(x.shape)) if other != axis]
    return x.viewed([x.shape[other] for other in rest], [x.strides[other] for other in rest], offset)


@operation("aten.split_with_sizes")
def _split(writer: Writer, meta: Any, x: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [_slice(writer, None, x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


@operation("aten.cat")
def _cat(writer: Writer, meta: Any, parts: Sequence[Array], axis: int = 0) -> Array:
    type, shape = result_of(meta)
    out, start = writer.temporary(type, shape), 0
    axis %= len(shape)
    for part in parts:
        if not part.size:
            continue
        place = _slice(writer, None, out, axis, start, start + part.shape[axis])
        assign(writer, place, part)
        start += part.shape[axis]
    return out


@operation("aten.constant_pad_nd")
def _pad(writer: Writer, meta: Any, x: Array, pad: Sequence[int], value: float = 0) -> Array:
    type, shape = result_of(meta)
    out = writer.temporary(type, shape)
    writer.loop((out.size,), lambda at: f"{out.reshaped((out.size,)).at(at)} = {literal(value, type)};")
    inner, source = out, x
    for number in range(len(pad) // 2):
        axis, before, after = len(shape) - 1 - number, pad[2 * number], pad[2 * number + 1]
        # Negative widths cut.
        source = _slice(writer, None, source, axis, max(0, -before), x.shape[axis] - max(0, -after))
        inner = _slice(writer, None, inner, axis, max(0, before), shape[axis] - max(0, after))
    assign(writer, inner, source)
    return out


@operation("aten.flip")
def _flip(writer: Writer, meta: Any, x: Array, axes: Sequence[int]) -> Array:
    offset, strides = 0, list(x.strides)
    for axis in axes:
        offset += (x.shape[axis] - 1) * strides[axis]
        strides[axis] = -strides[axis]
    return writer.whole(x.viewed(x.shape, strides, offset))
