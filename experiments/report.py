"""The result of a training: evaluations of its agents, result.json, the learning curve, lines for the user."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.envs.evaluation import Protocol, evaluate, result, versions, write_result
from aaren_rl.envs.sources import Dataset, Say
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.console import describe, rounded
from aaren_rl.model import count_parameters
from aaren_rl.training.callbacks import Callback
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.log import draw_curve, log_hyperparameters
from aaren_rl.training.run import Trained


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, where.

    Attributes:
        config: the whole configuration.
        dataset: to train on.
        folder: of the run.
        device: to train on.
        callbacks: called after every update.
        say: takes lines on what is done.
        progress: shows progress bars.
    """

    config: RunConfig
    dataset: Dataset
    folder: Path
    device: torch.device
    callbacks: tuple[Callback, ...]
    say: Say
    progress: bool

    @property
    def target(self) -> float:
        """The return to ask for in evaluations."""
        return self.dataset.target_returns[0] if self.config.target is None else self.config.target


def report(job: Job, learner: SingleLearner, trained: Trained) -> dict[str, Any]:
    """Evaluates the agents of a finished run, writes result.json and the learning curve, and says what came out.

    Without an environment nothing is rolled out, and the result has no returns.

    Returns:
        What result.json holds.
    """
    config, environment = job.config, job.dataset.environment
    job.say(
        f"trained {learner.updates} updates in {trained.seconds:.0f} s; "
        + ("no environment to evaluate in" if environment is None else f"evaluating {config.episodes} episodes")
    )
    outcome = _evaluated(job, learner, "last", trained.last)
    if trained.best is not None and trained.best_update != learner.updates:
        outcome["best"] = _evaluated(job, learner, "best", trained.best)
    outcome["train_seconds"] = trained.seconds
    result_file = write_result(job.folder, outcome)
    returns = job.dataset.trajectories.returns
    title = f"{job.dataset.name} ({job.dataset.source}), {config.model.mixer}"
    curve = draw_curve(job.folder, title, float(returns.mean()))
    settings = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.training), "env": config.env}
    if environment is not None:
        log_hyperparameters(job.folder, settings, {"hparam/return": outcome["mean"]})
    job.say(f"agent:      {trained.last}" + (f" (best in training: {trained.best})" if "best" in outcome else ""))
    job.say(f"curve:      {curve}\ntensorboard --logdir {job.folder}\nresult:     {result_file}")
    job.say(_describe_data(job))
    for name, figures in (("last", outcome), ("best", outcome.get("best"))):
        if figures is not None and environment is not None:
            job.say(describe(name, figures))
    return {**outcome, "agents": [str(trained.last)]}


def summarise(job: Job, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds, of the last agents; written into the folder of all of them."""
    first, seed = outcomes[0], job.config.training.seed
    protocol = ("target", "environment", "reference", "source", "dataset", "updates", "acting")
    shared = (*protocol, "mixer", "parameters", "device", "versions")
    summary: dict[str, Any] = {"seeds": list(range(seed, seed + job.config.seeds))}
    if job.dataset.environment is not None:
        scores = [outcome["normalized_score"] for outcome in outcomes]
        means = [outcome["mean"] for outcome in outcomes]
        summary = {
            "normalized_score": statistics.mean(scores) if None not in scores else None,
            "normalized_scores": scores,
            "mean": statistics.mean(means),
            "means": means,
            **summary,
            "episodes": job.config.episodes,
        }
    summary |= {name: first[name] for name in shared}
    job.say(f"result:     {write_result(job.folder, summary)}")
    if job.dataset.environment is not None:
        job.say(_describe_seeds(summary))
    agents = [str(job.folder / f"seed-{number}" / "last") for number in summary["seeds"]]
    return {**summary, "agents": agents}


def _evaluated(job: Job, learner: SingleLearner, name: str, folder: Path) -> dict[str, Any]:
    config, dataset = job.config, job.dataset
    agent = DecisionAgent.load(folder, job.device)
    about = {
        "checkpoint": name,
        "source": dataset.source,
        "dataset": dataset.id,
        "updates": agent.card.updates,
        "mixer": config.model.mixer,
        "parameters": count_parameters(agent.model),
        "acting": str(agent.acting),
        "data_sha256": learner.data["sha256"],
        "device": job.device.type,
        "training": {
            "precision": learner.precision,
            "compiled": learner.compiled,
            "cuda_graph": learner.cuda_graph,
            "seed": config.training.seed,
        },
    }
    if dataset.environment is None:
        nothing = {"target": job.target, "environment": None, "reference": None, "episodes": 0}
        return {**nothing, **about, "versions": versions()}
    protocol = Protocol(
        dataset.environment, config.episodes, 0, job.target, dataset.reference, config.instances, config.processes
    )
    return result(evaluate(agent, protocol), protocol, **about)


def _describe_data(job: Job) -> str:
    returns, reference = job.dataset.trajectories.returns, job.dataset.reference
    score = f", score {reference.score(float(returns.mean())):.1f}" if reference else ""
    mean = f"{rounded(float(returns.mean()))} +- {rounded(float(returns.std()))}"
    return f"data:       mean return {mean} over {len(returns)} episodes{score}"


def _describe_seeds(summary: dict[str, Any]) -> str:
    means, scores = summary["means"], summary["normalized_scores"]
    spread = f"return {rounded(summary['mean'])} ({rounded(min(means))} to {rounded(max(means))})"
    if None not in scores:
        spread += f", normalised score {summary['normalized_score']:.1f} ({min(scores):.1f} to {max(scores):.1f})"
    return f"{len(means)} seeds:    {spread}"
