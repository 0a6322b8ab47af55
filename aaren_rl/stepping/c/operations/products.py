"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aaren_rl.stepping.c.arrays import Array
from aaren_rl.stepping.c.operations.registry import (
    assign,
    literal,
    mapped,
    operation,
    result_of,
)
from aaren_rl.stepping.c.writer import Writer

LARGE, MOST_INPUTS = 1_024, 4_096
"""Weights of a product from which on they are worth storing in 8 bits, and the inputs that 32 bits can sum."""


@operation("aten.addmm")
def _addmm(writer: Writer, meta: Any, bias: Array, x: Array, weight: Array) -> Array:
    return _product(writer, meta, x, weight, bias)


@operation("aten.mm")
def _mm(writer: Writer, meta: Any, x: Array, weight: Array) -> Array:
    return _product(writer, meta, x, weight, None)


def _product(writer: Writer, meta: Any, x: Array, weight: Array, bias: Array | None) -> Array:
    type, shape = result_of(meta)
    rows, (inner, columns) = shape[0], weight.shape
    x = writer.whole(x)
    known = type == "float" and weight.storage in writer.constants
    narrow = writer.int8 and known and weight.size >= LARGE and inner <= MOST_INPUTS
    weight = writer.whole(weight)
    out = writer.temporary(type, shape)
    begun = f"{literal(0, type)}" if bias is None else None
    if bias is not None and not narrow:
        assign(writer, out, bias.broadcast(shape))
    elif not narrow:
        writer.loop((out.size,), lambda at: f"{out.reshaped((out.size,)).at(at)} = {begun};")
    if narrow:
        small, scales = writer.narrowed(weight)
        writer.write(f"multiply_int8({out.pointer}, {x.pointer}, {small}, {scales}, {rows}, {inner}, {columns});")
        return out if bias is None else mapped(writer, meta, lambda a, b: f"{a} + {b}", out, bias)
    writer.write(f"multiply_{type}({out.pointer}, {x.pointer}, {weight.pointer}, {rows}, {inner}, {columns});")
    return out


@operation("aten.bmm")
def _bmm(writer: Writer, meta: Any, x: Array, y: Array) -> Array:
    type, shape = result_of(meta)
    out, inner = writer.temporary(type, shape), x.shape[2]

    def sum_of(at: list[str]) -> str:
        batch, row, column = at
        product = f"{x.at([batch, row, 'k'])} * {y.at([batch, 'k', column])}"
        return f"{{ {type} sum = 0; for (int k = 0; k < {inner}; ++k) sum += {product}; {out.at(at)} = sum; }}"

    writer.loop(shape, sum_of)
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
    type, shape = result_of(meta)
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
