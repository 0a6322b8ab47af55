"""The checkpoint of an online fine-tuning: its learner after the last whole round, and what resuming needs besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from aaren_rl import checkpoint, folders
from aaren_rl.checkpoint import TRAINING_STATE, TRAINING_TENSORS
from aaren_rl.errors import CheckpointError
from aaren_rl.training.learner import SingleLearner

CHECKPOINT = "checkpoint"
"""Folder of a fine-tuning with its last checkpoint."""


def write(folder: Path, learner: SingleLearner, progress: dict[str, Any]) -> None:
    """Writes the checkpoint, which replaces the one before.

    Args:
        folder: of the fine-tuning.
        learner: after a whole round.
        progress: what else is to be read back, in JSON's types.

    Raises:
        CheckpointError: it cannot be written; the one before is still there.
    """
    content = save(learner.state_dict())
    state = {
        **progress,
        "updates": learner.updates,
        "device": learner.device.type,
        "sha256": {TRAINING_TENSORS: checkpoint.digest(content)},
    }
    # As JSON has it, since that is what is checked.
    state = json.loads(json.dumps(state))
    state["sha256"][TRAINING_STATE] = checkpoint.card_digest(state, TRAINING_TENSORS)
    with checkpoint.whole_folder(folder / CHECKPOINT) as partial:
        folders.write_file(partial / TRAINING_TENSORS, content)
        folders.write_file(partial / TRAINING_STATE, (json.dumps(state, indent=2) + "\n").encode())


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote: the progress and the learner's tensors.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folders.clean_up(folder)
    path = folder / CHECKPOINT
    if not path.is_dir():
        raise CheckpointError(f"{folder} has no whole round to go on from; remove it, and start from the run again")
    state = checkpoint.read_json(path / TRAINING_STATE)
    digests = state.get("sha256")
    if not isinstance(digests, dict) or digests.get(TRAINING_STATE) != checkpoint.card_digest(state, TRAINING_TENSORS):
        raise CheckpointError(
            f"{path / TRAINING_STATE} is not as it was saved, and a fine-tuning keeps no earlier checkpoint; start "
            "from the run again in another folder"
        )
    return state, checkpoint.read_tensors(path / TRAINING_TENSORS, digests.get(TRAINING_TENSORS))
