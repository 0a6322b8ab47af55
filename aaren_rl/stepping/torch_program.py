"""An agent as one program of torch.export, for torch without this package."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from aaren_rl import checkpoint
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.packed import map_packed
from aaren_rl.data.spaces import Packed
from aaren_rl.model import DecisionModel
from aaren_rl.ops.numpy_layers import Array
from aaren_rl.stepping.exported import (
    Run,
    check_difference,
    check_single_step,
    describe,
    graph_of,
    largest_difference,
    write,
)
from aaren_rl.stepping.model_stepper import ModelStepper

PROGRAM = checkpoint.EXPORTED_PROGRAM
STEPS = 200
"""Of the check against the model."""


def to_torch(model: DecisionModel, card: AgentCard, folder: Path) -> Path:
    """Writes agent.pt2 and export.json, after loading the program and checking it against the model.

    The program is called as `ModelStepper` is, with observation, reward and state of any number of rows, and returns
    the action and the new state. An observation with images is a dict, of "numbers" and of each image by its path
    (`Space.pack`).

    Args:
        model: to export; the states of its mixers must not grow.
        card: what it was trained on and for.
        folder: to write into; an earlier export there is replaced.

    Returns:
        The program's file.

    Raises:
        InvalidInput: a mixer's state grows, or the agent recomputes a window.
        ExportFailed: the program and the model part ways; nothing was written.
        CheckpointError: it cannot be written, or the folder holds something else.
    """
    check_single_step(card, folder)
    model = copy.deepcopy(model).cpu().eval()
    step = ModelStepper(model)
    example = step.inputs.observation.examples(2, torch.Generator().manual_seed(0))
    program = graph_of(step, (example, torch.zeros(2), step.start.repeat(2, 1)), free_batch=True)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, content)
    difference = largest_difference(model, step, running(content.getvalue()), STEPS)
    check_difference(difference, False, f"over {STEPS} steps the program's actions")
    described = describe(model, step, card, int8=False)
    described |= {"torch": torch.__version__, "largest_difference": difference}
    write(folder, {PROGRAM: content.getvalue()}, described)
    return folder / PROGRAM


def running(content: bytes) -> Run:
    """The step of a program's file, on arrays.

    torch runs what the file tells it to as it loads it (see docs/trust.md): only for files of people whose programs
    you would run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(content)).module()

    def run(observation: Packed, reward: Array, state: Array) -> tuple[Array, Array]:
        given = map_packed(_tensor, observation), _tensor(reward), _tensor(state)
        with torch.inference_mode():
            action, after = program(*given)
        return action.numpy(), after.numpy()

    return run


def _tensor(array: Array) -> Tensor:
    # A copy, since torch takes neither read-only arrays nor reversed ones.
    return torch.from_numpy(array.copy())
