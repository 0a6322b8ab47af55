"""A training run from its configuration to its result."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aaren_rl import checkpoint
from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.sampler import Context
from aaren_rl.envs import sources
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.evaluation import Protocol, evaluate, result, write_result
from aaren_rl.envs.sources import Dataset
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import describe, device_named, rounded, say
from aaren_rl.model import DecisionModel, Scaling, count_parameters
from aaren_rl.ops import prefix_attention as scan
from aaren_rl.training.ensemble import train_together
from aaren_rl.training.log import draw_curve, log_hyperparameters
from aaren_rl.training.run import Evaluation, Interrupted, Trained, Trainer, checkpoints

QUANTILES = 11
"""Number of quantiles of the data's returns in an agent's card."""

CHECK_SEED = 10_000
"""First seed of evaluations during training, apart from the seeds of the final one."""


def train(config: RunConfig) -> dict[str, Any]:
    """Trains, evaluates, writes result.json into the run's folder, and returns its content."""
    device = device_named(config.device)
    folder = _run_folder(config)
    together = _one_batch(config, device)
    dataset = sources.load(config.env, config.source, config.env_id, say)
    if config.seeds == 1:
        run = _start(config, dataset, folder, device)
        return _report(run, run.trainer.run())
    if together and config.training.compile == "yes":
        raise InvalidInput("--compile yes does not go with --seeds on a GPU, where they are one batch; leave it out")
    _save_config(config, dataset, folder)
    configs = []
    for seed in range(config.training.seed, config.training.seed + config.seeds):
        own = folder / f"seed-{seed}"
        resume = own if config.resume is not None and checkpoints(own) else None
        training = dataclasses.replace(config.training, seed=seed)
        if together:
            # Several models as one batch are not compiled.
            training = dataclasses.replace(training, compile="no")
        configs.append(dataclasses.replace(config, seeds=1, training=training, run=own, resume=resume))
    try:
        outcomes = _run_all(configs, dataset, device, together)
    except Interrupted as error:
        raise Interrupted(f"stopped, all that was trained is saved; go on with --resume {folder}") from error
    return _summary(config, folder, outcomes)


def _one_batch(config: RunConfig, device: torch.device) -> bool:
    """True if several seeds train as one batch, which is no faster on a CPU."""
    carries = Context.parse(config.training.context).kind == "carry"
    return device.type == "cuda" and config.model.recordable and not carries


def _run_all(configs: list[RunConfig], dataset: Dataset, device: torch.device, together: bool) -> list[dict[str, Any]]:
    if together:
        runs = [_start(one, dataset, _folder(one), device) for one in configs]
        if len({run.trainer.update for run in runs}) == 1:
            say(f"{len(configs)} seeds as one batch")
            trained = train_together([run.trainer for run in runs])
            return [_report(run, one) for run, one in zip(runs, trained, strict=True)]
        say(f"{len(configs)} seeds, one after another, since they stopped at different updates")
        return [_report(run, run.trainer.run()) for run in runs]
    why = "on a CPU" if device.type == "cpu" else f"with {configs[0].model.mixer} on {configs[0].training.context}"
    say(f"{len(configs)} seeds, one after another, {why}")
    outcomes = []
    for config in configs:
        outcome = _outcome_of(config)
        if outcome is None:
            run = _start(config, dataset, _folder(config), device)
            outcome = _report(run, run.trainer.run())
        outcomes.append(outcome)
    return outcomes


def _outcome_of(config: RunConfig) -> dict[str, Any] | None:
    """Result of a seed that finished before the others were interrupted."""
    file = _folder(config) / "result.json"
    if config.resume is None or not file.exists():
        return None
    outcome = checkpoint.read_json(file)
    if outcome.get("updates") != config.training.updates or outcome.get("episodes") != config.episodes:
        return None
    say(f"{_folder(config)} is finished, its result stands")
    return outcome


@dataclass(frozen=True)
class _Run:
    """A run that is ready to train."""

    config: RunConfig
    dataset: Dataset
    folder: Path
    device: torch.device
    trainer: Trainer
    protocol: Protocol


def _start(config: RunConfig, dataset: Dataset, folder: Path, device: torch.device) -> _Run:
    model = _new_model(config, dataset)
    target = dataset.target_returns[0] if config.target is None else config.target
    card = AgentCard(
        env_id=dataset.environment.id,
        env_kwargs=dataset.environment.kwargs,
        dataset_id=dataset.id,
        source=dataset.source,
        target_returns=(target, *(other for other in dataset.target_returns if other != target)),
        acting=config.acting,
        data_returns=tuple(np.quantile(dataset.trajectories.returns, np.linspace(0, 1, QUANTILES)).round(3).tolist()),
    )
    protocol = Protocol(dataset.environment, max(1, config.check_episodes), CHECK_SEED, target, dataset.reference)

    def check(checked: DecisionModel) -> Evaluation:
        mean = float(evaluate(DecisionAgent(checked, card, device), protocol).returns.mean())
        return Evaluation(mean, dataset.reference.score(mean) if dataset.reference else None)

    trainer = Trainer(
        model, dataset.trajectories, config.training, card, folder, device, check if config.check_episodes else None
    )
    if config.resume is not None:
        trainer.restore()
        say(f"resuming {folder} after update {trainer.update}")
    _save_config(config, dataset, folder)
    means = [name for name, used in (("torch.compile", trainer.compiled), ("CUDA graphs", trainer.captured)) if used]
    say(
        f"model: {config.model.blocks} blocks of {config.model.mixer}, {count_parameters(model)} parameters, "
        f"{config.model.layout} tokens{_scan_form(trainer)}; training on {_describe(device)}, "
        f"{', '.join([trainer.precision, *means])}; run folder {folder}"
    )
    return _Run(config, dataset, folder, device, trainer, protocol)


def _save_config(config: RunConfig, dataset: Dataset, folder: Path) -> None:
    if config.resume is None:
        folder.mkdir(parents=True, exist_ok=config.run is not None)
    # Resuming must find the same data, whatever else has come to this machine in between.
    source = dataset.source if config.env in catalogue() else config.source
    run_config.save(dataclasses.replace(config, source=source, run=folder, resume=None), folder / CONFIG)


def _report(run: _Run, trained: Trained) -> dict[str, Any]:
    config, dataset, folder, device = run.config, run.dataset, run.folder, run.device
    say(f"trained {config.training.updates} updates in {trained.seconds:.0f} s; evaluating {config.episodes} episodes")
    protocol = dataclasses.replace(run.protocol, episodes=config.episodes, seed=0)

    def evaluated(name: str, agent_folder: Path) -> dict[str, Any]:
        agent = DecisionAgent.load(agent_folder, device)
        about = {
            "checkpoint": name,
            "source": dataset.source,
            "dataset": dataset.id,
            "updates": agent.card.updates,
            "mixer": config.model.mixer,
            "parameters": count_parameters(agent.model),
            "acting": str(agent.acting),
            "data_sha256": run.trainer.data["sha256"],
            "device": device.type,
            "training": {
                "precision": run.trainer.precision,
                "compiled": run.trainer.compiled,
                "recorded": run.trainer.captured,
                "seed": config.training.seed,
            },
        }
        return result(evaluate(agent, protocol), protocol, **about)

    outcome = evaluated("last", trained.last)
    if trained.best is not None and trained.best_update != config.training.updates:
        outcome["best"] = evaluated("best", trained.best)
    outcome["train_seconds"] = trained.seconds
    result_file = write_result(folder, outcome)
    returns = dataset.trajectories.returns
    curve = draw_curve(folder, f"{config.env} ({dataset.source}), {config.model.mixer}", float(returns.mean()))
    settings = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.training), "env": config.env}
    log_hyperparameters(folder, settings, {"hparam/return": outcome["mean"]})
    say(f"agent:      {trained.last}" + (f" (best in training: {trained.best})" if "best" in outcome else ""))
    say(f"curve:      {curve}\ntensorboard --logdir {folder}\nresult:     {result_file}")
    data_score = f", score {dataset.reference.score(float(returns.mean())):.1f}" if dataset.reference else ""
    data_return = f"{rounded(float(returns.mean()))} +- {rounded(float(returns.std()))}"
    say(f"data:       mean return {data_return} over {len(returns)} episodes{data_score}")
    for name, figures in (("last", outcome), ("best", outcome.get("best"))):
        if figures is not None:
            say(describe(name, figures))
    return outcome


def _summary(config: RunConfig, folder: Path, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes and returns the mean and the spread over the seeds of the last agents."""
    scores = [outcome["normalized_score"] for outcome in outcomes]
    means = [outcome["mean"] for outcome in outcomes]
    protocol = ("target", "environment", "reference", "source", "dataset", "updates", "acting")
    agent = ("mixer", "parameters", "device", "versions")
    summary = {
        "normalized_score": statistics.mean(scores) if None not in scores else None,
        "normalized_scores": scores,
        "mean": statistics.mean(means),
        "means": means,
        "seeds": list(range(config.training.seed, config.training.seed + config.seeds)),
        "episodes": config.episodes,
        **{name: outcomes[0][name] for name in (*protocol, *agent)},
    }
    say(f"result:     {write_result(folder, summary)}")
    spread = f"return {rounded(summary['mean'])} ({rounded(min(means))} to {rounded(max(means))})"
    if None not in scores:
        spread += f", normalised score {summary['normalized_score']:.1f} ({min(scores):.1f} to {max(scores):.1f})"
    say(f"{config.seeds} seeds:    {spread}")
    return summary


def _new_model(config: RunConfig, dataset: Dataset) -> DecisionModel:
    torch.manual_seed(config.training.seed)
    mean, std = dataset.trajectories.observation_statistics()
    largest = float(np.abs(dataset.trajectories.rewards).max())
    return_scale = dataset.return_scale if config.return_scale is None else config.return_scale
    scaling = Scaling(mean, std, dataset.action_low, dataset.action_high, return_scale, largest or 1.0)
    return DecisionModel(config.model, scaling)


def _folder(config: RunConfig) -> Path:
    """Folder of one of several seeds."""
    assert config.run is not None
    return config.run


def _run_folder(config: RunConfig) -> Path:
    if config.resume is not None:
        return config.resume
    name = Path(config.env).name if Path(config.env).exists() else config.env.replace("/", "-")
    stamp = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    # Several runs may be started in the same second.
    folder = config.run or (stamp.with_name(f"{stamp.name}-{os.getpid()}") if stamp.exists() else stamp)
    if checkpoints(folder) or any(checkpoints(seed) for seed in folder.glob("seed-*")):
        raise InvalidInput(f"{folder} holds a run already; pass --resume {folder} to go on with it, or another --run")
    return folder


def _scan_form(trainer: Trainer) -> str:
    if "aaren" not in trainer.model.config.mixers:
        return ""
    tokens = trainer.sampler.longest_segment * trainer.model.tokens_per_step
    return f", {scan.choose_form(tokens, trainer.device)} scan"


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
