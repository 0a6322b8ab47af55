"""What a reader of each file format must give: a clear refusal, or a success with nothing wrong in it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aaren_rl.agents.agent import Agent
from aaren_rl.data.bounds import bounds_of
from aaren_rl.envs import sources
from aaren_rl.envs.behaviours import ActorBehaviour
from aaren_rl.envs.dataset import Dataset, Reading
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import evaluation
from aaren_rl.experiments.comparison import matrix, scores
from aaren_rl.experiments.fit import load
from aaren_rl.experiments.stress import samples
from aaren_rl.model import Scaling
from aaren_rl.training.log import RunLog

STEPS = 10
"""Steps that an agent acts after it was loaded from a mutated folder."""


_GIVEN = Reading(EnvironmentChoice(samples.ENVIRONMENT))
"""Reads data with the environment that a user names."""


class WrongSuccess(Exception):
    """A reader took what it should have refused.

    Args:
        about: what it took, the same words for the same fault.
        detail: what differs from input to input.
    """

    def __init__(self, about: str, detail: str = "") -> None:
        super().__init__(about)
        self.about, self.detail = about, detail


CANARY = "canary"
"""Folder that planted code makes beside the file that names it."""


MODULE = "planted_by_stress"
"""Module that planted code lies in."""


def read_d4rl(folder: Path) -> None:
    """A D4RL file, with an environment that is given."""
    check_data(sources.load(folder / "data.hdf5", reading=_GIVEN, say=_nothing))


def read_minari(folder: Path) -> None:
    """Reads it with the environment that it names, and with one that is given."""

    def read() -> None:
        for reading in (Reading(), _GIVEN):
            check_data(sources.load(folder, reading=reading, say=_nothing))

    without_running_code(folder, read)


def without_running_code(folder: Path, read: Callable[[], object]) -> None:
    """Reads a folder.

    Raises:
        WrongSuccess: code that its contents name was run, whatever reading gave.
    """
    # Where a package of that name would be found.
    sys.path.insert(0, str(folder))
    try:
        read()
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)
        if (folder / CANARY).exists():
            raise WrongSuccess("code that a file names was run")


def check_data(dataset: Dataset) -> None:
    """Checks that nothing in a dataset is NaN or infinite.

    Raises:
        WrongSuccess: something is.
    """
    data = dataset.trajectories
    _require_finite("the training data", dataclasses.asdict(data))
    _require_finite("the scaling", dataclasses.asdict(Scaling.of(data, dataset.return_scale)))
    _require_finite("the targets", {"target_returns": dataset.target_returns, "return_scale": dataset.return_scale})


def read_agent(folder: Path) -> None:
    """An agent acts, and is prepared for an evaluation in the environment that it names."""

    def read() -> None:
        act(load(folder / "agent"))
        evaluation.prepare(str(folder / "agent"), evaluation.Options(episodes=1))

    without_running_code(folder, read)


def read_export(folder: Path) -> None:
    """An exported agent acts."""
    act(load(folder / "exported"))


def act(agent: Agent) -> None:
    """Lets an agent act some steps on ordinary observations.

    Raises:
        WrongSuccess: an action has another shape, is not finite or out of bounds.
    """
    rng = np.random.default_rng(0)
    space = agent.action_space
    low, high = bounds_of(space)
    agent.reset()
    reward = None
    for _ in range(STEPS):
        action = agent.act(rng.normal(size=agent.observation_space.shape).astype(np.float32), reward)
        if action.shape != space.shape or not np.isfinite(action).all():
            raise WrongSuccess("an action that is not finite, or of another shape")
        if (action < low - 1e-4).any() or (action > high + 1e-4).any():
            raise WrongSuccess("an action out of bounds")
        reward = float(rng.normal())


def read_run(folder: Path) -> None:
    """Restores the run and makes an update."""
    run = samples.make_run(folder / "run")
    run.restore()
    metrics = run.learner.update()
    _require_finite("the metrics of an update", {name: value.detach().numpy() for name, value in metrics.items()})
    _require_finite("the weights", {name: part.numpy() for name, part in run.learner.models[0].state_dict().items()})


def read_config(folder: Path) -> None:
    """The configuration of a run."""
    run_config.load(folder / "run" / run_config.CONFIG)


def read_log(folder: Path) -> None:
    """What a run logged before it was interrupted."""
    with RunLog(folder / "run", 3):
        pass


def read_comparison(folder: Path) -> None:
    """A comparison and the result of its only run."""
    whole = matrix.load(folder / "comparison.toml")
    runs = whole.runs(folder / "comparison")
    if len(runs) == 1:
        scores.collect(runs, {runs[0].agent: "command"})


def read_behaviour(folder: Path) -> None:
    """A behaviour acts."""
    behaviour = ActorBehaviour.load(folder / "behaviour.npz")
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        action = behaviour([[rng.normal(size=3).astype(np.float32)]], rng)
        if action.shape != (1, 1) or not np.isfinite(action).all():
            raise WrongSuccess("an action that is not finite, or of another shape")


def read_words(folder: Path) -> None:
    """The words of a command line, one a line."""
    run_config.parse((folder / "words.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n"))


def _require_finite(what: str, parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        values = np.asarray(part if part is not None else 0)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise WrongSuccess(f"{what} hold a NaN or an infinite value", name)


def _nothing(line: str) -> None:
    """Takes a line and says nothing."""
