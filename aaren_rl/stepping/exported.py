"""What all exported steps have in common: their card, and the check against torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from aaren_rl import __version__, checkpoint, folders
from aaren_rl.actor import AUTO, target_as_number
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.bounds import SCALED_BOUND, bounds_of
from aaren_rl.data.packed import map_packed
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import Packed
from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.inputs_stepper import RETURN_TO_GO, TIMESTEP
from aaren_rl.ops.numpy_layers import Array
from aaren_rl.stepping.model_stepper import ModelStepper

CARD = checkpoint.EXPORTED_CARD
FORMAT = 5
ROWS = 3
"""Environments of the check against torch."""

LARGEST_DIFFERENCE = 1e-4
"""Between an action of a float32 export and torch's, as a share of the action's half range."""

Run: TypeAlias = Callable[[Packed, Array, Array], tuple[Array, Array]]
"""A step of several environments: packed observations, rewards and rows of state to actions and new rows."""


class ExportFailed(AarenError):
    """The export does not compute what the agent does."""


def check_single_step(card: AgentCard, folder: Path) -> None:
    """Checks that an agent acts by single steps, and that a folder may be written.

    Raises:
        InvalidInput: the agent recomputes a window.
        CheckpointError: the folder holds something else.
    """
    checkpoint.check_replaceable(folder, checkpoint.EXPORTED)
    if "window" in card.acting:
        raise InvalidInput(
            f"this agent acts by {card.acting}, which is no single step; export it with --acting stream, unless the "
            "state of its mixers grows, as that of softmax"
        )


def graph_of(step: torch.nn.Module, example: tuple[Any, ...], free_batch: bool = False) -> ExportedProgram:
    """The graph of a step, as torch exports it.

    Args:
        step: to export.
        example: its inputs, tensors or dicts of them. With a free batch, of two rows or more: a single row would be
            taken for a constant.
        free_batch: lets the first dimension of every input take any length; otherwise all shapes are the example's.
    """
    batch = Dim("batch", min=1)
    shapes = tuple(map_packed(lambda _: {0: batch}, part) for part in example) if free_batch else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(step, example, dynamic_shapes=shapes)


def describe(model: DecisionModel, step: ModelStepper, card: AgentCard, int8: bool) -> dict[str, Any]:
    """The contents of export.json, without digests and the difference from torch."""
    config = model.config
    return {
        "format": FORMAT,
        "aaren_rl": __version__,
        **card.to_json(),
        "int8": int8,
        "observation_space": step.observation_space.to_json(),
        "action_space": step.action_space.to_json(),
        "longest_episode": config.max_steps if config.timesteps == "learned" else None,
        "greatest_return": SCALED_BOUND * float(model.inputs.return_scale) if config.return_to_go else None,
        "reach": config.reach,
        "state_start": step.start.tolist(),
        "return_to_go_at": RETURN_TO_GO,
        "timestep_at": TIMESTEP,
        "mixers_at": step.mixed,
    }


def write(folder: Path, files: Mapping[str, bytes], description: dict[str, Any]) -> None:
    """Writes the files of an export and its card, whole or not at all.

    Args:
        folder: an earlier export there is replaced.
        files: contents by name; the card holds their digests.
        description: the card, without digests.

    Raises:
        CheckpointError: it cannot be written, or the folder holds something else.
    """
    digests: dict[str, Any] = {name: checkpoint.digest(content) for name, content in files.items()}
    description = {**description, "sha256": digests}
    description["sha256"][CARD] = checkpoint.card_digest(description, *files)
    with checkpoint.whole_folder(folder, checkpoint.EXPORTED) as partial:
        for name, content in files.items():
            folders.write_file(partial / name, content)
        folders.write_file(partial / CARD, (json.dumps(description, indent=2) + "\n").encode())


def check_difference(difference: float, int8: bool, what: str) -> None:
    """Checks that an export computes what the agent does.

    Raises:
        ExportFailed: it does not.
    """
    if not np.isfinite(difference) or (difference > LARGEST_DIFFERENCE and not int8):
        raise ExportFailed(f"{what} differ from torch's by up to {difference:.1e}")


def largest_difference(model: DecisionModel, step: ModelStepper, run: Run, steps: int) -> float:
    """Largest difference of an action over an episode of made-up observations, as a share of its half range.

    Args:
        model: what was exported.
        step: its step.
        run: the exported step.
        steps: of the episode, no longer than the model's longest.
    """
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
    steps = min(steps, model.config.max_steps) if model.config.timesteps == "learned" else steps
    with torch.inference_mode():
        for t in range(steps):
            observation = model.inputs.observation.examples(ROWS, generator)
            reward = torch.rand(ROWS, generator=generator) * (t > 0)
            returns = returns - reward
            now = Segment.of_one_step(observation, torch.full((ROWS,), t), returns, action, reward)
            action, ours = model.step(now, ours)
            acted, theirs = run(map_packed(lambda part: part.numpy(), observation), reward.numpy(), theirs)
            if not np.isfinite(acted).all():
                return float("inf")
            # A NaN of torch's against a number here would be no difference to max.
            if not torch.isfinite(action).all():
                return float("inf")
            apart = ((action.double() - torch.from_numpy(acted)).abs() - rounding).clamp(min=0) / half_range
            largest = max(largest, float(apart.max()))
    return largest
