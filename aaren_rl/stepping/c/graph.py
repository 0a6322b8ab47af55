"""An exported graph of a step, walked once: what depends on weights alone is computed, the rest becomes C."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from aaren_rl.errors import InvalidInput
from aaren_rl.stepping.c.arrays import TYPES, Array, contiguous_strides
from aaren_rl.stepping.c.operations import OPERATIONS
from aaren_rl.stepping.c.writer import Writer
from aaren_rl.stepping.exported import graph_of

PLACES = ("dtype", "layout", "device", "pin_memory", "memory_format")
"""Keywords that say of what type a result is, which the graph says anyway, or where it lies."""

SKIPPED = ("aten._assert_tensor_metadata", "aten._assert_scalar", "aten.sym_constrain_range_for_size")
"""Operations that compute nothing."""


def write(program: ExportedProgram, arguments: Sequence[str], writer: Writer) -> list[Array]:
    """Writes all operations of a graph.

    Args:
        program: of ATen's core operations.
        arguments: names in C of the graph's inputs, in their order.
        writer: to write with.

    Returns:
        The graph's outputs.

    Raises:
        InvalidInput: the graph has an operation that has no C here.
    """
    return _Walk(program, arguments, writer).outputs()


class _Walk:
    """Values of the nodes so far: tensors where they are known beforehand, else arrays."""

    def __init__(self, program: ExportedProgram, arguments: Sequence[str], writer: Writer) -> None:
        self.program, self.writer = program, writer
        self.values: dict[fx.Node, Any] = {}
        self.names: dict[int, str] = {}
        self.held: list[Tensor] = []
        given = iter(arguments)
        known = {**program.state_dict, **program.constants}
        self.inputs: dict[str, Any] = {}
        for spec in program.graph_signature.input_specs:
            name = getattr(spec.arg, "name", "")
            if spec.kind == InputKind.USER_INPUT:
                self.inputs[name] = next(given)
            else:
                assert spec.target is not None
                self.inputs[name] = known[spec.target].detach()

    def outputs(self) -> list[Array]:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                return [self._array(self.values[value]) for value in node.args[0]]
        raise AssertionError("a graph ends with its output")

    def _placeholder(self, node: fx.Node) -> Any:
        given = self.inputs[node.name]
        if isinstance(given, Tensor):
            return given
        meta = node.meta["val"]
        return Array(given, TYPES[meta.dtype], tuple(meta.shape), contiguous_strides(meta.shape))

    def _call(self, node: fx.Node) -> Any:
        name = str(node.target)
        if name.startswith("<built-in function getitem"):
            source, index = node.args
            return self.values[source][index]  # type: ignore[index]
        base = re.sub(r"\.[A-Za-z_]+$", "", name)
        if base in SKIPPED:
            return None
        arguments: Any = fx.node.map_arg(node.args, self.values.__getitem__)
        keywords: Any = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if not _any_array([arguments, keywords]):
            return node.target(*arguments, **keywords)  # type: ignore[operator]
        emit = OPERATIONS.get(name) or OPERATIONS.get(base)
        if emit is None:
            raise InvalidInput(f"the step has the operation {name}, which is not written in C; export it to ONNX")
        arguments = _mapped(arguments, self._array)
        keywords = {key: _mapped(value, self._array) for key, value in keywords.items() if key not in PLACES}
        try:
            return emit(self.writer, node.meta["val"], *arguments, **keywords)
        # A type or an argument that is not known here.
        except (NotImplementedError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"the step has {name} with {error}, which is not written in C; export it to ONNX"
            ) from error

    def _array(self, value: Any) -> Any:
        """A value as the writer takes it: tensors become constants, each once."""
        if not isinstance(value, Tensor):
            return value
        name = self.names.setdefault(id(value), f"weight_{len(self.names)}")
        # Held, so that no other tensor gets its id.
        self.held.append(value)
        return self.writer.constant(name, value)


def _any_array(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_any_array, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_any_array, value))
    return isinstance(value, Array)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, change) for one in value]
    return change(value)


def exported(step: torch.nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """The graph of a step for one environment, in ATen's core operations."""
    program = graph_of(step, example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core: ExportedProgram = program.run_decompositions()
    return core
