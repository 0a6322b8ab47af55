"""The front door in Python: train an agent in one call, load one in another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minari import MinariDataset

from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.hub import find
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import ARRAYS, of_trajectories
from aaren_rl.envs.environment_choice import NONE
from aaren_rl.envs.keeping import Choice
from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import device_named, say, say_nothing
from aaren_rl.experiments.exporting import exported_form
from aaren_rl.experiments.settings import merge, to_table
from aaren_rl.experiments.train import train
from aaren_rl.model import ModelConfig
from aaren_rl.training.callbacks import Callback
from aaren_rl.training.config import TrainingConfig

SET_BY_ARGUMENTS = {
    "env": "data",
    "data": "keep",
    "env_id": "environment",
    "env_kwargs": "environment",
    "run": "folder",
    "resume": "folder",
}
"""Settings of a run that `fit` takes by arguments of other names."""


def fit(
    data: str | Path | Trajectories | MinariDataset,
    *,
    environment: str | EnvironmentSpec | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    keep: Choice | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> DecisionAgent:
    """Trains an agent on offline data, evaluates it, and returns it.

    Everything goes into a run folder, as with `scripts/train.py`: checkpoints, metrics, the learning curve,
    `result.json`, and the agent under `last`.

    Args:
        data: a dataset by name or path, as `--env` takes it, trajectories of your own, or a Minari dataset in memory,
            as `filter_episodes` returns it.
        environment: Gymnasium id, or id and arguments, of the environment to act in, on top of what data record of it;
            None for the one that the data name, "none" for none. Trajectories of your own name none: without an
            environment the agent is trained and not rolled out. The package of "package:Id" is imported.
        folder: of the run; by default runs/<data>-<time>.
        resume: goes on with the interrupted run in the folder, on the same data, with its settings but for those given.
        keep: where data by name lie while they are trained on: "memory", "disk" or "auto", as `--data` takes it; None
            for "auto", or for what the run to resume had. Trajectories of your own stay where they are.
        callbacks: called with the number of updates and their metrics after every update (see
            `aaren_rl.training.callbacks.Callback`); one that returns True ends the run.
        progress: prints what is done, and shows progress bars.
        **settings: any option of `scripts/train.py --help` but --env, --data, --env-id, --run, --resume and --seeds,
            with underscores: `preset="quick"`, `updates=2_500`, `mixer="softmax"`, `episodes=20`.

    Returns:
        The agent after the last update.

    Raises:
        InvalidInput: a name or a value is unknown or out of range.
        DataError: the data cannot be had, are damaged, or do not fit their environment.
        CheckpointError: the folder to resume has no checkpoint, or one of other data or another model.
        Interrupted: Ctrl-C; a checkpoint was saved, and `resume` goes on.
    """
    if not isinstance(data, str | Path | Trajectories | MinariDataset):
        raise InvalidInput(
            f"data is a {type(data).__name__}; expected the name or path of a dataset, a MinariDataset, or "
            "Trajectories (see Trajectories.from_episodes)"
        )
    if not isinstance(environment, str | EnvironmentSpec | None):
        raise InvalidInput(
            f"environment is a {type(environment).__name__}; expected a Gymnasium id or an EnvironmentSpec, since "
            "several copies are made"
        )
    if not isinstance(callbacks, Sequence):
        raise InvalidInput(f"callbacks is a {type(callbacks).__name__}; expected a list, as callbacks=[callback]")
    if resume and folder is None:
        raise InvalidInput("resume without a folder; give the folder of the run to go on with")
    place, tell = None if folder is None else Path(folder), say if progress else say_nothing
    config = _config(settings, place if resume else None, environment)
    config = dataclasses.replace(config, resume=place) if resume else dataclasses.replace(config, run=place)
    if keep is not None:
        if isinstance(data, Trajectories):
            raise InvalidInput("keep is for data by name; trajectories stay in memory, or on disk if they lie there")
        config = dataclasses.replace(config, data=keep)
    if environment is not None:
        config = dataclasses.replace(config, **_environment_settings(data, environment, config))
    dataset = None
    if isinstance(data, str | Path):
        config = dataclasses.replace(config, env=str(data))
    else:
        beside = Path("runs") if place is None else place.absolute().parent
        reading = run_config.reading(config, run_config.keeping(config, beside, device_named(config.device), progress))
        dataset = (
            of_trajectories(data, _spec(environment), reading, tell)
            if isinstance(data, Trajectories)
            else sources.load(data, reading=reading, say=tell)
        )
        config = dataclasses.replace(config, env=ARRAYS)
    outcome = train(config, dataset, callbacks, tell, progress)
    return DecisionAgent.load(outcome["agents"][0])


def load(folder: str | Path, **options: Any) -> Agent:
    """Loads an agent from its folder or from the Hugging Face Hub, or an exported agent from its folder.

    Args:
        folder: as training or `scripts/export.py` wrote it; where there is none of that name, a repository on the Hub,
            as user/repo or user/repo@revision, whose commit is then printed (see `aaren_rl.agents.hub.find`).
        **options: of `aaren_rl.agents.DecisionAgent` (device, acting, renew) or `aaren_rl.agents.OnnxAgent` (threads,
            acting, renew).

    Raises:
        CheckpointError: the agent is missing, incomplete, altered or of another version, or the Hub cannot be reached.
        InvalidInput: an option does not fit, or an exported agent is code.
    """
    found = find(folder, say)
    form = exported_form(found.folder)
    # Whatever else of a repository lies in the cache, an agent of the Hub is its two files.
    if form.code is not None and found.address is None:
        raise InvalidInput(
            f"{folder} holds {form.code}; if you trust whoever wrote it, call "
            f"aaren_rl.agents.{form.__name__}({str(folder)!r})"
        )
    known = ("threads", "acting", "renew") if found.exported else ("device", "acting", "renew")
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    return OnnxAgent(found.folder, **options) if found.exported else DecisionAgent.load(found.folder, **options)


def _config(settings: dict[str, Any], resume: Path | None, environment: object) -> RunConfig:
    """The configuration that flat settings describe, on top of a preset or of the run to resume."""
    model, training, top = (
        {field.name for field in dataclasses.fields(group)} for group in (ModelConfig, TrainingConfig, RunConfig)
    )
    names = (model | training | top) - {"model", "training"}
    tables: dict[str, Any] = {"model": {}, "training": {}}
    for name, value in settings.items():
        if name in SET_BY_ARGUMENTS:
            raise InvalidInput(f"{name} is no setting of fit; use its argument {SET_BY_ARGUMENTS[name]}")
        if name == "seeds":
            raise InvalidInput("fit trains one agent; give seed, or use scripts/train.py --seeds")
        if name not in names:
            raise unknown_name("setting", name, names - set(SET_BY_ARGUMENTS) - {"seeds"})
        table = tables["model"] if name in model else tables["training"] if name in training else tables
        table[name] = value
    if resume is not None:
        loaded = run_config.load(resume / CONFIG)
        run_config.refuse_files(loaded, environment, str(resume))
        saved = to_table(dataclasses.replace(loaded, run=None))
        return run_config.from_table(merge(saved, tables, "fit"), "fit")
    return run_config.from_table(tables, "fit")


def _environment_settings(
    data: str | Path | Trajectories | MinariDataset, environment: str | EnvironmentSpec, config: RunConfig
) -> dict[str, Any]:
    """Settings of a run that say what `environment` says; its package is imported, since the caller names it."""
    spec = EnvironmentSpec(environment) if isinstance(environment, str) else environment
    if spec.wrappers and not isinstance(data, Trajectories):
        raise InvalidInput(
            f"{spec} has wrappers, which data by name bring along; register an environment with them and name that"
        )
    imports = (*config.imports, spec.package) if spec.package else config.imports
    return {
        "env_id": spec.id,
        "env_kwargs": tuple(f"{name}={json.dumps(value)}" for name, value in spec.kwargs.items()),
        "horizon": spec.max_episode_steps if config.horizon is None else config.horizon,
        "imports": imports,
    }


def _spec(environment: str | EnvironmentSpec | None) -> EnvironmentSpec | None:
    if environment is None or environment == NONE:
        return None
    return EnvironmentSpec(environment) if isinstance(environment, str) else environment
