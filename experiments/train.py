"""A training from its configuration to its result: one agent, or several with consecutive seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from aaren_rl import checkpoint
from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.context import Context
from aaren_rl.envs import sources
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.dataset import ARRAYS, Dataset, Say
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.keeping import Choice
from aaren_rl.envs.sources import Source
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import device_named, say, say_nothing
from aaren_rl.experiments.report import EvaluationFailed, Job, final_protocol, report, summarise
from aaren_rl.folders import replace_file
from aaren_rl.model import DecisionModel, count_parameters
from aaren_rl.ops import prefix_attention
from aaren_rl.training.callbacks import Callback
from aaren_rl.training.checkpoints import checkpoints
from aaren_rl.training.ensemble import EnsembleLearner
from aaren_rl.training.evaluations import Evaluate
from aaren_rl.training.follower import Follower
from aaren_rl.training.launch import launch_name, may_restart, was_restarted
from aaren_rl.training.learner import Learner, SingleLearner
from aaren_rl.training.lock import Locked, locked
from aaren_rl.training.optimiser import learning_rate
from aaren_rl.training.processes import LostProcess, Processes, process_group
from aaren_rl.training.run import Interrupted, Run

QUANTILES = 11
"""Quantiles of the data's returns that an agent's card holds."""

LAUNCH = ".torchrun"
"""File in a run's folder with the name of the launch of torchrun that trains there."""

RESUMED = "the update to go on from", "put the run's folder on storage that all machines share"
"""What processes may differ in after a resume, and what to do."""

CHECK_SEED = 10_000
"""First environment seed of evaluations during training; the final evaluation starts from 0."""


def train(
    config: RunConfig,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    say: Say = say,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains as configured, evaluates, and writes everything into the run's folder.

    Under torchrun all processes train one agent; the first one logs, evaluates and saves.

    Args:
        config: the whole of it.
        dataset: the data; None to load what the configuration names.
        callbacks: called after every update (see `aaren_rl.training.callbacks.Callback`).
        say: takes lines on what is done.
        progress: shows progress bars.

    Returns:
        The final result, as in result.json, and under "agents" the folders of the agents. In processes that follow
        the first one, the folders alone.

    Raises:
        AarenError: the configuration, the data or the run's folder do not fit; the message says how to go on.
        Interrupted: Ctrl-C or SIGTERM, after saving.
        EvaluationFailed: the final evaluation failed; all else is done and saved, result.json says what failed.
        LostProcess: another process ended; what is saved was said.
    """
    device = device_named(config.device)
    with process_group(device) as processes:
        _refuse_launch(config, processes)
        if not processes.leads:
            return _follow(config, dataset, device, processes, say)
        outcome = _lead(config, dataset, device, processes, tuple(callbacks), say, progress)
        with suppress(LostProcess):
            processes.wait()
    return outcome


def _refuse_launch(config: RunConfig, processes: Processes) -> None:
    """Refuses what does not go with the way that torchrun started the processes.

    Raises:
        InvalidInput: several seeds are asked of several processes, or a restart would not find the run.
    """
    if processes.count > 1 and config.seeds > 1:
        raise InvalidInput(
            f"--seeds {config.seeds} with {processes.count} processes, which train one agent together; start one "
            "training for each --seed, or several at once with scripts/compare.py"
        )
    if may_restart() and config.run is None and config.resume is None:
        raise InvalidInput(
            "torchrun may restart this training, which then has to find its run again; pass --run FOLDER"
        )


def _restarted(config: RunConfig) -> RunConfig:
    """The configuration, which resumes its run where the same launch of torchrun began that."""
    if config.run is None or not checkpoints(config.run):
        return config
    begun = config.run / LAUNCH
    if was_restarted() or (launch_name() is not None and begun.exists() and begun.read_text("utf-8") == launch_name()):
        return dataclasses.replace(config, run=None, resume=config.run)
    return config


def _lead(
    config: RunConfig,
    dataset: Dataset | None,
    device: torch.device,
    processes: Processes,
    callbacks: tuple[Callback, ...],
    say: Say,
    progress: bool,
) -> dict[str, Any]:
    """The training in its only, or first, process."""
    config = _restarted(config)
    if dataset is None and config.resume is not None and config.env == ARRAYS:
        raise InvalidInput(
            f"{config.resume} was trained on arrays, which are not saved; go on with "
            f"aaren_rl.fit(data, folder={str(config.resume)!r}, resume=True)"
        )
    with _claimed(config, say) as folder:
        processes.broadcast(json.dumps({"folder": str(folder), "resume": config.resume is not None}))
        if config.resume is not None and run_config.was_edited(folder / CONFIG):
            say(f"{folder / CONFIG} was edited since the run wrote it; its settings count as they stand now")
        config, dataset = _loaded(config, dataset, folder, device, processes, say, progress)
        job = Job(config, dataset, folder, device, callbacks, say, progress, processes)
        outcome = _train_alone(job) if config.seeds == 1 else _train_seeds(job)
    if "failure" in outcome:
        raise EvaluationFailed(
            f"the final evaluation failed: {outcome['failure']}; the training is saved, evaluate its agent with "
            f"scripts/evaluate.py {outcome['agents'][0]}, or again by --resume {folder}"
        )
    return outcome


def _follow(
    config: RunConfig, dataset: Dataset | None, device: torch.device, processes: Processes, say: Say
) -> dict[str, Any]:
    """The training in a process that follows the first one, which speaks for all."""
    # The first process alone looks into folders, which others may see later.
    said = json.loads(processes.broadcast(""))
    folder = Path(said["folder"])
    config = dataclasses.replace(config, run=None, resume=folder if said["resume"] else None)
    config, dataset = _loaded(config, dataset, folder, device, processes, say_nothing, False)
    job = Job(config, dataset, folder, device, (), say_nothing, False, processes)
    learner = make_learner(job)
    follower = Follower(learner, make_card(job), folder, say)
    if config.resume is not None:
        processes.wait()
        follower.restore()
    processes.check_same(str(learner.updates), *RESUMED)
    if not follower.follow():
        raise Interrupted(f"process {processes.rank} ended with the first one")
    with suppress(LostProcess):
        processes.wait()
    return {"agents": [str(folder / "last")]}


def _loaded(
    config: RunConfig,
    dataset: Dataset | None,
    folder: Path,
    device: torch.device,
    processes: Processes,
    say: Say,
    progress: bool,
) -> tuple[RunConfig, Dataset]:
    """The data, downloaded or converted by one process of each machine, and the configuration with where they lie."""
    if dataset is not None:
        return config, dataset

    def load(config: RunConfig) -> Dataset:
        keeping = run_config.keeping(config, folder.absolute().parent, device, progress)
        return sources.load(config.env, config.source, run_config.reading(config, keeping), say)

    dataset = load(config) if processes.leads else None
    placed = "disk" if dataset is not None and dataset.trajectories.storage.on_disk else "memory"
    # Batches from memory and from disk are the same on a CPU only.
    config = dataclasses.replace(config, data=cast(Choice, processes.broadcast(placed)))
    with processes.in_turn():
        return config, dataset or load(config)


def _train_seeds(job: Job) -> dict[str, Any]:
    """Several agents with consecutive seeds, and the summary of their results."""
    config, folder = job.config, job.folder
    save_config(job)
    jobs = [_job_of(job, seed) for seed in range(config.training.seed, config.training.seed + config.seeds)]
    try:
        outcomes = _train_together(job, jobs) if _one_batch(job, jobs) else _train_in_turn(job, jobs)
    except Interrupted as error:
        raise Interrupted(f"stopped, all that was trained is saved; go on with --resume {folder}") from error
    return summarise(job, outcomes)


def make_learner(job: Job) -> SingleLearner:
    """The learner of one seed, before its first update."""
    config, dataset = job.config, job.dataset
    torch.manual_seed(config.training.seed)
    model = DecisionModel(config.model, dataset.observation_space, dataset.action_space, dataset.scaling())
    return SingleLearner(model, dataset.trajectories, config.training, job.device, dataset.relabelling, job.processes)


def save_config(job: Job, finetuning: dict[str, Any] | None = None) -> None:
    """Writes the configuration into the run's folder, such that resuming finds the same data from anywhere.

    Args:
        job: of the run.
        finetuning: as for `config.save`.
    """
    config = run_config.located(job.config) if job.config.env != ARRAYS else job.config
    if config.env in catalogue() and job.dataset.source != "arrays":
        # Names of the catalogue come from its sources alone.
        config = dataclasses.replace(config, source=cast(Source, job.dataset.source))
    # Without its own place, so that the folder can be moved.
    run_config.save(dataclasses.replace(config, run=None, resume=None), job.folder / CONFIG, finetuning)


def _train_alone(job: Job) -> dict[str, Any]:
    with locked(job.folder, job.say):
        learner = make_learner(job)
        run = _run(job, learner)
        if job.config.resume is not None:
            run.restore()
            job.processes.wait()
            job.say(f"resuming {job.folder} after update {learner.updates}")
        job.processes.check_same(str(learner.updates), *RESUMED)
        save_config(job)
        job.say(_describe(job, learner))
        _warn_of_warmup(job)
        with _known_to_restarts(job.folder):
            (trained,) = run.run(job.progress)
        return report(job, learner, trained)


@contextmanager
def _known_to_restarts(folder: Path) -> Iterator[None]:
    """Notes the launch of torchrun in a run's folder, by which a restart finds out that it may resume there."""
    if (name := launch_name()) is not None:
        replace_file(folder / LAUNCH, name)
    try:
        yield
    finally:
        if not checkpoints(folder):
            (folder / LAUNCH).unlink(missing_ok=True)


def _train_together(job: Job, jobs: list[Job]) -> list[dict[str, Any]]:
    """All seeds as one batch, in one run."""
    job.say(f"{len(jobs)} seeds as one batch")
    # Several models as one batch are not compiled.
    jobs = [dataclasses.replace(one, config=_uncompiled(one.config)) for one in jobs]
    singles = [make_learner(one) for one in jobs]
    learner = EnsembleLearner(singles)
    run = _run(job, learner)
    if job.config.resume is not None and checkpoints(job.folder):
        run.restore()
        job.say(f"resuming {job.folder} after update {learner.updates}")
    job.say(_describe(job, singles[0]))
    _warn_of_warmup(job)
    trained = run.run(job.progress)
    return [report(one, single, each) for one, single, each in zip(jobs, singles, trained, strict=True)]


def _train_in_turn(job: Job, jobs: list[Job]) -> list[dict[str, Any]]:
    """All seeds one after another, each in a run of its own."""
    if checkpoints(job.folder):
        raise InvalidInput(
            f"the seeds in {job.folder} were trained as one batch on a GPU, which is not to be had here; resume there, "
            "or start anew in another --run"
        )
    config = job.config
    why = "on a CPU" if job.device.type == "cpu" else f"with {config.model.mixer} on {config.training.context}"
    why = "with data on disk" if job.dataset.trajectories.storage.on_disk else why
    job.say(f"{len(jobs)} seeds, one after another, {why}")
    return [_outcome_before(one) or _train_alone(one) for one in jobs]


def _job_of(job: Job, seed: int) -> Job:
    """The job of one of several seeds."""
    config, folder = job.config, job.folder / f"seed-{seed}"
    resume = folder if config.resume is not None and checkpoints(folder) else None
    training = dataclasses.replace(config.training, seed=seed)
    single = dataclasses.replace(config, seeds=1, training=training, run=folder, resume=resume)
    return dataclasses.replace(job, config=single, folder=folder)


def _uncompiled(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, compile="no"))


def _one_batch(job: Job, jobs: list[Job]) -> bool:
    """True if several seeds can be trained as one batch, which is no faster on a CPU."""
    config = job.config
    carries = Context.parse(config.training.context).mode == "carry"
    if job.device.type != "cuda" or not config.model.cuda_graph or carries or job.dataset.trajectories.storage.on_disk:
        return False
    if config.training.compile == "yes":
        raise InvalidInput("--compile yes does not go with --seeds on a GPU, where they are one batch; leave it out")
    if any(checkpoints(one.folder) for one in jobs):
        job.say("the seeds were begun one after another, and go on so")
        return False
    return True


def _outcome_before(job: Job) -> dict[str, Any] | None:
    """The result of a seed that finished before the others were interrupted."""
    file = job.folder / "result.json"
    if job.config.resume is None or not file.exists():
        return None
    outcome = checkpoint.read_json(file)
    config = job.config
    protocol = final_protocol(job)
    asked = {"updates": config.training.updates, "acting": config.acting}
    asked |= {} if protocol is None else protocol.to_json()
    # As JSON has it, since that is what it is compared with.
    if not json.loads(json.dumps(asked)).items() <= outcome.items():
        return None
    if protocol is not None and not isinstance(outcome.get("mean"), int | float):
        # Its evaluation failed, or the file was altered.
        return None
    job.say(f"{job.folder} is finished, its result stands")
    return outcome


def make_card(job: Job) -> AgentCard:
    """Card of the agents of a job, before their first update."""
    dataset, environment, target = job.dataset, job.dataset.environment, job.target
    quantiles = np.quantile(dataset.returns, np.linspace(0, 1, QUANTILES))
    return AgentCard(
        environment=environment,
        dataset_id=dataset.id,
        source=dataset.source,
        target_returns=(target, *(other for other in dataset.target_returns if other != target)),
        acting=job.config.acting,
        data_returns=tuple(quantiles.round(3).tolist()),
        reference=dataset.own_reference,
    )


def _run(job: Job, learner: Learner) -> Run:
    card = make_card(job)
    return Run(learner, card, job.folder, _check(job, card), job.callbacks, job.say)


def _check(job: Job, card: AgentCard) -> Evaluate | None:
    """The evaluation during training; None where there is none."""
    environment, reference = job.dataset.environment, job.dataset.reference
    if environment is None or not job.config.check_episodes:
        return None
    config = job.config
    rows = config.instances, config.processes
    protocol = Protocol(environment, config.check_episodes, CHECK_SEED, job.target, reference, *rows)

    def check(model: DecisionModel) -> Mapping[str, float]:
        episodes = evaluate(DecisionAgent(model, card, job.device), protocol)
        found = {"return": float(episodes.returns.mean())}
        if reference is not None:
            found["normalized_score"] = reference.score(found["return"])
        if episodes.success is not None:
            found["success_rate"] = float(episodes.success.mean())
        return found

    return check


def _warn_of_warmup(job: Job) -> None:
    training = job.config.training
    if training.updates < training.warmup:
        peak = learning_rate(training, training.updates)
        job.say(
            f"warning: the learning rate rises over {training.warmup} updates, and this run has {training.updates}, so "
            f"it ends at {peak:.1e} in place of {training.learning_rate:.1e}; pass a smaller --warmup"
        )


@contextmanager
def _claimed(config: RunConfig, say: Say) -> Iterator[Path]:
    """Yields the folder of a run, locked: the one to resume, the one given, or a new one under runs/.

    Raises:
        InvalidInput: the folder holds a run, and that is not to be resumed.
        Locked: something trains there now.
        CheckpointError: there is nothing to resume, or the folder cannot be made.
    """
    if config.resume is not None:
        if not config.resume.is_dir():
            raise CheckpointError(f"{config.resume} is missing; expected the folder of a run that was started before")
        with locked(config.resume, say):
            yield config.resume
        return
    if config.run is not None:
        with locked(config.run, say):
            _refuse_run(config.run)
            yield config.run
        return
    name = Path(config.env).name if Path(config.env).exists() else config.env.replace("/", "-")
    stamp = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with ExitStack() as stack:
        # Several runs may be started in the same second.
        others = (stamp.with_name(f"{stamp.name}-{number}") for number in itertools.count(2))
        for folder in itertools.chain([stamp], others):
            if not folder.exists():
                with suppress(Locked):
                    stack.enter_context(locked(folder, say, new=True))
                    break
        yield folder


def _refuse_run(folder: Path) -> None:
    """Refuses a folder that holds a run.

    Raises:
        InvalidInput: it does.
    """
    if checkpoints(folder) or any(checkpoints(seed) for seed in folder.glob("seed-*")):
        raise InvalidInput(
            f"{folder} holds a run already; go on with it (--resume {folder}, in Python resume=True), or give the new "
            "run another folder"
        )


def _describe(job: Job, learner: SingleLearner) -> str:
    """One line on the model, the device, and what "auto" stands for on it."""
    config, device = job.config.model, job.device
    parts: list[str] = [learner.precision]
    parts += [name for name, used in (("torch.compile", learner.compiled), ("CUDA graph", learner.cuda_graph)) if used]
    scan = ""
    if any(spec.name == "aaren" for spec in config.mixers):
        tokens = learner.sampler.longest_segment * config.tokens_per_step
        scan = f", {prefix_attention.choose_form(tokens, device)} scan"
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
    on = f"{job.processes.count} processes, each on {on}" if job.processes.count > 1 else on
    return (
        f"model: {config.blocks} blocks of {config.mixer}, {count_parameters(learner.model)} parameters, "
        f"{config.layout} tokens{scan}; training on {on}, {', '.join(parts)}; run folder {job.folder}"
    )
