"""Operations along an axis: sums, extremes, norms, running sums, softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aaren_rl.stepping.c.arrays import TYPES, Array
from aaren_rl.stepping.c.operations.registry import (
    OPERATIONS,
    REAL,
    Emit,
    function,
    literal,
    mapped,
    operation,
    or_nan,
    result_of,
)
from aaren_rl.stepping.c.writer import Writer


@operation("aten.native_layer_norm")
def _layer_norm(
    writer: Writer, meta: Any, x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float
) -> list[Array]:
    type = TYPES[meta[0].dtype]
    width = 1
    for length in shape:
        width *= length
    x = writer.whole(x)
    rows, out = x.size // width, writer.temporary(type, x.shape)
    one, zero = writer.constant_of(1, type).broadcast((width,)), writer.constant_of(0, type).broadcast((width,))
    scale, shift = (
        writer.whole(given if given is not None else other) for given, other in ((weight, one), (bias, zero))
    )
    writer.write(
        f"normalise_{type}({out.pointer}, {x.pointer}, {scale.pointer}, {shift.pointer}, {rows}, {width}, "
        f"{literal(eps, type)});"
    )
    return [out]


def _flattened(shape: Sequence[int], axes: set[int]) -> list[int]:
    """A shape with a length of 1 along some axes, over which a statement loops itself."""
    return [1 if axis in axes else length for axis, length in enumerate(shape)]


def _reduce(
    writer: Writer, meta: Any, x: Array, axes: Sequence[int], start: str, step: Callable[[str, str], str]
) -> Array:
    """Reduces over axes; the result keeps them with a length of 1 until its shape says otherwise."""
    type, shape = result_of(meta)
    over = {axis % len(x.shape) for axis in axes} if axes else set(range(len(x.shape)))
    kept = _flattened(x.shape, over)
    out = writer.temporary(type, kept)

    def body(at: list[str]) -> str:
        inside, heads = list(at), []
        for axis in sorted(over):
            inside[axis] = f"j{axis}"
            heads.append(f"for (int j{axis} = 0; j{axis} < {x.shape[axis]}; ++j{axis})")
        read = x.at(inside)
        return f"{{ {type} all = {start}; {' '.join(heads)} {step('all', read)} {out.at(at)} = all; }}"

    writer.loop(kept, body)
    return out.reshaped(shape)


@operation("aten.sum", "aten.sum.dim_IntList")
def _sum(writer: Writer, meta: Any, x: Array, axes: Any = None, keepdim: bool = False, **more: Any) -> Array:
    return _reduce(writer, meta, x, axes or (), "0", lambda all, read: f"{all} += {read};")


@operation("aten.mean")
def _mean(writer: Writer, meta: Any, x: Array, axes: Any = None, keepdim: bool = False, **more: Any) -> Array:
    total = _sum(writer, meta, x, axes)
    return mapped(writer, meta, lambda a, b: f"{a} / {b}", total, x.size // total.size)


@operation("aten.any")
def _any(writer: Writer, meta: Any, x: Array, axes: Any = None, keepdim: bool = False) -> Array:
    given = () if axes is None else [axes] if isinstance(axes, int) else axes
    return _reduce(writer, meta, x, given, "0", lambda all, read: f"{all} |= {read} != 0;")


def _extreme(sign: str, least: bool) -> Emit:
    starts = {"bool": ("0", "1"), "int64_t": ("INT64_MIN", "INT64_MAX")}

    def emit(writer: Writer, meta: Any, x: Array, axes: Any = (), keepdim: bool = False) -> Array:
        type, _ = result_of(meta)
        start = starts.get(type, ("-INFINITY", "INFINITY"))[least]

        def step(all: str, read: str) -> str:
            return f"if ({read} {sign} {all}{or_nan(read, type)}) {all} = {read};"

        return _reduce(writer, meta, x, axes, start, step)

    return emit


OPERATIONS["aten.amax"], OPERATIONS["aten.amin"] = _extreme(">", False), _extreme("<", True)


@operation("aten.linalg_vector_norm")
def _norm(writer: Writer, meta: Any, x: Array, order: float = 2, axes: Any = None, keepdim: bool = False) -> Array:
    if order != 2:
        raise NotImplementedError(f"ord={order}")
    type, _ = result_of(meta)
    squares = _reduce(writer, meta, x, axes or (), "0", lambda all, read: f"{all} += {read} * {read};")
    return mapped(writer, meta, lambda a: f"{function('sqrt', type)}({a})", squares)


@operation("aten.argmax")
def _argmax(writer: Writer, meta: Any, x: Array, axis: int | None = None, keepdim: bool = False) -> Array:
    if axis is None:
        x, axis = writer.whole(x).reshaped((x.size,)), 0
    axis %= len(x.shape)
    kept = _flattened(x.shape, {axis})
    out = writer.temporary("int64_t", kept)

    def body(at: list[str]) -> str:
        first, now = list(at), list(at)
        first[axis], now[axis] = "best", "j"
        # A NaN counts as the largest, and the first of equals wins.
        nan = f" || ({x.at(now)} != {x.at(now)} && {x.at(first)} == {x.at(first)})" if x.type in REAL else ""
        find = f"for (int j = 1; j < {x.shape[axis]}; ++j) if ({x.at(now)} > {x.at(first)}{nan}) best = j;"
        return f"{{ int best = 0; {find} {out.at(at)} = best; }}"

    writer.loop(kept, body)
    return out.reshaped(result_of(meta)[1])


@operation("aten.cumsum")
def _cumsum(writer: Writer, meta: Any, x: Array, axis: int, **more: Any) -> Array:
    type, shape = result_of(meta)
    axis %= len(shape)
    out = writer.temporary(type, shape)

    def body(at: list[str]) -> str:
        inside = list(at)
        inside[axis] = "j"
        run = f"for (int j = 0; j < {shape[axis]}; ++j) {{ all += {x.at(inside)}; {out.at(inside)} = all; }}"
        return f"{{ {type} all = 0; {run} }}"

    writer.loop(_flattened(shape, {axis}), body)
    return out


@operation("aten._softmax")
def _softmax(writer: Writer, meta: Any, x: Array, axis: int, half_to_float: bool = False) -> Array:
    type, shape = result_of(meta)
    axis %= len(shape)
    out = writer.temporary(type, shape)

    def body(at: list[str]) -> str:
        inside = list(at)
        inside[axis] = "j"
        read, place, run = x.at(inside), out.at(inside), f"for (int j = 0; j < {shape[axis]}; ++j)"
        return (
            f"{{ {type} top = -INFINITY, all = 0; {run} if ({read} > top) top = {read}; "
            f"{run} {{ {place} = {function('exp', type)}({read} - top); all += {place}; }} {run} {place} /= all; }}"
        )

    writer.loop(_flattened(shape, {axis}), body)
    return out
