"""Runs: what happens around the updates of a learner, in a folder that training can be resumed from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from aaren_rl import checkpoint, folders
from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.model.weights_check import first_not_finite
from aaren_rl.training.callbacks import Callback, Progress, call_all
from aaren_rl.training.checkpoints import (
    agent_folders,
    checkpoint_folder,
    checkpoints,
    drop_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from aaren_rl.training.evaluations import EVALUATIONS, Evaluate, Evaluations, evaluate_model
from aaren_rl.training.follower import save_alone, shared_state
from aaren_rl.training.learner import Learner
from aaren_rl.training.lock import locked
from aaren_rl.training.log import CHECKING, RunLog
from aaren_rl.training.meter import Meter
from aaren_rl.training.optimiser import learning_rate
from aaren_rl.training.processes import LostProcess, Word
from aaren_rl.training.signals import Stopped, StopSignal, stop_signal


class Interrupted(AarenError):
    """Training was stopped by Ctrl-C or SIGTERM, after saving a checkpoint."""


class Diverged(AarenError):
    """The loss, its gradient or the weights are no longer finite numbers."""


@dataclass(frozen=True)
class Trained:
    """What a finished run leaves of one model.

    Attributes:
        last: folder of the agent after the last update.
        best: folder of the agent with the highest return in evaluations during training; None without evaluations.
        best_update: the update of that agent.
        seconds: time spent in updates, the time before a resume included.
        failed_evaluations: update and message of every evaluation during training that failed.
    """

    last: Path
    best: Path | None
    best_update: int | None
    seconds: float
    failed_evaluations: tuple[dict[str, Any], ...] = ()


class Run:
    """Trains a learner: schedule, log, validation, roll-outs, checkpoints, signals.

    The folder holds `checkpoints/<update>` (an agent folder with what resuming needs besides), `metrics.jsonl`,
    TensorBoard's event files, `evaluations.json`, and at the end the agent folders `last` and `best`. With several
    models all but the checkpoints lies in `seed-<seed>/` below it. It is locked while the run trains.

    A checkpoint is written before every evaluation. An evaluation that fails is reported and counted, and training goes
    on.

    Args:
        learner: what an update is.
        card: goes into every agent folder.
        folder: of the run.
        evaluate: called with every model at every evaluation; None for no roll-outs.
        callbacks: called after every update (see `Callback`).
        say: takes lines on what goes on otherwise than asked: failed evaluations, damaged checkpoints, locks left over.
    """

    def __init__(
        self,
        learner: Learner,
        card: AgentCard,
        folder: str | Path,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[Callback] = (),
        say: Callable[[str], object] = print,
    ) -> None:
        self.learner, self.card, self.folder, self.evaluate = learner, card, Path(folder), evaluate
        self.config, self.callbacks, self.say = learner.config, list(callbacks), say
        self.folders = agent_folders(self.folder, learner.seeds)
        self.seconds = 0.0
        self.evaluations = Evaluations.none(len(learner.models))
        self._exchanging = False

    def run(self, progress: bool = True) -> list[Trained]:
        """Trains from where the learner stands to the last update.

        Args:
            progress: shows a progress bar.

        Returns:
            What the run left of each model.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last whole update was saved. An evaluation under way is
                left out, and made up for by a resume.
            CheckpointError: a checkpoint could not be written, earlier ones are still there; or another process trains
                in the folder.
            InvalidInput: the folder holds another run.
            Diverged: the loss, its gradient or the weights are not finite; checkpoints from before are still there.
            LostProcess: another process of the training ended; what is saved was said.
        """
        with self._leading(), locked(self.folder, self.say), stop_signal() as stop, ExitStack() as stack:
            if self.learner.updates == 0:
                if checkpoints(self.folder):
                    raise InvalidInput(
                        f"{self.folder} holds a run already; resume it, or give the new run another folder"
                    )
                (self.folder / EVALUATIONS).unlink(missing_ok=True)
            for folder in {self.folder, *self.folders}:
                folders.clean_up(folder)
            owes = self._owes_evaluation()
            self._logs = [stack.enter_context(RunLog(folder, self.learner.updates, owes)) for folder in self.folders]
            self._called: list[Callback] = list(self.callbacks)
            if progress:
                self._called.append(Progress(self.config.updates, self.learner.updates))
            for callback in self._called:
                if isinstance(callback, AbstractContextManager):
                    stack.enter_context(callback)
            try:
                ended = self._train(stop)
            except LostProcess:
                # While signals wait: torchrun ends the processes that are left.
                self._save_alone()
                raise
            if not ended or stop.is_set():
                raise Interrupted(self._stopped())
            # While signals wait, so that no agent is left half replaced.
            return self._finish()

    def restore(self) -> None:
        """Goes back to the newest whole checkpoint of the run's folder; says what is damaged and left out.

        Raises:
            CheckpointError: there is none, all are damaged, or they were made with another model or other data.
        """
        self.seconds = read_checkpoint(self.folder, self.learner, self.say)
        models = len(self.learner.models)
        try:
            self.evaluations = Evaluations.read(self.folder, models, self.learner.updates)
        except CheckpointError as error:
            self.say(f"warning: {error}; going on without the best agent until now")
            self.evaluations = Evaluations.none(models)
        for number in range(models):
            self._read_best(number)

    def save(self) -> Path:
        """Writes a checkpoint of the run as it stands, and drops all but the newest two and the best ones.

        Raises:
            CheckpointError: it cannot be written; earlier ones are still there.
        """
        with self._exchange():
            self.learner.processes.agree(Word.SAVE)
            tensors = shared_state(self.learner)
        card = replace(self.card, updates=self.learner.updates)
        written = write_checkpoint(self.folder, self.learner, tensors, card, self.seconds)
        # Two, so that a damaged one costs little. Later ones were damaged when the run was resumed.
        numbers = [int(path.name) for path in checkpoints(self.folder)]
        kept = [number for number in numbers if number <= self.learner.updates][-2:]
        drop_checkpoints(self.folder, {*kept, *self.evaluations.best_updates()})
        return written

    def _stopped(self) -> str:
        updates = self.learner.updates
        if not updates:
            return "stopped before the first update; nothing is saved"
        return (
            f"stopped after update {updates}, its checkpoint is saved; go on with --resume {self.folder} (in Python "
            "with resume=True)"
        )

    def _train(self, stop: StopSignal) -> bool:
        """Updates, and what comes with them; returns whether the run came to its end."""
        learner, config = self.learner, self.config
        # A run that failed in an evaluation has saved its checkpoint: the evaluation is made up for.
        ended = self._evaluate(stop) if self._owes_evaluation() else False
        meter, saved = Meter(), learner.updates
        while learner.updates < config.updates and not ended and self._goes_on(stop):
            with self._exchange():
                meter.add(learner.update())
            update = learner.updates
            ended = update == config.updates
            if update % config.log_every == 0 or ended:
                ended |= self._log(meter)
            else:
                ended |= self._write([{} for _ in self.folders])
                if ended:
                    self._log(meter)
            evaluates = update % config.evaluate_every == 0 or ended
            if evaluates or update % config.checkpoint_every == 0:
                began = time.perf_counter()
                self._check_finite(meter, saves=True)
                self.save()
                saved = update
                if evaluates and not stop.is_set():
                    ended |= self._evaluate(stop)
                # What checking costs is not training.
                meter.pause(time.perf_counter() - began)
        if stop.is_set() and saved != learner.updates:
            self._check_finite(meter, saves=True)
            self.save()
        return ended or learner.updates >= config.updates

    def _goes_on(self, stop: StopSignal) -> bool:
        """False if this or another process was asked to stop."""
        _, stopped = self.learner.processes.agree(Word.UPDATE, stop.is_set())
        if stopped:
            stop.set()
        return not stopped

    @contextmanager
    def _leading(self) -> Iterator[None]:
        """Ends the run of the other processes with this one's."""
        word = Word.FAIL
        try:
            yield
            word = Word.END
        finally:
            # After an error in the middle of an exchange they wait for its rest, and notice that this process ends.
            if not self._exchanging:
                with suppress(LostProcess):
                    self.learner.processes.agree(word)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Encloses what all processes take part in."""
        self._exchanging = True
        yield
        self._exchanging = False

    @contextmanager
    def _others_wait(self) -> Iterator[None]:
        """Encloses what takes long and is done by the first process alone."""
        self.learner.processes.agree(Word.WAIT)
        try:
            yield
        finally:
            self.learner.processes.wait()

    def _save_alone(self) -> None:
        card = replace(self.card, updates=self.learner.updates)
        save_alone(self.folder, self.learner, card, self.seconds, self.say)

    def _owes_evaluation(self) -> bool:
        """True if the evaluation of this update was cut short, or failed, before the run was resumed."""
        updates, made = self.learner.updates, self.evaluations
        at_evaluation = updates % self.config.evaluate_every == 0 or updates == self.config.updates
        return updates > 0 and at_evaluation and (made.updates < updates or made.failed_at(updates))

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

    def _evaluate(self, stop: StopSignal) -> bool:
        """Validates and rolls out; whether a callback ends the run. A signal leaves all of it out."""
        with self._others_wait():
            return self._evaluate_alone(stop)

    def _evaluate_alone(self, stop: StopSignal) -> bool:
        began, points = time.perf_counter(), []
        made = self.evaluations.begun(self.learner.updates)
        for number, (model, held_out) in enumerate(zip(self.learner.models, self.learner.validate(), strict=True)):
            point = _tagged("validation", held_out)
            if self.evaluate is not None:
                try:
                    found = self._roll_out(self.evaluate, model, stop)
                except Stopped:
                    return False
                made.add(number, found)
                if isinstance(found, str):
                    self.say(
                        f"warning: the evaluation after update {made.updates} failed and is left out, training goes "
                        f"on: {found}"
                    )
                else:
                    point |= _tagged("evaluation", found)
            points.append(point | {CHECKING: time.perf_counter() - began})
        self.evaluations = made
        ends = self._write(points)
        made.write(self.folder)
        return ends

    def _roll_out(self, evaluate: Evaluate, model: DecisionModel, stop: StopSignal) -> dict[str, float] | str:
        """See `evaluate_model`; it takes no random numbers from the training."""
        device = self.learner.device
        with _evaluation_mode(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            return evaluate_model(evaluate, model, stop)

    def _write(self, points: list[dict[str, float]]) -> bool:
        """Hands a point of each model to callbacks, and then to the logs; whether a callback ends the run."""
        names = dict.fromkeys(name for point in points for name in point)
        means = {name: mean(point[name] for point in points if name in point) for name in names}
        added: dict[str, float] = {}
        try:
            ends, added = call_all(self._called, self.learner.updates, means)
        finally:
            for log, point in zip(self._logs, points, strict=True):
                log(self.learner.updates, point | added)
        return ends

    def _check_finite(self, meter: Meter, saves: bool = False) -> None:
        """Stops before weights that are not finite could replace a good checkpoint.

        Args:
            meter: of the losses and gradients since the last logged point.
            saves: looks at the weights as well.
        """
        metrics, weight = meter.not_finite(), None
        if metrics or saves:
            weights = [first_not_finite(model.state_dict()) for model in self.learner.models]
            weight = next((name for name in weights if name is not None), None)
        if not metrics and weight is None:
            return
        found = [f"train/{name} is {value}" for name, value in metrics.items()]
        found.append("the weights are finite" if weight is None else f"the weight {weight} holds a NaN or infinity")
        saved = checkpoints(self.folder)
        way = (
            f"go on from update {int(saved[-1].name)} with --resume {self.folder} and" if saved else "start again with"
        )
        raise Diverged(
            f"the training is not finite at update {self.learner.updates}: {', '.join(found)}; {way} a "
            f"--learning-rate below {self.config.learning_rate:g}"
        )

    def _read_best(self, number: int) -> tuple[DecisionModel, AgentCard] | None:
        """The best agent of a model so far; one that is damaged is forgotten, which is said."""
        best = self.evaluations.best[number]
        if best is None:
            return None
        saved = agent_folders(checkpoint_folder(self.folder, best[0]), self.learner.seeds)[number]
        try:
            return checkpoint.load_agent(saved)
        except CheckpointError as error:
            self.say(f"warning: the best agent, of update {best[0]}, is damaged and left out: {error}")
            self.evaluations.best[number] = None
            return None

    def _finish(self) -> list[Trained]:
        card, trained = replace(self.card, updates=self.learner.updates), []
        for number, (folder, model) in enumerate(zip(self.folders, self.learner.models, strict=True)):
            checkpoint.save_agent(folder / "last", model, card)
            found = self._read_best(number)
            best = self.evaluations.best[number]
            if found is not None:
                checkpoint.save_agent(folder / "best", *found)
            paths = folder / "last", None if best is None else folder / "best"
            update = None if best is None else best[0]
            trained.append(Trained(*paths, update, self.seconds, tuple(self.evaluations.failed[number])))
        drop_checkpoints(self.folder, {self.learner.updates, *self.evaluations.best_updates()})
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
