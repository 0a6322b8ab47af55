"""Trials of a search in a file: which settings were tried, what they scored, and which to try next (Optuna)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments.comparison.preparing import Origin
from aaren_rl.experiments.search.space import Range, Search

JOURNAL = "trials.jsonl"

REDUCTION = 3
"""Of the trials at a rung the best third goes on, as in the paper's experiments; rungs lie at 1, 3, 9 evaluations."""


class Trials:
    """The trials of a search: TPE proposes settings (Bergstra et al. 2011), ASHA prunes (Li et al. 2020, 1810.05934).

    All is in a journal of JSON lines, so that a search can be stopped anywhere.

    Args:
        search: the search.
        folder: of the search.

    Raises:
        InvalidInput: Optuna is missing, or the folder holds a search of another definition.
        CheckpointError: the journal is damaged.
    """

    def __init__(self, search: Search, folder: Path) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InvalidInput(
                f"a search needs Optuna ({error}); in a clone: .venv/bin/pip install '.[search]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna: Any = optuna
        self.search, self.file = search, folder / JOURNAL
        try:
            self._study = self._open()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(f"{self.file} cannot be read: {error}; delete {folder} to search anew") from error
        wanted = search.definition()
        saved = self._study.user_attrs.get("definition")
        if saved is None:
            self._study.set_user_attr("definition", wanted)
        elif saved != json.loads(json.dumps(wanted)):
            differing = [name for name in wanted if saved.get(name) != json.loads(json.dumps(wanted[name]))]
            raise InvalidInput(
                f"{folder} holds a search of another definition, they differ in {', '.join(differing)}; set "
                f"{search.whole.file} back, pass another --out, or delete that folder"
            )

    def _open(self) -> Any:
        optuna = self._optuna
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(self.file)))
        study = optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        )
        # Drawn on, not anew, where a search goes on.
        study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
        return study

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Number and values of a further trial; None if the budget is spent."""
        if len(self._study.get_trials(deepcopy=False)) >= self.search.options.trials:
            return None
        trial = self._study.ask({name: self._distribution(one) for name, one in self.search.space.items()})
        return trial.number, dict(trial.params)

    def unfinished(self) -> list[tuple[int, dict[str, Any]]]:
        """Number and values of the trials that were begun and have not ended."""
        states = (self._optuna.trial.TrialState.RUNNING,)
        begun = self._study.get_trials(deepcopy=False, states=states)
        # One that was cut while it was asked for has no values of some settings; it is dropped.
        whole = [trial for trial in begun if set(trial.params) == set(self.search.space)]
        for trial in begun:
            if trial not in whole:
                self.fail(trial.number, "it was cut while it was drawn")
        return [(trial.number, dict(trial.params)) for trial in whole]

    def report(self, number: int, evaluation: int, score: float) -> bool:
        """Notes the score of an evaluation, once; returns whether the trial is to be pruned after it."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
        if evaluation not in frozen.intermediate_values:
            trial.report(score, evaluation)
        return bool(trial.should_prune())

    def complete(self, number: int, score: float) -> None:
        """Ends a trial with its score."""
        self._study.tell(number, score)

    def prune(self, number: int) -> None:
        """Ends a trial that is not worth going on."""
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, why: str) -> None:
        """Ends a trial that failed."""
        trial_id = self._study.get_trials(deepcopy=False)[number]._trial_id
        self._study._storage.set_trial_user_attr(trial_id, "failure", why)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def counts(self) -> dict[str, int]:
        """Numbers of trials by how they ended: complete, pruned, fail, running."""
        states = [trial.state.name.lower() for trial in self._study.get_trials(deepcopy=False)]
        return {name: states.count(name) for name in ("complete", "pruned", "fail", "running")}

    @property
    def is_done(self) -> bool:
        """True if the budget is spent and no trial runs."""
        counts = self.counts()
        return counts["running"] == 0 and sum(counts.values()) >= self.search.options.trials

    def best(self) -> tuple[int, dict[str, Any], float] | None:
        """Number, values and score of the best trial; None if none was completed."""
        if not self.counts()["complete"]:
            return None
        best = self._study.best_trial
        return best.number, dict(best.params), float(best.value)

    @property
    def origins(self) -> dict[str, Origin]:
        """Origins of the datasets that the trials were trained on; setting it keeps them in the file."""
        saved = self._study.user_attrs.get("origins", {})
        return {dataset: Origin(**one) for dataset, one in saved.items()}

    @origins.setter
    def origins(self, found: dict[str, Origin]) -> None:
        if found != self.origins:
            self._study.set_user_attr("origins", {dataset: asdict(one) for dataset, one in found.items()})

    def failures(self) -> list[str]:
        """A line on every trial that failed."""
        trials = self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.FAIL,))
        return [f"trial {trial.number}: {trial.user_attrs.get('failure')}" for trial in trials]

    def _distribution(self, one: Any) -> Any:
        distributions = self._optuna.distributions
        if not isinstance(one, Range):
            return distributions.CategoricalDistribution(one)
        if one.whole:
            return distributions.IntDistribution(one.low, one.high, log=one.log, step=one.step or 1)
        return distributions.FloatDistribution(one.low, one.high, log=one.log, step=one.step)
