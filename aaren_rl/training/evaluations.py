"""What evaluations during training found: returns of the best agents, and failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from aaren_rl import checkpoint, folders
from aaren_rl.checkpoint import shortened
from aaren_rl.errors import AarenError, CheckpointError, InvalidInput
from aaren_rl.model import DecisionModel
from aaren_rl.training.signals import StopSignal

EVALUATIONS = "evaluations.json"

Evaluate: TypeAlias = Callable[[DecisionModel], Mapping[str, float]]
"""Rolls a model out; returns metrics by name, of which "return" decides which agent is the best."""


@dataclass
class Evaluations:
    """Best returns and failures of one or several models, and where the run stands with them.

    Attributes:
        best: update and return of each model's best agent; None where there is none yet.
        failed: update and message of each model's failed evaluations.
        updates: of the last evaluation.
    """

    best: list[tuple[int, float] | None]
    failed: list[list[dict[str, Any]]]
    updates: int = field(default=0)

    @classmethod
    def none(cls, models: int) -> Evaluations:
        """Those of models that were not evaluated yet."""
        return cls([None] * models, [[] for _ in range(models)])

    @classmethod
    def read(cls, folder: Path, models: int, updates: int) -> Evaluations:
        """Those of a run's folder up to an update; later ones, and those of an earlier run, are made anew.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / EVALUATIONS
        if not file.exists():
            return cls.none(models)
        saved = checkpoint.read_json(file)
        try:
            best = [None if one is None else (int(one[0]), float(one[1])) for one in saved["best"]]
            failed: list[list[dict[str, Any]]] = [
                [{"update": int(one["update"]), "message": str(one["message"])} for one in failures]
                for failures in saved["failed"]
            ]
            made = min(int(saved["updates"]), updates)
            if not len(best) == len(failed) == models:
                raise ValueError(f"{len(best)} models, expected {models}")
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{file} cannot be read: {shortened(repr(error))}") from error
        best = [one if one is not None and one[0] <= updates else None for one in best]
        return cls(best, [[one for one in each if one["update"] <= updates] for each in failed], made)

    def write(self, folder: Path) -> None:
        """Writes them into a run's folder.

        Raises:
            CheckpointError: they cannot be written.
        """
        content = {"updates": self.updates, "best": self.best, "failed": self.failed}
        try:
            folders.replace_file(folder / EVALUATIONS, json.dumps(content) + "\n")
        except OSError as error:
            raise CheckpointError(f"{folder / EVALUATIONS} could not be written: {error}") from error

    def begun(self, updates: int) -> Evaluations:
        """A copy for the evaluation of an update, without an earlier failure of the same."""
        failed = [[one for one in each if one["update"] != updates] for each in self.failed]
        return Evaluations(list(self.best), failed, updates)

    def add(self, number: int, found: Mapping[str, float] | str) -> None:
        """Adds the metrics of a model, or its failure in words."""
        if isinstance(found, str):
            self.failed[number].append({"update": self.updates, "message": found})
            return
        before = self.best[number]
        # A NaN is above nothing.
        if found["return"] > (-math.inf if before is None else before[1]):
            self.best[number] = self.updates, found["return"]

    def best_updates(self) -> set[int]:
        """Updates of the best agents."""
        return {one[0] for one in self.best if one is not None}

    def failed_at(self, updates: int) -> bool:
        """True if an evaluation of an update failed."""
        return any(one["update"] == updates for each in self.failed for one in each)


def evaluate_model(evaluate: Evaluate, model: DecisionModel, stop: StopSignal) -> dict[str, float] | str:
    """The metrics of a model; in words what failed, since an environment must not cost the training.

    Raises:
        InvalidInput: the metrics lack "return".
        Stopped: a signal came.
    """
    try:
        with stop.interrupts():
            metrics = evaluate(model)
    # Whatever an environment raises.
    except Exception as error:
        return failure(error)
    found = {name: float(value) for name, value in metrics.items()}
    if "return" not in found:
        raise InvalidInput(f"evaluate gave {sorted(found)}; expected 'return' among the metrics")
    return found


def failure(error: Exception) -> str:
    """One line on what was raised, with its type where it is none of this package's errors."""
    return shortened(str(error) if isinstance(error, AarenError) else f"{type(error).__name__}: {error}")
