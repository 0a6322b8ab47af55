"""Runs: what happens around the updates of a learner, in a folder that training can be resumed from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from threading import Event
from typing import TypeAlias

import torch

from aaren_rl import checkpoint, folders
from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.training.callbacks import Callback, Progress
from aaren_rl.training.checkpoints import (
    agent_folders,
    checkpoint_folder,
    checkpoints,
    drop_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from aaren_rl.training.learner import Learner
from aaren_rl.training.log import RunLog
from aaren_rl.training.meter import Meter
from aaren_rl.training.optimiser import learning_rate
from aaren_rl.training.signals import stop_signal

EVALUATIONS = "evaluations.json"

Evaluate: TypeAlias = Callable[[DecisionModel], Mapping[str, float]]
"""Rolls a model out; returns metrics by name, of which "return" decides which agent is the best."""


class Interrupted(AarenError):
    """Training was stopped by Ctrl-C or SIGTERM, after saving a checkpoint."""


class Diverged(AarenError):
    """The loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class Trained:
    """What a finished run leaves of one model.

    Attributes:
        last: folder of the agent after the last update.
        best: folder of the agent with the highest return in evaluations during training; None without evaluations.
        best_update: the update of that agent.
        seconds: time spent in updates, the time before a resume included.
    """

    last: Path
    best: Path | None
    best_update: int | None
    seconds: float


class Run:
    """Trains a learner: schedule, log, validation, roll-outs, checkpoints, signals.

    The folder holds `checkpoints/<update>` (an agent folder with what resuming needs besides), `metrics.jsonl`,
    TensorBoard's event files, `evaluations.json`, and at the end the agent folders `last` and `best`. With several
    models all but the checkpoints lies in `seed-<seed>/` below it.

    Args:
        learner: what an update is.
        card: goes into every agent folder.
        folder: of the run.
        evaluate: called with every model at every evaluation; None for no roll-outs.
        callbacks: called after every update (see `Callback`).
    """

    def __init__(
        self,
        learner: Learner,
        card: AgentCard,
        folder: str | Path,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.learner, self.card, self.folder, self.evaluate = learner, card, Path(folder), evaluate
        self.config, self.callbacks = learner.config, list(callbacks)
        self.folders = agent_folders(self.folder, learner.seeds)
        self.seconds = 0.0
        self.evaluated = 0
        self.best: list[tuple[int, float] | None] = [None] * len(learner.models)

    def run(self, progress: bool = True) -> list[Trained]:
        """Trains from where the learner stands to the last update.

        Args:
            progress: shows a progress bar.

        Returns:
            What the run left of each model.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last whole update was saved.
            CheckpointError: a checkpoint could not be written; earlier ones are still there.
            InvalidInput: the folder holds another run.
            Diverged: the loss or its gradient is not finite; checkpoints from before are still there.
        """
        if self.learner.updates == 0:
            if checkpoints(self.folder):
                raise InvalidInput(f"{self.folder} holds a run already; resume it, or give the new run another folder")
            (self.folder / EVALUATIONS).unlink(missing_ok=True)
        with stop_signal() as stop, ExitStack() as stack:
            self._logs = [stack.enter_context(RunLog(folder, self.learner.updates)) for folder in self.folders]
            self._called: list[Callback] = list(self.callbacks)
            if progress:
                self._called.append(Progress(self.config.updates, self.learner.updates))
            for callback in self._called:
                if isinstance(callback, AbstractContextManager):
                    stack.enter_context(callback)
            ended = self._train(stop)
            if not ended or stop.is_set():
                raise Interrupted(self._stopped())
            # While signals wait, so that no agent is left half replaced.
            return self._finish()

    def restore(self) -> None:
        """Goes back to the newest checkpoint of the run's folder.

        Raises:
            CheckpointError: there is none, it is damaged, or it was made with another model or other data.
        """
        self.seconds = read_checkpoint(self.folder, self.learner)
        file = self.folder / EVALUATIONS
        if not file.exists():
            return
        saved = checkpoint.read_json(file)
        try:
            self.evaluated = int(saved["updates"])
            best = [None if one is None else (int(one[0]), float(one[1])) for one in saved["best"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} cannot be read: {error!r}; delete it to go on without a best agent"
            ) from error
        # Evaluations after the checkpoint, or of an earlier run, are made anew.
        self.evaluated = min(self.evaluated, self.learner.updates)
        self.best = [one if one is not None and one[0] <= self.learner.updates else None for one in best]

    def save(self) -> Path:
        """Writes a checkpoint of the run as it stands, and drops those that are neither the newest nor the best.

        Raises:
            CheckpointError: it cannot be written; earlier ones are still there.
        """
        card = replace(self.card, updates=self.learner.updates)
        written = write_checkpoint(self.folder, self.learner, card, self.seconds)
        drop_checkpoints(self.folder, {self.learner.updates, *self._best_updates()})
        return written

    def _stopped(self) -> str:
        updates = self.learner.updates
        if not updates:
            return "stopped before the first update; nothing is saved"
        return (
            f"stopped after update {updates}, its checkpoint is saved; go on with --resume {self.folder} (in Python "
            "with resume=True)"
        )

    def _train(self, stop: Event) -> bool:
        """Updates, and what comes with them; returns whether the run came to its end."""
        learner, config = self.learner, self.config
        # A run that failed in an evaluation has saved its checkpoint: the evaluation is made up for.
        ended = self._evaluate() if self._owes_evaluation() else False
        meter, saved = Meter(), learner.updates
        while learner.updates < config.updates and not ended and not stop.is_set():
            meter.add(learner.update())
            update = learner.updates
            ended = update == config.updates
            if update % config.log_every == 0 or ended:
                ended |= self._log(meter)
            else:
                ended |= self._call({})
                if ended:
                    self._log(meter)
            evaluates = update % config.evaluate_every == 0 or ended
            if evaluates or update % config.checkpoint_every == 0:
                self._check_finite(meter)
                began = time.perf_counter()
                self.save()
                saved = update
                if evaluates:
                    ended |= self._evaluate()
                # What checking costs is not training.
                meter.pause(time.perf_counter() - began)
        if stop.is_set() and saved != learner.updates:
            self._check_finite(meter)
            self.save()
        return ended or learner.updates >= config.updates

    def _best_updates(self) -> set[int]:
        return {best[0] for best in self.best if best is not None}

    def _owes_evaluation(self) -> bool:
        updates = self.learner.updates
        at_evaluation = updates % self.config.evaluate_every == 0 or updates == self.config.updates
        return updates > 0 and at_evaluation and self.evaluated < updates

    def _log(self, meter: Meter) -> bool:
        """Hands the metrics since the last logged point to logs and callbacks; whether one of these ends the run."""
        self._check_finite(meter)
        rate = learning_rate(self.config, self.learner.updates)
        points, count, seconds = meter.read(len(self.folders))
        self.seconds += seconds
        speed = {
            "throughput/updates_per_second": count / seconds,
            "throughput/steps_per_second": count * self.learner.steps_per_update / seconds,
        }
        return self._write([{**_tagged("train", point), "train/learning_rate": rate, **speed} for point in points])

    def _evaluate(self) -> bool:
        """Validates and rolls out; whether a callback ends the run."""
        began, points = time.perf_counter(), []
        for number, (model, held_out) in enumerate(zip(self.learner.models, self.learner.validate(), strict=True)):
            point = _tagged("validation", held_out)
            if self.evaluate is not None:
                found = self._roll_out(model)
                point |= _tagged("evaluation", found)
                best = self.best[number]
                # A NaN is above nothing.
                if found["return"] > (-math.inf if best is None else best[1]):
                    self.best[number] = self.learner.updates, found["return"]
            points.append(point | {"throughput/seconds_checking": time.perf_counter() - began})
        ends = self._write(points)
        self.evaluated = self.learner.updates
        try:
            content = json.dumps({"updates": self.evaluated, "best": self.best}) + "\n"
            folders.replace_file(self.folder / EVALUATIONS, content)
        except OSError as error:
            raise CheckpointError(f"{self.folder / EVALUATIONS} could not be written: {error}") from error
        drop_checkpoints(self.folder, {self.learner.updates, *self._best_updates()})
        return ends

    def _roll_out(self, model: DecisionModel) -> dict[str, float]:
        """The metrics of one model, which takes no random numbers from the training."""
        assert self.evaluate is not None
        device = self.learner.device
        with _evaluation_mode(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            found = {name: float(value) for name, value in self.evaluate(model).items()}
        if "return" not in found:
            raise InvalidInput(f"evaluate gave {sorted(found)}; expected 'return' among the metrics")
        return found

    def _write(self, points: list[dict[str, float]]) -> bool:
        for log, point in zip(self._logs, points, strict=True):
            log(self.learner.updates, point)
        names = dict.fromkeys(name for point in points for name in point)
        return self._call({name: mean(point[name] for point in points if name in point) for name in names})

    def _call(self, metrics: Mapping[str, float]) -> bool:
        # All are called, whoever ends the run.
        ends = [callback(self.learner.updates, metrics) for callback in self._called]
        return any(ends)

    def _check_finite(self, meter: Meter) -> None:
        """Stops before weights that are not finite could replace a good checkpoint."""
        if not meter.finite():
            raise Diverged(
                f"the loss or its gradient is not finite at update {self.learner.updates}; go on from the last "
                f"checkpoint with --resume {self.folder} and a lower --learning-rate"
            )

    def _finish(self) -> list[Trained]:
        card, trained = replace(self.card, updates=self.learner.updates), []
        for number, (folder, model) in enumerate(zip(self.folders, self.learner.models, strict=True)):
            checkpoint.save_agent(folder / "last", model, card)
            best = self.best[number]
            if best is not None:
                saved = agent_folders(checkpoint_folder(self.folder, best[0]), self.learner.seeds)[number]
                checkpoint.save_agent(folder / "best", *checkpoint.load_agent(saved))
            paths = folder / "last", None if best is None else folder / "best"
            trained.append(Trained(*paths, None if best is None else best[0], self.seconds))
        return trained


@contextmanager
def _evaluation_mode(model: DecisionModel) -> Iterator[None]:
    """Without an average the model that acts is the one in training, which needs its dropout back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _tagged(group: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in metrics.items()}
