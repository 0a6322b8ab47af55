"""An agent as agent.h and agent.c: written, compiled where there is a compiler, and checked against torch."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aaren_rl import checkpoint
from aaren_rl.checkpoint import AgentCard
from aaren_rl.model import DecisionModel
from aaren_rl.stepping.c import compiled
from aaren_rl.stepping.c.code import Code, generate
from aaren_rl.stepping.exported import check_difference, check_single_step, describe, largest_difference, write
from aaren_rl.stepping.model_stepper import ModelStepper

HEADER, SOURCE = checkpoint.EXPORTED_HEADER, checkpoint.EXPORTED_SOURCE
STEPS = 1_000
"""Of the check against torch."""


def reset_every(acting: str) -> int:
    """Steps after which a way of acting empties the mixers' states; 0 for never."""
    mode, _, steps = acting.partition(":")
    return int(steps) if mode == "reset" else 0


def _files(code: Code) -> dict[str, bytes]:
    return {HEADER: code.header.encode(), SOURCE: code.source.encode()}


def to_c(model: DecisionModel, card: AgentCard, folder: Path, int8: bool = False) -> dict[str, Any]:
    """Writes agent.h, agent.c and export.json.

    Where this machine has a C compiler, the code is compiled and checked against torch over `STEPS` steps before
    anything is written. The card says under "checked" with which compiler that was, or that there was none.

    Args:
        model: to export; the states of its mixers must not grow.
        card: what it was trained on and for.
        folder: to write into; an earlier export there is replaced.
        int8: store the weights of large products in 8 bits, with a scale for each output.

    Returns:
        What export.json holds.

    Raises:
        InvalidInput: a mixer's state grows, the agent recomputes a window, its observations have images, or an
            operation of its step is not written in C.
        ExportFailed: the code does not compile, or it and torch part ways; nothing was written.
        CheckpointError: it cannot be written, or the folder holds something else.
    """
    check_single_step(card, folder)
    model = copy.deepcopy(model).cpu().eval()
    step = ModelStepper(model)
    title = f"A decision agent, trained on {card.dataset_id}."
    longest = model.config.max_steps if model.config.timesteps == "learned" else None
    every = reset_every(card.acting)
    code = generate(step, title, int8, every, longest)
    files = _files(code)
    compiler, difference = compiled.find_compiler(), None
    if compiler is not None:
        # Without resets, which the model's own step has not.
        endless = generate(step, title, int8, 0, longest) if every else code
        with TemporaryDirectory() as place:
            library = compiled.Library.build(_files(endless), Path(place), compiler)
            difference = largest_difference(model, step, library.run_packed(step.action_space), STEPS)
        check_difference(difference, int8, f"over {STEPS} steps the C code's actions")
    description = {
        **describe(model, step, card, int8),
        "checked": None if compiler is None else {"compiler": compiled.version_of(compiler), "steps": STEPS},
        "largest_difference": difference,
        "weight_bytes": code.weight_bytes,
        "scratch_bytes": code.scratch_bytes,
        "state_bytes": 8 * len(step.start),
    }
    write(folder, files, description)
    return checkpoint.read_json(folder / checkpoint.EXPORTED_CARD)
