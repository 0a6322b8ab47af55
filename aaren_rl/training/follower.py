"""A run in the processes that follow its first one: they update, and save if the first one dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from aaren_rl.checkpoint import AgentCard, digest
from aaren_rl.model.weights_check import first_not_finite
from aaren_rl.training.checkpoints import checkpoint_folder, checkpoints, read_checkpoint, write_checkpoint
from aaren_rl.training.learner import Learner
from aaren_rl.training.lock import Locked, locked
from aaren_rl.training.processes import LostProcess, Word
from aaren_rl.training.signals import stop_signal

LOCK_SECONDS = 15
"""Longest wait for the lock of a process that died; torchrun ends the others 30 seconds after it."""


class Follower:
    """Does what the first process of a training says (see `aaren_rl.training.run.Run`).

    Args:
        learner: what an update is.
        card: goes into a checkpoint.
        folder: of the run.
        say: takes a line on what is saved if the first process dies.
    """

    def __init__(self, learner: Learner, card: AgentCard, folder: Path, say: Callable[[str], object] = print) -> None:
        self.learner, self.card, self.folder, self.say = learner, card, folder, say
        self.seconds = 0.0

    def restore(self) -> None:
        """Goes back to the newest whole checkpoint of the run's folder.

        Raises:
            CheckpointError: as `Run.restore`.
        """
        self.seconds = read_checkpoint(self.folder, self.learner, _nothing)

    def follow(self) -> bool:
        """Updates until the run ends.

        Returns:
            True if the run came to its end; False if it was stopped or failed, which the first process says.

        Raises:
            LostProcess: another process ended. If this one saved, that was said.
        """
        learner = self.learner
        with stop_signal() as stop:
            try:
                while True:
                    word, stopped = learner.processes.agree(Word.UPDATE, stop.is_set())
                    if word in (Word.END, Word.FAIL):
                        return word is Word.END
                    if word is Word.SAVE:
                        shared_state(learner)
                    elif word is Word.WAIT:
                        learner.processes.wait()
                    elif not stopped:
                        began = time.perf_counter()
                        learner.update()
                        self.seconds += time.perf_counter() - began
            except LostProcess:
                self._save_if_first()
                raise

    def _save_if_first(self) -> None:
        """Saves, unless another process that is left does."""
        card = replace(self.card, updates=self.learner.updates)
        saved = checkpoint_folder(self.folder, self.learner.updates)
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                with locked(self.folder, _nothing):
                    save_alone(self.folder, self.learner, card, self.seconds, self.say)
                return
            except Locked:
                # By another process that saves, or by one that died and whose lock is not free yet.
                if saved.exists():
                    return
                if time.monotonic() > until:
                    self.say(f"{self.folder} stays locked, so update {self.learner.updates} was not saved from here")
                    return
                time.sleep(0.2)


def shared_state(learner: Learner) -> dict[str, Tensor]:
    """The state of a learner, called in all processes at once.

    Raises:
        InvalidInput: the processes differ in what they trained.
        LostProcess: another process ended.
    """
    tensors = learner.state_dict()
    if learner.processes.count > 1:
        parts = (np.asarray(tensors[name]).tobytes() for name in sorted(tensors) if not name.startswith("random."))
        advice = (
            "an objective whose buffers or after_update depend on the rows of one process, or on random numbers, does "
            "not go with several"
        )
        learner.processes.check_same(digest(*parts)[:12], f"their weights after update {learner.updates}", advice)
    return tensors


def save_alone(folder: Path, learner: Learner, card: AgentCard, seconds: float, say: Callable[[str], object]) -> None:
    """Saves a checkpoint where another process was lost, if this one has all of it.

    Args:
        folder: of the run, locked.
        learner: as it was after its last whole update.
        card: of its agents.
        seconds: spent in updates.
        say: takes a line on what is saved.

    Raises:
        CheckpointError: the checkpoint cannot be written.
    """
    updates = learner.updates
    if updates and not checkpoint_folder(folder, updates).exists():
        finite = all(first_not_finite(model.state_dict()) is None for model in learner.models)
        # States that are carried from segment to segment are shared out: without all processes they are not whole.
        with suppress(LostProcess):
            if finite:
                write_checkpoint(folder, learner, learner.state_dict(), card, seconds)
    saved = checkpoints(folder)
    if not saved:
        say("\nanother process ended before the first update; nothing is saved")
    else:
        # On a line of its own, below the progress bar.
        update = int(saved[-1].name)
        say(f"\nanother process ended; the checkpoint of update {update} is saved, go on with --resume {folder}")


def _nothing(line: str) -> None:
    """Says nothing: the first process speaks for all."""
