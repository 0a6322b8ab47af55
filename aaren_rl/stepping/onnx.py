"""An agent as one ONNX graph of a single step, for machines without torch."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from aaren_rl import __version__, checkpoint, folders
from aaren_rl.actor import AUTO, target_as_number
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.bounds import SCALED_BOUND, bounds_of
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import NUMBERS, Space
from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.inputs_stepper import RETURN_TO_GO, TIMESTEP
from aaren_rl.stepping.model_stepper import ModelStepper

GRAPH, CARD = checkpoint.EXPORTED_GRAPH, checkpoint.EXPORTED_CARD
FORMAT = 5
STEPS, ROWS = 200, 3
"""Of the check against torch."""

PERCEPTRON = ("expand", "contract")
"""How the names of the perceptrons' weights end in the graph."""

LARGEST_DIFFERENCE = 1e-4
"""Between an action of the float32 graph and torch's, as a share of the action's half range."""


class ExportFailed(AarenError):
    """The exported graph does not compute what the agent does."""


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
    checkpoint.check_replaceable(folder, checkpoint.EXPORTED)
    if card.acting.startswith("window"):
        raise InvalidInput(f"this agent acts by {card.acting}, which is no single step; export it with --acting stream")
    model = copy.deepcopy(model).cpu().eval()
    step = ModelStepper(model)
    graph = _quantised(_graph(step)) if int8 else _graph(step)
    difference = _difference(model, step, graph)
    if not np.isfinite(difference) or (difference > LARGEST_DIFFERENCE and not int8):
        raise ExportFailed(f"over {STEPS} steps the graph's actions differ from torch's by up to {difference:.1e}")
    description: dict[str, Any] = {
        "format": FORMAT,
        "aaren_rl": __version__,
        **card.to_json(),
        "int8": int8,
        "observation_space": step.observation_space.to_json(),
        "action_space": step.action_space.to_json(),
        "longest_episode": model.config.max_steps if model.config.timesteps == "learned" else None,
        "greatest_return": SCALED_BOUND * float(model.inputs.return_scale) if model.config.return_to_go else None,
        "reach": model.config.reach,
        "state_start": step.start.tolist(),
        "return_to_go_at": RETURN_TO_GO,
        "timestep_at": TIMESTEP,
        "mixers_at": step.mixed,
        "largest_difference": difference,
        "sha256": {GRAPH: checkpoint.digest(graph)},
    }
    description["sha256"][CARD] = checkpoint.card_digest(description, GRAPH)
    with checkpoint.whole_folder(folder, checkpoint.EXPORTED) as partial:
        folders.write_file(partial / GRAPH, graph)
        folders.write_file(partial / CARD, (json.dumps(description, indent=2) + "\n").encode())
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


def _difference(model: DecisionModel, step: ModelStepper, graph: bytes) -> float:
    """Largest difference of an action over an episode of made-up observations, as a share of its half range."""
    running = session(graph)
    generator = torch.Generator().manual_seed(0)
    target = torch.linspace(0.5, 1.5, ROWS) * model.inputs.return_scale
    if model.config.reach:
        target[0] = target_as_number(AUTO)
    ours, theirs = model.initial_state(ROWS), step.initial_state(target).numpy()
    action, returns, largest = torch.zeros(ROWS, *model.action_space.shape), target, 0.0
    low, high = (torch.from_numpy(bound).double() for bound in bounds_of(model.action_space))
    half_range = torch.where(high > low, (high - low) / 2, 1.0)
    # What float32 rounds of actions far from zero is no difference.
    rounding = 2.0**-22 * torch.maximum(low.abs(), high.abs())
    steps = min(STEPS, model.config.max_steps) if model.config.timesteps == "learned" else STEPS
    with torch.inference_mode():
        for t in range(steps):
            observation = model.inputs.observation.examples(ROWS, generator)
            reward = torch.rand(ROWS, generator=generator) * (t > 0)
            returns = returns - reward
            now = Segment.of_one_step(observation, torch.full((ROWS,), t), returns, action, reward)
            action, ours = model.step(now, ours)
            named = zip(graph_inputs(model.observation_space), arrays_of(observation).values(), strict=True)
            feed = {name: part.numpy() for name, part in named} | {"reward": reward.numpy(), "state": theirs}
            acted, theirs = running.run(None, feed)
            if not np.isfinite(acted).all():
                return float("inf")
            apart = ((action.double() - torch.from_numpy(acted)).abs() - rounding).clamp(min=0) / half_range
            largest = max(largest, float(apart.max()))
    return largest
