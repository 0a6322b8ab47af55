"""Writes the statements of the generated function, and shares scratch memory among its temporaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aaren_rl.stepping.c.arrays import TYPES, Array, contiguous_strides, size_of

SCRATCH = {"float": "f", "double": "d", "int64_t": "n", "bool": "b"}
"""Names of the scratch memory of each type."""

BYTES = {"float": 4, "double": 8, "int64_t": 8, "bool": 1}


@dataclass
class Temporary:
    """A temporary of the generated function.

    Attributes:
        type: C type.
        size: numbers in it.
        first: number of the statement that writes it first.
        last: number of the last statement that names it.
    """

    type: str
    size: int
    first: int
    last: int


@dataclass
class Writer:
    """Statements in the order of execution, and the constants and temporaries that they name.

    Attributes:
        int8: weights of large products are stored in 8 bits.
        longest: most inputs of a product whose weights are so stored; 0 for none.
    """

    int8: bool = False
    statements: list[str] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    temporaries: list[Temporary] = field(default_factory=list)
    longest: int = 0

    def constant(self, name: str, tensor: Tensor) -> Array:
        """An array of a tensor that never changes."""
        tensor = tensor.detach().contiguous()
        self.constants[name] = tensor
        return Array(name, TYPES[tensor.dtype], tuple(tensor.shape), contiguous_strides(tensor.shape))

    def constant_of(self, value: float, type: str) -> Array:
        """An array of one number that never changes, to be broadcast."""
        dtype = next(dtype for dtype, name in TYPES.items() if name == type)
        name = f"number_{type}_{re.sub('[^0-9a-z]', '_', repr(value).lower().replace('-', 'm'))}"
        return self.constant(name, torch.tensor(value, dtype=dtype))

    def narrowed(self, weight: Array) -> tuple[str, str]:
        """Names of a weight in 8 bits, (outputs, inputs), and of the scales of its outputs."""
        tensor = self.constants[weight.storage].t()
        scales = tensor.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.constants[f"{weight.storage}_int8"] = (tensor / scales[:, None]).round().to(torch.int8)
        self.longest = max(self.longest, tensor.shape[1])
        self.constants[f"{weight.storage}_scale"] = scales
        return f"{weight.storage}_int8", f"{weight.storage}_scale"

    def temporary(self, type: str, shape: Sequence[int]) -> Array:
        """A new array, to be written by the next statement."""
        number, now = len(self.temporaries), len(self.statements)
        self.temporaries.append(Temporary(type, size_of(shape), now, now))
        return Array(f"@{number}@", type, tuple(shape), contiguous_strides(shape))

    def write(self, statement: str) -> None:
        """Adds a statement."""
        for number in re.findall(r"@(\d+)@", statement):
            self.temporaries[int(number)].last = len(self.statements)
        self.statements.append(statement)

    def loop(self, shape: Sequence[int], body: Callable[[list[str]], str]) -> None:
        """Writes a statement for every index of a shape.

        Args:
            shape: of the indices.
            body: makes the statement from C expressions of the indices.
        """
        indices = ["0" if length == 1 else f"i{axis}" for axis, length in enumerate(shape)]
        heads = [
            f"for (int {index} = 0; {index} < {length}; ++{index})"
            for index, length in zip(indices, shape, strict=True)
            if index != "0"
        ]
        self.write(
            "\n".join([*("  " * depth + head for depth, head in enumerate(heads)), ""])
            + "  " * len(heads)
            + body(indices)
        )

    def elementwise(self, type: str, shape: Sequence[int], expression: Callable[..., str], *inputs: Array) -> Array:
        """An array computed number by number.

        Args:
            type: C type of the result.
            shape: of the result.
            expression: C expression of a number from those of the inputs.
            *inputs: broadcast to the shape.
        """
        spread = [one.broadcast(shape) for one in inputs]
        if all(one.contiguous for one in spread):
            # One loop over all numbers.
            flat = (size_of(shape),)
            out = self.temporary(type, flat)
            spread = [one.reshaped(flat) for one in spread]
        else:
            out = self.temporary(type, shape)
        self.loop(out.shape, lambda at: f"{out.at(at)} = {expression(*(one.at(at) for one in spread))};")
        return out.reshaped(shape)

    def whole(self, array: Array) -> Array:
        """The array itself if it is contiguous, else a copy that is."""
        return array if array.contiguous else self.elementwise(array.type, array.shape, lambda x: x, array)

    def body(self) -> tuple[str, int]:
        """All statements, with the scratch memory that they need declared before them, and its bytes."""
        places, sizes = self._places()
        declared = [f"{type} {SCRATCH[type]}[{size}];" for type, size in sizes.items()]
        text = "\n".join([*declared, *self.statements])

        def place(found: re.Match[str]) -> str:
            number = int(found[1])
            return f"({SCRATCH[self.temporaries[number].type]} + {places[number]})"

        # An index into a temporary is one into the scratch memory, which compilers see through.
        text = re.sub(
            r"@(\d+)@\[",
            lambda found: f"{SCRATCH[self.temporaries[int(found[1])].type]}[{places[int(found[1])]} + ",
            text,
        )
        return re.sub(r"@(\d+)@", place, text), sum(BYTES[type] * size for type, size in sizes.items())

    def _places(self) -> tuple[dict[int, int], dict[str, int]]:
        """Where each temporary lies in the memory of its type, and how large that is: first fit by size."""
        places: dict[int, int] = {}
        sizes: dict[str, int] = {}
        for type in SCRATCH:
            numbers = [n for n, one in enumerate(self.temporaries) if one.type == type]
            for number in sorted(numbers, key=lambda n: -self.temporaries[n].size):
                one, place = self.temporaries[number], 0
                busy = sorted(
                    (places[other], self.temporaries[other].size)
                    for other in numbers
                    if other in places and self._meet(one, self.temporaries[other])
                )
                for start, size in busy:
                    if place + one.size <= start:
                        break
                    place = max(place, start + size)
                places[number] = place
                sizes[type] = max(sizes.get(type, 0), place + one.size)
        return places, sizes

    @staticmethod
    def _meet(one: Temporary, other: Temporary) -> bool:
        return one.first <= other.last and other.first <= one.last
