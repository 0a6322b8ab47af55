"""What each operation of an exported graph is in C."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from aaren_rl.stepping.c.arrays import TYPES, Array
from aaren_rl.stepping.c.writer import Writer

Emit: TypeAlias = Callable[..., Any]
"""Writes an operation: takes the writer, what the graph says of the result, and the operation's arguments, with arrays
for tensors; returns the array of the result, or several."""

OPERATIONS: dict[str, Emit] = {}
"""By the operation's name in ATen, without its overload where all overloads are written alike."""

REAL = ("float", "double")
"""Types of real numbers."""

LARGE, MOST_INPUTS = 1_024, 4_096
"""Weights of a product from which on they are worth storing in 8 bits, and the inputs that 32 bits can sum."""


def operation(*names: str) -> Callable[[Emit], Emit]:
    """Decorator that offers a function as the C of operations."""

    def add(emit: Emit) -> Emit:
        OPERATIONS.update(dict.fromkeys(names, emit))
        return emit

    return add


def literal(value: float | bool, type: str) -> str:
    """A number as C writes it."""
    if type in ("int64_t", "bool"):
        return str(int(value))
    # Doubles beyond float32 are infinite in it.
    number = float(value) if type == "double" else float(torch.tensor(value, dtype=torch.float32))
    if math.isinf(number):
        return "-INFINITY" if number < 0 else "INFINITY"
    if math.isnan(number):
        return "NAN"
    text = f"{number:.17g}" if type == "double" else f"{number:.9g}"
    text = text if any(mark in text for mark in ".en") else f"{text}.0"
    return text if type == "double" else f"{text}f"


def function(name: str, type: str) -> str:
    """A function of libm for a type."""
    return name if type == "double" else f"{name}f"


def _or_nan(value: str, type: str) -> str:
    """The rest of a condition that takes a NaN too, so that it is handed on as torch does."""
    return f" || {value} != {value}" if type in REAL else ""


def _of(value: Any) -> tuple[str, tuple[int, ...]]:
    """C type and shape of what the graph says of a result."""
    return TYPES[value.dtype], tuple(value.shape)


def _common(*values: Any) -> str:
    """The type in which numbers are compared: arrays without dimensions and plain numbers only make it real."""
    order = ("bool", "int64_t", "float", "double")
    arrays = [value for value in values if isinstance(value, Array)]
    weighty = [value for value in arrays if value.shape] or arrays
    widest = max((value.type for value in weighty), key=order.index)
    if widest in REAL:
        return widest
    real = [value.type for value in arrays if value.type in REAL]
    if real:
        return max(real, key=order.index)
    return (
        "float" if any(isinstance(value, float) for value in values) else max((a.type for a in arrays), key=order.index)
    )


def _map(writer: Writer, meta: Any, expression: Callable[..., str], *values: Any, type: str | None = None) -> Array:
    """Computes a result number by number from arrays and numbers, all taken as of one type."""
    out, shape = _of(meta)
    inside = type or out
    arrays = [value for value in values if isinstance(value, Array)]

    def one(*read: str) -> str:
        names = iter(read)
        given = [
            (next(names) if value.type == inside else f"({inside}){next(names)}")
            if isinstance(value, Array)
            else literal(value, inside)
            for value in values
        ]
        return expression(*given)

    return writer.elementwise(out, shape, one, *arrays)


def _unary(name: str, expression: Callable[[str, str], str], whole: bool = False) -> None:
    """Offers a function of one number; `whole` says if it is right for whole numbers too."""

    def emit(writer: Writer, meta: Any, x: Array) -> Array:
        if TYPES[meta.dtype] not in REAL and not whole:
            raise NotImplementedError("whole numbers")
        return _map(writer, meta, lambda read: expression(read, TYPES[meta.dtype]), x)

    OPERATIONS[f"aten.{name}"] = emit


def _called(name: str) -> Callable[[str, str], str]:
    return lambda x, type: f"{function(name, type)}({x})"


def _between(sign: str) -> Callable[[str, str, str], str]:
    return lambda a, b, type: f"{a} {sign} {b}"


for _name, _function in {
    "exp": "exp",
    "log": "log",
    "log1p": "log1p",
    "sqrt": "sqrt",
    "sin": "sin",
    "cos": "cos",
    "tanh": "tanh",
    "floor": "floor",
    "erf": "erf",
}.items():
    _unary(_name, _called(_function))

_unary("abs", lambda x, type: f"{function('fabs', type)}({x})" if type in REAL else f"{x} < 0 ? -{x} : {x}", whole=True)
_unary("neg", lambda x, type: f"-{x}", whole=True)
_unary("reciprocal", lambda x, type: f"{literal(1, type)} / {x}")
_unary("relu", lambda x, type: f"{x} > 0{_or_nan(x, type)} ? {x} : 0")
_unary("sigmoid", lambda x, type: f"{literal(1, type)} / ({literal(1, type)} + {function('exp', type)}(-{x}))")
_unary("logical_not", lambda x, type: f"!{x}", whole=True)
_unary("bitwise_not", lambda x, type: f"!{x}" if type == "bool" else f"~{x}", whole=True)


@operation("aten.gelu")
def _gelu(writer: Writer, meta: Any, x: Array, approximate: str = "none") -> Array:
    type, _ = _of(meta)
    half, root = literal(0.5, type), literal(math.sqrt(0.5), type)
    if approximate == "tanh":
        inner, cubed = literal(math.sqrt(2 / math.pi), type), literal(0.044715, type)
        bent = f"{inner} * ({{0}} + {cubed} * {{0}} * {{0}} * {{0}})"
        body = f"{half} * {{0}} * ({literal(1, type)} + {function('tanh', type)}({bent}))"
    else:
        body = f"{half} * {{0}} * ({literal(1, type)} + {function('erf', type)}({{0}} * {root}))"
    return _map(writer, meta, body.format, x)


def _binary(names: Sequence[str], expression: Callable[[str, str, str], str], compares: bool = False) -> None:
    def emit(writer: Writer, meta: Any, x: Any, y: Any, **more: Any) -> Array:
        if more.get("alpha", 1) != 1:
            raise NotImplementedError(f"alpha={more['alpha']}")
        inside = _common(x, y) if compares else TYPES[meta.dtype]
        return _map(writer, meta, lambda a, b: expression(a, b, inside), x, y, type=inside)

    for name in names:
        OPERATIONS[f"aten.{name}"] = emit


for _names, _sign in {("add",): "+", ("sub",): "-", ("mul",): "*"}.items():
    _binary(_names, _between(_sign))
for _names, _sign in {
    ("eq",): "==",
    ("ne",): "!=",
    ("lt",): "<",
    ("le",): "<=",
    ("gt",): ">",
    ("ge",): ">=",
    ("logical_and",): "&&",
    ("logical_or",): "||",
}.items():
    _binary(_names, _between(_sign), compares=True)
_binary(["bitwise_and"], lambda a, b, type: f"{a} & {b}")
_binary(["bitwise_or"], lambda a, b, type: f"{a} | {b}")
_binary(["maximum"], lambda a, b, type: f"{a} > {b}{_or_nan(a, type)} ? {a} : {b}")
_binary(["minimum"], lambda a, b, type: f"{a} < {b}{_or_nan(a, type)} ? {a} : {b}")


@operation("aten.remainder")
def _remainder(writer: Writer, meta: Any, x: Any, y: Any) -> Array:
    type, _ = _of(meta)
    # The sign is the divisor's, as in Python.
    if type == "int64_t":
        return _map(writer, meta, lambda a, b: f"(({a}) % ({b}) + ({b})) % ({b})", x, y)
    return _map(writer, meta, lambda a, b: f"remainder_{type}({a}, {b})", x, y)


@operation("aten.div")
def _div(writer: Writer, meta: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Array:
    type, _ = _of(meta)
    if rounding_mode is None:
        return _map(writer, meta, lambda a, b: f"{a} / {b}", x, y)
    if rounding_mode != "floor" or type != "int64_t":
        raise NotImplementedError(f"rounding_mode={rounding_mode} of real numbers")
    rest = "(({0}) % ({1}) != 0 && (({0}) < 0) != (({1}) < 0))"
    return _map(writer, meta, lambda a, b: f"({a}) / ({b}) - {rest.format(a, b)}", x, y)


@operation("aten.pow")
def _pow(writer: Writer, meta: Any, x: Any, y: Any) -> Array:
    type, _ = _of(meta)
    if y == 2:
        return _map(writer, meta, lambda a: f"{a} * {a}", x)
    if type not in REAL:
        raise NotImplementedError("whole numbers")
    return _map(writer, meta, lambda a, b: f"{function('pow', type)}({a}, {b})", x, y)


@operation("aten.clamp")
def _clamp(writer: Writer, meta: Any, x: Array, low: Any = None, high: Any = None) -> Array:
    def bounded(read: str, *bounds: str) -> str:
        given = iter(bounds)
        if low is not None:
            read = f"({read} < {(least := next(given))} ? {least} : {read})"
        if high is not None:
            read = f"({read} > {(most := next(given))} ? {most} : {read})"
        return read

    return _map(writer, meta, bounded, x, *(bound for bound in (low, high) if bound is not None))


@operation("aten.where")
def _where(writer: Writer, meta: Any, condition: Array, x: Any, y: Any) -> Array:
    type, shape = _of(meta)
    # The condition keeps its type.
    chosen = [value if isinstance(value, Array) else writer.constant_of(value, type) for value in (x, y)]
    return writer.elementwise(type, shape, lambda c, a, b: f"{c} ? ({type}){a} : ({type}){b}", condition, *chosen)


@operation("aten._to_copy", "aten.clone")
def _copy(writer: Writer, meta: Any, x: Array, **more: Any) -> Array:
    type, shape = _of(meta)
    if type == x.type:
        return x
    test = "!= 0" if type == "bool" else ""
    return writer.elementwise(type, shape, lambda read: f"({type})({read}{test})", x)


@operation("aten.alias")
def _same(writer: Writer, meta: Any, x: Array) -> Array:
    return x


@operation("aten.full_like")
def _full(writer: Writer, meta: Any, like: Array, value: float) -> Array:
    return writer.constant_of(value, _of(meta)[0]).broadcast(_of(meta)[1])


@operation("aten.view")
def _view(writer: Writer, meta: Any, x: Array, shape: Any) -> Array:
    return writer.whole(x).reshaped(_of(meta)[1])


@operation("aten.expand")
def _expand(writer: Writer, meta: Any, x: Array, shape: Any) -> Array:
    return x.broadcast(_of(meta)[1])


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
    type, shape = _of(meta)
    out, start = writer.temporary(type, shape), 0
    axis %= len(shape)
    for part in parts:
        if not part.size:
            continue
        place = _slice(writer, None, out, axis, start, start + part.shape[axis])
        _assign(writer, place, part)
        start += part.shape[axis]
    return out


def _assign(writer: Writer, place: Array, value: Array) -> None:
    """Copies numbers into a view."""
    if place.contiguous and value.contiguous:
        place, value = place.reshaped((place.size,)), value.reshaped((place.size,))
    writer.loop(place.shape, lambda at: f"{place.at(at)} = {value.at(at)};")


@operation("aten.constant_pad_nd")
def _pad(writer: Writer, meta: Any, x: Array, pad: Sequence[int], value: float = 0) -> Array:
    type, shape = _of(meta)
    out = writer.temporary(type, shape)
    writer.loop((out.size,), lambda at: f"{out.reshaped((out.size,)).at(at)} = {literal(value, type)};")
    inner, source = out, x
    for number in range(len(pad) // 2):
        axis, before, after = len(shape) - 1 - number, pad[2 * number], pad[2 * number + 1]
        # Negative widths cut.
        source = _slice(writer, None, source, axis, max(0, -before), x.shape[axis] - max(0, -after))
        inner = _slice(writer, None, inner, axis, max(0, before), shape[axis] - max(0, after))
    _assign(writer, inner, source)
    return out


@operation("aten.flip")
def _flip(writer: Writer, meta: Any, x: Array, axes: Sequence[int]) -> Array:
    offset, strides = 0, list(x.strides)
    for axis in axes:
        offset += (x.shape[axis] - 1) * strides[axis]
        strides[axis] = -strides[axis]
    return writer.whole(x.viewed(x.shape, strides, offset))


@operation("aten.addmm")
def _addmm(writer: Writer, meta: Any, bias: Array, x: Array, weight: Array) -> Array:
    return _product(writer, meta, x, weight, bias)


@operation("aten.mm")
def _mm(writer: Writer, meta: Any, x: Array, weight: Array) -> Array:
    return _product(writer, meta, x, weight, None)


def _product(writer: Writer, meta: Any, x: Array, weight: Array, bias: Array | None) -> Array:
    type, shape = _of(meta)
    rows, (inner, columns) = shape[0], weight.shape
    x = writer.whole(x)
    known = type == "float" and weight.storage in writer.constants
    narrow = writer.int8 and known and weight.size >= LARGE and inner <= MOST_INPUTS
    weight = writer.whole(weight)
    out = writer.temporary(type, shape)
    begun = f"{literal(0, type)}" if bias is None else None
    if bias is not None and not narrow:
        _assign(writer, out, bias.broadcast(shape))
    elif not narrow:
        writer.loop((out.size,), lambda at: f"{out.reshaped((out.size,)).at(at)} = {begun};")
    if narrow:
        small, scales = writer.narrowed(weight)
        writer.write(f"multiply_int8({out.pointer}, {x.pointer}, {small}, {scales}, {rows}, {inner}, {columns});")
        return out if bias is None else _map(writer, meta, lambda a, b: f"{a} + {b}", out, bias)
    writer.write(f"multiply_{type}({out.pointer}, {x.pointer}, {weight.pointer}, {rows}, {inner}, {columns});")
    return out


@operation("aten.bmm")
def _bmm(writer: Writer, meta: Any, x: Array, y: Array) -> Array:
    type, shape = _of(meta)
    out, inner = writer.temporary(type, shape), x.shape[2]

    def sum_of(at: list[str]) -> str:
        batch, row, column = at
        product = f"{x.at([batch, row, 'k'])} * {y.at([batch, 'k', column])}"
        return f"{{ {type} sum = 0; for (int k = 0; k < {inner}; ++k) sum += {product}; {out.at(at)} = sum; }}"

    writer.loop(shape, sum_of)
    return out


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
    type, shape = _of(meta)
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
    return _map(writer, meta, lambda a, b: f"{a} / {b}", total, x.size // total.size)


@operation("aten.any")
def _any(writer: Writer, meta: Any, x: Array, axes: Any = None, keepdim: bool = False) -> Array:
    given = () if axes is None else [axes] if isinstance(axes, int) else axes
    return _reduce(writer, meta, x, given, "0", lambda all, read: f"{all} |= {read} != 0;")


def _extreme(sign: str, least: bool) -> Emit:
    starts = {"bool": ("0", "1"), "int64_t": ("INT64_MIN", "INT64_MAX")}

    def emit(writer: Writer, meta: Any, x: Array, axes: Any = (), keepdim: bool = False) -> Array:
        type, _ = _of(meta)
        start = starts.get(type, ("-INFINITY", "INFINITY"))[least]

        def step(all: str, read: str) -> str:
            return f"if ({read} {sign} {all}{_or_nan(read, type)}) {all} = {read};"

        return _reduce(writer, meta, x, axes, start, step)

    return emit


OPERATIONS["aten.amax"], OPERATIONS["aten.amin"] = _extreme(">", False), _extreme("<", True)


@operation("aten.linalg_vector_norm")
def _norm(writer: Writer, meta: Any, x: Array, order: float = 2, axes: Any = None, keepdim: bool = False) -> Array:
    if order != 2:
        raise NotImplementedError(f"ord={order}")
    type, _ = _of(meta)
    squares = _reduce(writer, meta, x, axes or (), "0", lambda all, read: f"{all} += {read} * {read};")
    return _map(writer, meta, lambda a: f"{function('sqrt', type)}({a})", squares)


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
    return out.reshaped(_of(meta)[1])


@operation("aten.cumsum")
def _cumsum(writer: Writer, meta: Any, x: Array, axis: int, **more: Any) -> Array:
    type, shape = _of(meta)
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
    type, shape = _of(meta)
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


def _inside(index: str, length: int) -> str:
    """An index that depends on input, kept in the array: input that no space has must not reach other memory."""
    return f"inside({index}, {length})"


@operation("aten.gather")
def _gather(writer: Writer, meta: Any, x: Array, axis: int, index: Array, **more: Any) -> Array:
    type, shape = _of(meta)
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
    type, shape = _of(meta)
    axis %= len(shape)
    out = writer.temporary(type, shape)
    _assign(writer, out, x)

    def body(at: list[str]) -> str:
        inside = list(at)
        inside[axis] = _inside(index.at(at), shape[axis])
        return f"{out.at(inside)} {sign} {value.at(at) if isinstance(value, Array) else literal(value, type)};"

    writer.loop(index.shape, body)
    return out


@operation("aten.index")
def _index(writer: Writer, meta: Any, x: Array, indices: Sequence[Array | None]) -> Array:
    type, shape = _of(meta)
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


@operation("aten.convolution")
def _convolution(
    writer: Writer,
    meta: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    type, shape = _of(meta)
    if transposed or len(shape) != 3 or padding[0]:
        raise NotImplementedError("a convolution over more than time, transposed or padded")
    _, inputs, width = weight.shape
    share = shape[1] // groups
    out = writer.temporary(type, shape)

    def body(at: list[str]) -> str:
        batch, channel, time = at
        group = "0" if groups == 1 else f"({channel}) / {share} * {inputs}"
        read = x.at([batch, f"({group} + c)", f"({time} * {stride[0]} + k * {dilation[0]})"])
        start = "0" if bias is None else bias.at([channel])
        run = f"for (int c = 0; c < {inputs}; ++c) for (int k = 0; k < {width}; ++k)"
        return (
            f"{{ {type} sum = {start}; {run} sum += {read} * {weight.at([channel, 'c', 'k'])}; {out.at(at)} = sum; }}"
        )

    writer.loop(shape, body)
    return out


@operation("aten.embedding")
def _embedding(writer: Writer, meta: Any, table: Array, rows: Array, *more: Any) -> Array:
    type, shape = _of(meta)
    out = writer.temporary(type, shape)
    writer.loop(shape, lambda at: f"{out.at(at)} = {table.at([_inside(rows.at(at[:-1]), table.shape[0]), at[-1]])};")
    return out
