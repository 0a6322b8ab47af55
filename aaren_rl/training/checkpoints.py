"""Checkpoints of a run: the agents of its models, and all that resuming needs besides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

from aaren_rl import checkpoint, folders
from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import CheckpointError
from aaren_rl.training.learner import Learner


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir())


def checkpoint_folder(folder: Path, update: int) -> Path:
    """Where a run's checkpoint after an update lies."""
    return folder / "checkpoints" / f"{update:09d}"


def agent_folders(folder: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the agents of models lie: in the folder itself, or below it if there are several."""
    return [folder] if len(seeds) == 1 else [folder / f"seed-{seed}" for seed in seeds]


def write_checkpoint(folder: Path, learner: Learner, card: AgentCard, seconds: float) -> Path:
    """Writes a checkpoint of a learner as it stands.

    Args:
        folder: of the run.
        learner: to be saved.
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
        content = save(learner.state_dict())
        folders.write_file(partial / checkpoint.TRAINING_TENSORS, content)
        state = {
            "updates": learner.updates,
            "seconds": seconds,
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


def read_checkpoint(folder: Path, learner: Learner) -> float:
    """Puts a learner back to the newest checkpoint of a run.

    Args:
        folder: of the run.
        learner: of the same models, schedule and data.

    Returns:
        The seconds that were spent in updates until then.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it was made with another model or other data.
    """
    folders.clean_up(folder / "checkpoints")
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint to resume from; start the run without --resume")
    newest = found[-1]
    state = checkpoint.read_json(newest / checkpoint.TRAINING_STATE)
    for name, asked in _identity(learner).items():
        there = state.get(name)
        if there != asked:
            if isinstance(there, dict) and isinstance(asked, dict):
                there, asked = _differing(there, asked)
            raise CheckpointError(f"{newest} has the {name} {there}; asked to resume {asked}")
    tensors = checkpoint.read_tensors(newest / checkpoint.TRAINING_TENSORS, state.get("sha256"))
    # They may hold the best agent, which is read at the end of the run only; damage should show now.
    for agent in agent_folders(newest, learner.seeds):
        checkpoint.load_agent(agent)
    try:
        updates, seconds = int(state["updates"]), float(state["seconds"])
        learner.load_state_dict(tensors)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{newest} does not hold a run that can be resumed: {error}") from error
    if updates > learner.config.updates:
        raise CheckpointError(f"{newest} is beyond the {learner.config.updates} updates asked for; pass more --updates")
    learner.updates = updates
    return seconds


def _differing(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of two dictionaries that differ."""
    names = [name for name in one | other if one.get(name) != other.get(name)]
    return {name: one.get(name) for name in names}, {name: other.get(name) for name in names}


def _identity(learner: Learner) -> dict[str, Any]:
    """What a run that is resumed must have in common with the one that was saved."""
    model = learner.models[0]
    # As JSON has it, since that is what it is compared with.
    shape: dict[str, Any] = json.loads(json.dumps(asdict(model.config)))
    spaces = {"observations": model.observation_space.to_json(), "actions": model.action_space.to_json()}
    objective = learner.config.objective
    return {"model": shape, "spaces": spaces, "objective": objective, "seeds": learner.seeds, "data": learner.data}
