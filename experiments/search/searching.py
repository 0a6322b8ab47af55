"""Searches for settings: trains the trials of a search in a pool, prunes by their evaluations, and takes the best."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from aaren_rl.envs.dataset import Say
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.comparison import preparing, running
from aaren_rl.experiments.comparison.matrix import Matrix, Run
from aaren_rl.experiments.comparison.preparing import Origin
from aaren_rl.experiments.comparison.processes import SUCCESS, Pool
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.search.space import FOLDER, Search
from aaren_rl.experiments.search.trials import JOURNAL, Trials
from aaren_rl.training.lock import locked
from aaren_rl.training.log import read_metrics
from aaren_rl.training.run import Interrupted
from aaren_rl.training.signals import stop_signal

LOOK = 2.0
"""Seconds between two looks at the evaluations of trials."""

UNSCORED = "and a search over several datasets takes the mean of their scores; leave it out of the search"
"""What is said of a dataset without reference returns."""


@dataclass
class _Trial:
    """A trial that trains.

    Attributes:
        number: of the trial.
        runs: its runs.
        left: runs that have not ended.
        noted: evaluations whose score is noted.
    """

    number: int
    runs: list[Run]
    left: list[Run] = field(default_factory=list)
    noted: int = 0

    @property
    def evaluations(self) -> int:
        """Evaluations of a whole training."""
        training = self.runs[0].config.training
        return math.ceil(training.updates / training.evaluate_every)

    def scores(self) -> dict[int, float]:
        """Mean score over the runs by evaluation, of those that all runs have made."""
        each = [_scores(run) for run in self.runs]
        common = set.intersection(*map(set, each))
        return {number: sum(scores[number] for scores in each) / len(each) for number in sorted(common)}


def found(search: Search, out: Path) -> tuple[Matrix, dict[str, Any]] | None:
    """The comparison with the best setting as one more agent, and the search in figures; None if it is not done.

    Raises:
        InvalidInput: the search was another one, or no trial was completed.
        CheckpointError: the file of the trials is damaged.
    """
    folder = out / FOLDER
    if not (folder / JOURNAL).exists():
        return None
    trials = Trials(search, folder)
    if not trials.is_done:
        return None
    best = trials.best()
    if best is None:
        failures = "; ".join(trials.failures())
        raise InvalidInput(
            f"no trial of the search in {folder} was completed ({failures}); mend [search], and delete it"
        )
    number, values, score = best
    options, name = search.options, search.options.name
    whole = replace(search.whole, agents={**search.whole.agents, name: search.config(name, values)})
    counts = trials.counts()
    # The file may say fewer by now, and the best one is of all that were made.
    about = {"agent": name, "from": options.agent, "trials": sum(counts.values()), **counts, "best": number}
    about |= {"settings": values, "score": score, "space": {key: _in_words(one) for key, one in search.space.items()}}
    about |= {"datasets": list(search.datasets), "seeds": list(options.seeds), "episodes": options.episodes}
    about["origins"] = {dataset: asdict(one) for dataset, one in trials.origins.items()}
    return whole, about


def origins(about: dict[str, Any] | None) -> dict[str, Origin]:
    """Origins of the datasets of a search, by its figures; none without a search."""
    return {} if about is None else {dataset: Origin(**one) for dataset, one in about["origins"].items()}


def run(
    search: Search, out: Path, pool: Pool, say: Say, without_scores: bool = False, imports: tuple[str, ...] = ()
) -> None:
    """Trains the trials that are left of a search.

    Args:
        search: the search.
        out: folder of the comparison.
        pool: trains the runs; as many at a time as it has room for.
        say: receives a line on every trial that ends.
        without_scores: takes a dataset without reference returns, by its returns.
        imports: packages that register environments, for the processes of the runs.

    Raises:
        InvalidInput: the search was another one, or data do not fit.
        DataError: data cannot be loaded, or come from another source than those of runs that are reported.
        Interrupted: Ctrl-C or SIGTERM; the runs in training have saved a checkpoint and ended.
    """
    folder = out / FOLDER
    with locked(folder, say):
        trials = Trials(search, folder)
        known = preparing.joined(trials.origins, preparing.begun(search.whole.runs(out)))
        # Trials that were made count for those to come, too.
        known |= trials.origins
        # The data of all trials are loaded once; no setting that is searched changes their origin.
        first = search.runs("data", search.config("data", {}), folder)
        alone = len(search.datasets) == 1
        unscored = preparing.LEAVE_OUT if alone else UNSCORED
        ready = preparing.prepare(first, known, out, pool, say, without_scores and alone, unscored)
        trials.origins = {one.dataset: Origin(one.config.source, one.config.data) for one in ready}
        data = {one.dataset: replace(one.config, imports=imports) for one in ready}
        _Searching(trials, folder, pool, say, data).run()


class _Searching:
    """The state of a search that trains.

    Args:
        trials: in their file.
        folder: of the runs.
        pool: trains them.
        say: receives a line on every trial that ends.
        data: configuration by dataset that has the origin of its data, and the packages to import.
    """

    def __init__(self, trials: Trials, folder: Path, pool: Pool, say: Say, data: dict[str, RunConfig]) -> None:
        self.trials, self.folder, self.pool, self.say, self.data = trials, folder, pool, say, data
        self.begun = trials.unfinished()
        self.live: list[_Trial] = []
        self.waiting: list[Run] = []
        self.training: list[Run] = []

    def run(self) -> None:
        """Trains until the budget is spent. An error too has the runs in training save a checkpoint and end."""
        total = self.trials.search.options.trials
        with stop_signal() as stop, tqdm(total=total, unit="trial", disable=None) as self.bar:
            self.bar.update(sum(self.trials.counts().values()) - len(self.begun))
            try:
                done = self._train(stop)
            finally:
                running.end(self.pool)
        if not done:
            ended = sum(self.trials.counts().values()) - self.trials.counts()["running"]
            raise Interrupted(f"stopped, {ended} of {total} trials are finished, all that was trained is saved")

    def _train(self, stop: Event) -> bool:
        """Trains until the budget is spent, or `stop` is set; returns whether it is spent."""
        looked = 0.0
        while not stop.is_set():
            while len(self.training) + len(self.waiting) < self.pool.capacity and self._begin():
                pass
            while self.waiting and len(self.training) < self.pool.capacity:
                self.training.append(self.waiting.pop(0))
                self.pool.start(self.training[-1])
            if not self.live and not self.training:
                return True
            ended = self.pool.ended(timeout=0.2)
            for one, how in ended:
                self._end(one, how)
            if ended or time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                for trial in list(self.live):
                    self._look(trial)
        return False

    def _begin(self) -> bool:
        """Begins a trial, one that was begun before first; False if there is none left."""
        asked = self.begun.pop(0) if self.begun else self.trials.ask()
        if asked is None:
            return False
        number, values = asked
        name = f"trial-{number:03}"
        try:
            config = self.trials.search.config(name, values)
        except InvalidInput as error:
            self._close(number, f"its settings do not go together: {error}")
            self.trials.fail(number, str(error))
            return True
        runs = self.trials.search.runs(name, config, self.folder)
        running.check_folders(runs, self.trials.search.whole.file)
        runs = [replace(one, config=self._with_data(one.config, self.data[one.dataset])) for one in runs]
        trial = _Trial(number, runs, [one for one in runs if running.outcome(one) is None])
        self.live.append(trial)
        self.waiting += trial.left
        return True

    @staticmethod
    def _with_data(config: RunConfig, ready: RunConfig) -> RunConfig:
        taken = {name: getattr(ready, name) for name in ("source", "data", "data_folder", "imports")}
        return replace(config, **taken)

    def _end(self, one: Run, how: str) -> None:
        """Notes that a run has ended; a trial with one that failed has failed."""
        self.training.remove(one)
        for trial in self.live:
            if one in trial.left:
                trial.left.remove(one)
                if how != SUCCESS:
                    line, _ = running.report(one, how)
                    self._drop(trial)
                    self.trials.fail(trial.number, line)
                    self._close(trial.number, line)

    def _look(self, trial: _Trial) -> None:
        """Notes the scores that a trial has reached, and ends it where it is done or not worth going on."""
        scores = trial.scores()
        for evaluation, score in scores.items():
            if evaluation <= trial.noted:
                continue
            trial.noted = evaluation
            prunes = self.trials.report(trial.number, evaluation, score)
            if prunes and evaluation < trial.evaluations:
                self._drop(trial)
                self.trials.prune(trial.number)
                self._close(
                    trial.number, f"pruned at {score:.4g} after {evaluation} of {trial.evaluations} evaluations"
                )
                return
        if not trial.left:
            self.live.remove(trial)
            if trial.evaluations in scores:
                self.trials.complete(trial.number, scores[trial.evaluations])
                self._close(trial.number, f"{scores[trial.evaluations]:.4g}")
            else:
                self.trials.fail(trial.number, "its last evaluation failed")
                self._close(trial.number, "its last evaluation failed")

    def _drop(self, trial: _Trial) -> None:
        """Trains a trial no more."""
        self.live.remove(trial)
        self.waiting = [one for one in self.waiting if one not in trial.left]
        self.pool.stop([one for one in self.training if one in trial.left])

    def _close(self, number: int, how: str) -> None:
        self.bar.update(1)
        with tqdm.external_write_mode():
            self.say(f"search: trial {number}: {how}")


def _scores(run: Run) -> dict[int, float]:
    """Score of a run by evaluation, or its return where there is no score."""
    every = run.config.training.evaluate_every
    points = [point for point in read_metrics(run.folder) if "evaluation/return" in point]
    scored = all("evaluation/normalized_score" in point for point in points)
    name = "evaluation/normalized_score" if scored else "evaluation/return"
    return {math.ceil(point["update"] / every): point[name] for point in points}


def _in_words(one: Any) -> str:
    return ", ".join(map(str, one)) if isinstance(one, tuple) else str(one)
