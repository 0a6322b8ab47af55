"""An agent as one ONNX graph of a single step, for machines without torch."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from aaren_rl import checkpoint
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.spaces import NUMBERS, Packed, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.ops.numpy_layers import Array
from aaren_rl.stepping.exported import (
    ExportFailed,
    check_difference,
    check_single_step,
    describe,
    largest_difference,
    write,
)
from aaren_rl.stepping.model_stepper import ModelStepper

GRAPH = checkpoint.EXPORTED_GRAPH
STEPS = 200
"""Of the check against torch."""

PERCEPTRON = ("expand", "contract")
"""How the names of the perceptrons' weights end in the graph."""


def to_onnx(model: DecisionModel, card: AgentCard, folder: Path, int8: bool = False) -> Path:
    """Writes agent.onnx and export.json, after checking the graph against torch.

    The graph maps observation (batch, *shape), reward (batch,) and state (batch, state size) to action
    (batch, *shape) and the new state, in the environment's units; the state is float64, images of bytes are uint8, all
    else is float32. Where observations have images, each is an input "observation.<path>" beside "observation", which
    holds the numbers of all other parts (`Space.pack`). The card has the spaces, the state before an episode and where
    in it the target return goes.

    Args:
        model: to export; the states of its mixers must not grow.
        card: what it was trained on and for.
        folder: to write into; an earlier export there is replaced.
        int8: store the weights of the perceptrons in 8 bits, and quantise what they meet as it comes.

    Returns:
        The graph's file.

    Raises:
        InvalidInput: a package is missing, a mixer's state grows, or the agent recomputes a window.
        ExportFailed: the graph and torch part ways; nothing was written.
        CheckpointError: it cannot be written, or the folder holds something else.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    check_single_step(card, folder)
    model = copy.deepcopy(model).cpu().eval()
    step = ModelStepper(model)
    graph = _quantised(_graph(step)) if int8 else _graph(step)
    running = session(graph)

    def run(observation: Packed, reward: Array, state: Array) -> tuple[Array, Array]:
        named = zip(graph_inputs(model.observation_space), arrays_of(observation).values(), strict=True)
        action, after = running.run(None, {**dict(named), "reward": reward, "state": state})
        return action, after

    difference = largest_difference(model, step, run, STEPS)
    check_difference(difference, int8, f"over {STEPS} steps the graph's actions")
    write(folder, {GRAPH: graph}, {**describe(model, step, card, int8), "largest_difference": difference})
    return folder / GRAPH


def require_packages(*names: str) -> None:
    """Makes sure that packages of the extra `export` are installed.

    Raises:
        InvalidInput: one is missing; the message says how to install it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"exported agents need {', '.join(missing)}; in a clone: .venv/bin/pip install '.[export]', elsewhere: "
            f"pip install {' '.join(missing)}"
        )


def session(graph: bytes | str, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # What is wrong with a graph is raised; it need not be on stderr as well.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def graph_inputs(space: Space) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names of the graph's inputs for an observation, each with its key in packed observations and its shape."""
    shapes = space.packed_shapes()
    if not isinstance(shapes, dict):
        return {"observation": (NUMBERS, shapes)}
    return {"observation" if key == NUMBERS else f"observation.{key}": (key, shape) for key, shape in shapes.items()}


class _OfTensors(torch.nn.Module):
    """A step whose observation is one tensor after another, as a graph's inputs are."""

    def __init__(self, step: ModelStepper) -> None:
        super().__init__()
        self.step, self.keys = step, [key for key, _ in graph_inputs(step.observation_space).values()]
        self.images = bool(step.observation_space.images())

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *observed, reward, state = tensors
        observation = dict(zip(self.keys, observed, strict=True)) if self.images else observed[0]
        action, after = self.step(observation, reward, state)
        return action, after


def _graph(step: ModelStepper) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    # With two rows, so that a batch of one is not taken for a constant.
    example = step.inputs.observation.examples(2, torch.Generator().manual_seed(0))
    inputs = *arrays_of(example).values(), torch.zeros(2), step.start.repeat(2, 1)
    inputs = tuple(part.to(step.start.device) for part in inputs)
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    try:
        # It reports its progress, and every operation of torchvision that it does without.
        registration.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _OfTensors(step),
                inputs,
                dynamo=True,
                input_names=[*graph_inputs(step.observation_space), "reward", "state"],
                output_names=["action", "new_state"],
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                verbose=False,
            )
    finally:
        registration.setLevel(level)
    if program is None:
        raise ExportFailed("torch returned no graph")
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


def _quantised(graph: bytes) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        model = onnx.load_from_string(graph)
        # Four fifths of the weights; the others meet numbers of too many sizes (returns beside velocities, scores).
        perceptrons = [
            # The quantiser names a Gemm's product so when it takes the addition apart from it.
            f"{node.name}_MatMul"
            for node in model.graph.node
            if any(part.endswith(PERCEPTRON) for part in node.input)
        ]
        # It changes matrices' layouts and stumbles over the shapes noted before.
        del model.graph.value_info[:]
        before.write_bytes(model.SerializeToString())
        before_level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(
                before, after, per_channel=True, weight_type=QuantType.QInt8, nodes_to_quantize=perceptrons
            )
        finally:
            logging.disable(before_level)
        quantised = after.read_bytes()
    if not any(node.op_type == "MatMulInteger" for node in onnx.load_from_string(quantised).graph.node):
        raise ExportFailed("this version of onnxruntime quantised nothing; pass no --int8")
    return quantised
