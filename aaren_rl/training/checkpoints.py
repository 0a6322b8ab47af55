"""Checkpoints of a run: the agents of its models, and all that resuming needs besides."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from aaren_rl import checkpoint, folders
from aaren_rl.checkpoint import AgentCard, shortened
from aaren_rl.errors import CheckpointError
from aaren_rl.training.learner import Learner
from aaren_rl.training.state_check import device_type_of


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir())


def checkpoint_folder(folder: Path, update: int) -> Path:
    """Where a run's checkpoint after an update lies."""
    return folder / "checkpoints" / f"{update:09d}"


def agent_folders(folder: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the agents of models lie: in the folder itself, or below it if there are several."""
    return [folder] if len(seeds) == 1 else [folder / f"seed-{seed}" for seed in seeds]


def write_checkpoint(
    folder: Path, learner: Learner, tensors: dict[str, Tensor], card: AgentCard, seconds: float
) -> Path:
    """Writes a checkpoint of a learner as it stands.

    Args:
        folder: of the run.
        learner: to be saved.
        tensors: its `state_dict()`, to which other processes may have to add.
        card: of its agents, with the updates made.
        seconds: spent in updates.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; earlier ones are still there.
    """
    made = checkpoint_folder(folder, learner.updates)
    subfolders = frozenset(agent.name for agent in agent_folders(made, learner.seeds) if agent != made)
    with checkpoint.whole_folder(made, checkpoint.FILES | subfolders) as partial:
        for agent, model in zip(agent_folders(partial, learner.seeds), learner.models, strict=True):
            agent.mkdir(exist_ok=True)
            checkpoint.write_agent(agent, model, card)
        content = save(tensors)
        folders.write_file(partial / checkpoint.TRAINING_TENSORS, content)
        state = {
            "updates": learner.updates,
            "seconds": seconds,
            "device": learner.device.type,
            **_identity(learner),
            "sha256": checkpoint.digest(content),
        }
        folders.write_file(partial / checkpoint.TRAINING_STATE, (json.dumps(state, indent=2) + "\n").encode())
    return made


def drop_checkpoints(folder: Path, keep: Collection[int]) -> None:
    """Removes the checkpoints of a run, except for those of some updates."""
    for path in checkpoints(folder):
        if int(path.name) not in keep:
            shutil.rmtree(path)


def read_checkpoint(folder: Path, learner: Learner, say: Callable[[str], object]) -> float:
    """Puts a learner back to the newest whole checkpoint of a run.

    Args:
        folder: of the run.
        learner: of the same models, schedule and data; on a device of either type.
        say: takes a line on every checkpoint that is damaged, and on a device of another type, where the run goes on
            or where batches are drawn.

    Returns:
        The seconds that were spent in updates until then.

    Raises:
        CheckpointError: there is no checkpoint, all are damaged, or they were made with another model or other data.
            The learner is as it was.
    """
    folders.clean_up(folder / "checkpoints")
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint to resume from; start the run without --resume")
    damages: list[str] = []
    for path in reversed(found):
        try:
            state, tensors = _read_whole(path, learner.seeds)
        except CheckpointError as error:
            damages.append(f"checkpoint {path.name} is damaged: {error}")
            continue
        _check_identity(path, state, learner)
        try:
            learner.load_state_dict(tensors)
        except CheckpointError as error:
            damages.append(f"checkpoint {path.name} is damaged: {error}")
            continue
        for damage in damages:
            say(f"{damage}; going on from the one before, {path.name}")
        learner.updates = int(state["updates"])
        drawn_on = _drawn_on(tensors)
        if (device := state.get("device")) not in (None, learner.device.type):
            say(
                f"the run was on {shortened(str(device))} until update {learner.updates} and goes on on "
                f"{learner.device.type}: not bit for bit as it would have there, since random numbers and rounding "
                "differ"
            )
        elif drawn_on not in (None, learner.draws_on.type):
            say(
                f"batches were drawn on {drawn_on} until update {learner.updates} and are drawn on "
                f"{learner.draws_on.type} from now on (those of data on disk always are drawn on the CPU): other "
                "batches than would have come there, since random numbers differ"
            )
        return float(state["seconds"])
    raise CheckpointError("; ".join(damages) + "; no older one is left, start the run anew in another folder")


def _read_whole(path: Path, seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's state and tensors.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    state = checkpoint.read_json(path / checkpoint.TRAINING_STATE)
    tensors = checkpoint.read_tensors(path / checkpoint.TRAINING_TENSORS, state.get("sha256"))
    # They may become the best agent, which is read at the end of the run only; damage should show now. Other seeds
    # than the run's are told by its identity.
    for agent in agent_folders(path, state["seeds"] if _is_seeds(state.get("seeds")) else seeds):
        checkpoint.load_agent(agent)
    updates, seconds = state.get("updates"), state.get("seconds")
    if not isinstance(updates, int) or not isinstance(seconds, float | int) or not math.isfinite(seconds):
        raise CheckpointError(f"{path / checkpoint.TRAINING_STATE} says no updates, or no seconds")
    if updates != int(path.name):
        raise CheckpointError(f"{path / checkpoint.TRAINING_STATE} is of update {updates}")
    if updates > 0 and not any(name.endswith(".exp_avg") for name in tensors):
        raise CheckpointError(f"{path / checkpoint.TRAINING_TENSORS} lacks the optimiser's moments")
    return state, tensors


def _drawn_on(tensors: dict[str, Tensor]) -> str | None:
    """The type of device that batches were drawn on; None if it cannot be known."""
    states = [tensor for name, tensor in tensors.items() if name.endswith("random.sampler")]
    return device_type_of(states[0]) if states else None


def _is_seeds(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(seed, int) for seed in found)


def _identity(learner: Learner) -> dict[str, Any]:
    """What a run that is resumed must have in common with the one that was saved."""
    model = learner.models[0]
    # As JSON has it, since that is what it is compared with.
    shape: dict[str, Any] = json.loads(json.dumps(asdict(model.config)))
    spaces = {"observations": model.observation_space.to_json(), "actions": model.action_space.to_json()}
    objective = learner.config.objective
    return {"model": shape, "spaces": spaces, "objective": objective, "seeds": learner.seeds, "data": learner.data}


def _check_identity(path: Path, state: dict[str, Any], learner: Learner) -> None:
    """Checks that a checkpoint is of this run, and not beyond it.

    Raises:
        CheckpointError: it is not; a sentence for each field that differs says what to do.
    """
    asked = _identity(learner)
    saved = _flat({name: state.get(name) for name in asked})
    differing = {name: value for name, value in _flat(asked).items() if saved.get(name) != value}
    # A count tells more than a digest.
    for more, less in (("episodes", ("steps", "sha256")), ("steps", ("sha256",))):
        for name in [name for name in differing if name.endswith(f".{more}")]:
            for field in less:
                differing.pop(f"{name.rpartition('.')[0]}.{field}", None)
    if differing:
        sentences = (_difference(name, saved.get(name), value) for name, value in differing.items())
        raise CheckpointError(f"{path} is not of the run that was asked for: {'; '.join(sentences)}")
    if state["updates"] > learner.config.updates:
        raise CheckpointError(f"{path} is beyond the {learner.config.updates} updates asked for; pass more --updates")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries, by names with dots."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def _difference(name: str, saved: Any, asked: Any) -> str:
    """A sentence on a field that differs, with what to do."""
    group, field = name.partition(".")[0], name.rpartition(".")[2]
    if group == "data" and field in ("sha256", "episodes", "steps"):
        values = "" if field == "sha256" else f", {shortened(str(saved))} there and {asked} here"
        return (
            f"{name} differs{values}: the data are not those that the run began with; resume with those, or start a "
            "new run on these"
        )
    values = f"{name} is {shortened(str(saved))} there and {shortened(str(asked))} here"
    if group == "spaces":
        return f"{values}: the environment has changed since; resume with the one that the run began with"
    if group == "seeds":
        return f"{values}; resume with the seeds that the run began with"
    return f"{values}; leave --{field.replace('_', '-')} out, a resumed run keeps it"
