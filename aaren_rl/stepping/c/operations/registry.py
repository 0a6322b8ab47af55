"""How an operation of an exported graph is written in C, and what most of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

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


def or_nan(value: str, type: str) -> str:
    """The rest of a condition that takes a NaN too, so that it is handed on as torch does."""
    return f" || {value} != {value}" if type in REAL else ""


def result_of(value: Any) -> tuple[str, tuple[int, ...]]:
    """C type and shape of what the graph says of a result."""
    return TYPES[value.dtype], tuple(value.shape)


def mapped(writer: Writer, meta: Any, expression: Callable[..., str], *values: Any, type: str | None = None) -> Array:
    """Computes a result number by number from arrays and numbers, all taken as of one type."""
    out, shape = result_of(meta)
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


def assign(writer: Writer, place: Array, value: Array) -> None:
    """Copies numbers into a view."""
    if place.contiguous and value.contiguous:
        place, value = place.reshaped((place.size,)), value.reshaped((place.size,))
    writer.loop(place.shape, lambda at: f"{place.at(at)} = {value.at(at)};")
