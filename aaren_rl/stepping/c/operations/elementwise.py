"""Operations that compute number by number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from aaren_rl.stepping.c.arrays import TYPES, Array
from aaren_rl.stepping.c.operations.registry import (
    OPERATIONS,
    REAL,
    function,
    literal,
    mapped,
    operation,
    or_nan,
    result_of,
)
from aaren_rl.stepping.c.writer import Writer


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


def _unary(name: str, expression: Callable[[str, str], str], whole: bool = False) -> None:
    """Offers a function of one number; `whole` says if it is right for whole numbers too."""

    def emit(writer: Writer, meta: Any, x: Array) -> Array:
        if TYPES[meta.dtype] not in REAL and not whole:
            raise NotImplementedError("whole numbers")
        return mapped(writer, meta, lambda read: expression(read, TYPES[meta.dtype]), x)

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
_unary("relu", lambda x, type: f"{x} > 0{or_nan(x, type)} ? {x} : 0")
_unary("sigmoid", lambda x, type: f"{literal(1, type)} / ({literal(1, type)} + {function('exp', type)}(-{x}))")
_unary("logical_not", lambda x, type: f"!{x}", whole=True)
_unary("bitwise_not", lambda x, type: f"!{x}" if type == "bool" else f"~{x}", whole=True)


@operation("aten.gelu")
def _gelu(writer: Writer, meta: Any, x: Array, approximate: str = "none") -> Array:
    type, _ = result_of(meta)
    half, root = literal(0.5, type), literal(math.sqrt(0.5), type)
    if approximate == "tanh":
        inner, cubed = literal(math.sqrt(2 / math.pi), type), literal(0.044715, type)
        bent = f"{inner} * ({{0}} + {cubed} * {{0}} * {{0}} * {{0}})"
        body = f"{half} * {{0}} * ({literal(1, type)} + {function('tanh', type)}({bent}))"
    else:
        body = f"{half} * {{0}} * ({literal(1, type)} + {function('erf', type)}({{0}} * {root}))"
    return mapped(writer, meta, body.format, x)


def _binary(names: Sequence[str], expression: Callable[[str, str, str], str], compares: bool = False) -> None:
    def emit(writer: Writer, meta: Any, x: Any, y: Any, **more: Any) -> Array:
        if more.get("alpha", 1) != 1:
            raise NotImplementedError(f"alpha={more['alpha']}")
        inside = _common(x, y) if compares else TYPES[meta.dtype]
        return mapped(writer, meta, lambda a, b: expression(a, b, inside), x, y, type=inside)

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
_binary(["maximum"], lambda a, b, type: f"{a} > {b}{or_nan(a, type)} ? {a} : {b}")
_binary(["minimum"], lambda a, b, type: f"{a} < {b}{or_nan(a, type)} ? {a} : {b}")


@operation("aten.remainder")
def _remainder(writer: Writer, meta: Any, x: Any, y: Any) -> Array:
    type, _ = result_of(meta)
    # The sign is the divisor's, as in Python.
    if type == "int64_t":
        return mapped(writer, meta, lambda a, b: f"(({a}) % ({b}) + ({b})) % ({b})", x, y)
    return mapped(writer, meta, lambda a, b: f"remainder_{type}({a}, {b})", x, y)


@operation("aten.div")
def _div(writer: Writer, meta: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Array:
    type, _ = result_of(meta)
    if rounding_mode is None:
        return mapped(writer, meta, lambda a, b: f"{a} / {b}", x, y)
    if rounding_mode != "floor" or type != "int64_t":
        raise NotImplementedError(f"rounding_mode={rounding_mode} of real numbers")
    rest = "(({0}) % ({1}) != 0 && (({0}) < 0) != (({1}) < 0))"
    return mapped(writer, meta, lambda a, b: f"({a}) / ({b}) - {rest.format(a, b)}", x, y)


@operation("aten.pow")
def _pow(writer: Writer, meta: Any, x: Any, y: Any) -> Array:
    type, _ = result_of(meta)
    if y == 2:
        return mapped(writer, meta, lambda a: f"{a} * {a}", x)
    if type not in REAL:
        raise NotImplementedError("whole numbers")
    return mapped(writer, meta, lambda a, b: f"{function('pow', type)}({a}, {b})", x, y)


@operation("aten.clamp")
def _clamp(writer: Writer, meta: Any, x: Array, low: Any = None, high: Any = None) -> Array:
    def bounded(read: str, *bounds: str) -> str:
        given = iter(bounds)
        if low is not None:
            read = f"({read} < {(least := next(given))} ? {least} : {read})"
        if high is not None:
            read = f"({read} > {(most := next(given))} ? {most} : {read})"
        return read

    return mapped(writer, meta, bounded, x, *(bound for bound in (low, high) if bound is not None))


@operation("aten.where")
def _where(writer: Writer, meta: Any, condition: Array, x: Any, y: Any) -> Array:
    type, shape = result_of(meta)
    # The condition keeps its type.
    chosen = [value if isinstance(value, Array) else writer.constant_of(value, type) for value in (x, y)]
    return writer.elementwise(type, shape, lambda c, a, b: f"{c} ? ({type}){a} : ({type}){b}", condition, *chosen)


@operation("aten._to_copy", "aten.clone")
def _copy(writer: Writer, meta: Any, x: Array, **more: Any) -> Array:
    type, shape = result_of(meta)
    if type == x.type:
        return x
    test = "!= 0" if type == "bool" else ""
    return writer.elementwise(type, shape, lambda read: f"({type})({read}{test})", x)


@operation("aten.alias")
def _same(writer: Writer, meta: Any, x: Array) -> Array:
    return x


@operation("aten.full_like")
def _full(writer: Writer, meta: Any, like: Array, value: float) -> Array:
    return writer.constant_of(value, result_of(meta)[0]).broadcast(result_of(meta)[1])
