"""A run in the processes that follow its first one: they update, and save if the first one dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aaren_rl.checkpoint import AgentCard
from aaren_rl.model.weights_check import first_not_finite
from aaren_rl.training.checkpoints import checkpoint_folder, checkpoints, read_checkpoint, write_checkpoint
from aaren_rl.training.learner import Learner
from aaren_rl.training.lock import Locked, locked
from aaren_rl.training.processes import LostProcess, Word
from aaren_rl.training.signals import stop_signal


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

    def follow(self) -> None:
        """Updates until the run ends, however it does.

        Raises:
            LostProcess: another process ended; what is saved was said.
        """
        learner = self.learner
        with stop_signal() as stop:
            try:
                while True:
                    word, stopped = learner.processes.agree(Word.UPDATE, stop.is_set())
                    if word is Word.END:
                        return
                    if word is Word.SAVE:
                        learner.state_dict()
                    elif not stopped:
                        began = time.perf_counter()
                        learner.update()
                        self.seconds += time.perf_counter() - began
            except LostProcess:
                self._save_if_first()
                raise

    def _save_if_first(self) -> None:
        """Saves, unless a process that still lives holds the run's folder, which then saves."""
        card = replace(self.card, updates=self.learner.updates)
        with suppress(Locked), locked(self.folder, _nothing):
            save_alone(self.folder, self.learner, card, self.seconds, self.say)


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
                write_checkpoint(folder, learner, card, seconds)
    saved = checkpoints(folder)
    if not saved:
        say("nothing is saved, start anew")
    else:
        say(f"the checkpoint of update {int(saved[-1].name)} is saved, go on with --resume {folder}")


def _nothing(line: str) -> None:
    """Says nothing: the first process speaks for all."""
