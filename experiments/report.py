"""The result of a training: evaluations of its agents, result.json, the learning curve, lines for the user."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aaren_rl.actor import AUTO, Target
from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import weights_digest
from aaren_rl.envs.dataset import Dataset, Say
from aaren_rl.envs.evaluation import Protocol, evaluate, result, versions, write_result
from aaren_rl.errors import AarenError
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.console import describe, rounded
from aaren_rl.model import count_parameters
from aaren_rl.training.callbacks import Callback
from aaren_rl.training.evaluations import failure
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.log import draw_curve, log_hyperparameters
from aaren_rl.training.processes import ALONE, Processes
from aaren_rl.training.run import Interrupted, Trained


class EvaluationFailed(AarenError):
    """The final evaluation failed; the training before it is done and saved."""


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
        processes: that train together.
    """

    config: RunConfig
    dataset: Dataset
    folder: Path
    device: torch.device
    callbacks: tuple[Callback, ...]
    say: Say
    progress: bool
    processes: Processes = ALONE

    @property
    def target(self) -> Target:
        """The return to ask for in evaluations."""
        if self.config.target is not None:
            return self.config.target
        return AUTO if self.config.model.reach else self.dataset.target_returns[0]


def report(job: Job, learner: SingleLearner, trained: Trained) -> dict[str, Any]:
    """Evaluates the agents of a finished run, writes result.json and the learning curve, and says what came out.

    Without an environment nothing is rolled out, and the result has no returns. Of an evaluation that fails the result
    has the failure in place of returns.

    Returns:
        What result.json holds, and the folder of the agent.

    Raises:
        Interrupted: Ctrl-C; the agents are saved.
    """
    config, environment = job.config, job.dataset.environment
    job.say(
        f"trained {learner.updates} updates in {trained.seconds:.0f} s; "
        + ("no environment to evaluate in" if environment is None else f"evaluating {config.episodes} episodes")
    )
    try:
        outcome = _evaluated(job, learner, "last", trained.last)
        if trained.best is not None and trained.best_update != learner.updates:
            outcome["best"] = _evaluated(job, learner, "best", trained.best)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped in the final evaluation, the training is saved; evaluate its agent with scripts/evaluate.py "
            f"{trained.last}, or go on with --resume {job.folder}"
        ) from None
    outcome["train_seconds"] = trained.seconds
    if environment is not None:
        outcome["failed_evaluations"] = list(trained.failed_evaluations)
    result_file = write_result(job.folder, outcome)
    returns = job.dataset.trajectories.returns
    title = f"{job.dataset.name} ({job.dataset.source}), {config.model.mixer}"
    curve = draw_curve(job.folder, title, float(returns.mean()))
    if "mean" in outcome:
        settings = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.training), "env": config.env}
        log_hyperparameters(job.folder, settings, {"hparam/return": outcome["mean"]})
    job.say(f"agent:      {trained.last}" + (f" (best in training: {trained.best})" if "best" in outcome else ""))
    job.say(f"curve:      {curve}\ntensorboard --logdir {job.folder}\nresult:     {result_file}")
    _say_results(job, outcome)
    return {**outcome, "agents": [str(trained.last)]}


def summarise(job: Job, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds, of the last agents; written into the folder of all of them."""
    first, seed = outcomes[0], job.config.training.seed
    shared = (
        "data_episodes",
        "collected_in",
        "source",
        "dataset",
        "updates",
        "acting",
        "data_sha256",
        "mixer",
        "parameters",
        "device",
    )
    summary: dict[str, Any] = {"seeds": list(range(seed, seed + job.config.seeds))}
    failures = [f"seed {number}: {each['failure']}" for number, each in enumerate(outcomes, seed) if "failure" in each]
    if failures:
        # A mean over the seeds that are left would be taken for that of all.
        summary["failure"] = "; ".join(failures)
    elif job.dataset.environment is not None:
        scores = [outcome["normalized_score"] for outcome in outcomes]
        means = [outcome["mean"] for outcome in outcomes]
        summary = {
            "normalized_score": statistics.mean(scores) if None not in scores else None,
            "normalized_scores": scores,
            "mean": statistics.mean(means),
            "means": means,
            "success_rates": [outcome["success_rate"] for outcome in outcomes],
            **summary,
        }
    conditions = final_protocol(job)
    # Seeds of the trainings, not those of the environments.
    played = {} if conditions is None else conditions.to_json() | {"seeds": summary["seeds"]}
    summary |= played | {name: first[name] for name in shared}
    job.say(f"result:     {write_result(job.folder, summary)}")
    if "means" in summary:
        job.say(_describe_seeds(summary))
    agents = [str(job.folder / f"seed-{number}" / "last") for number in summary["seeds"]]
    return {**summary, "agents": agents}


def final_protocol(job: Job) -> Protocol | None:
    """How the agents of a finished run are evaluated; None without an environment."""
    config, dataset = job.config, job.dataset
    if dataset.environment is None:
        return None
    rows = config.instances, config.processes
    about = dataset.reference, *rows, dataset.reference_reason
    return Protocol(dataset.environment, config.episodes, 0, job.target, *about)


def _evaluated(job: Job, learner: SingleLearner, name: str, folder: Path) -> dict[str, Any]:
    """The result of an agent; of one that could not be evaluated the failure, which must not cost the rest."""
    config, dataset = job.config, job.dataset
    about = {
        "checkpoint": name,
        "source": dataset.source,
        "dataset": dataset.id,
        "data_episodes": dataset.trajectories.episodes,
        "collected_in": None if dataset.collected_in is None else str(dataset.collected_in),
        "mixer": config.model.mixer,
        "parameters": count_parameters(learner.model),
        "acting": config.acting,
        "data_sha256": learner.data["sha256"],
        "device": job.device.type,
        "training": {
            "precision": learner.precision,
            "compiled": learner.compiled,
            "cuda_graph": learner.cuda_graph,
            "seed": config.training.seed,
        },
    }
    protocol = final_protocol(job)
    nothing = {"target": job.target, "environment": None, "reference": None, "episodes": 0}
    try:
        agent = DecisionAgent.load(folder, job.device)
        about |= {"updates": agent.card.updates, "acting": str(agent.acting), "weights_sha256": weights_digest(folder)}
        if protocol is None:
            return {**nothing, **about, "versions": versions()}
        return result(evaluate(agent, protocol), protocol, **about)
    # Whatever an environment raises.
    except Exception as error:
        job.say(f"warning: the final evaluation of {folder} failed: {failure(error)}")
        failed = {**nothing, **({} if protocol is None else protocol.to_json()), "episodes": 0}
        return {"updates": learner.updates, **failed, **about, "failure": failure(error), "versions": versions()}


def _say_results(job: Job, outcome: dict[str, Any]) -> None:
    job.say(_describe_data(job))
    if failed := outcome.get("failed_evaluations"):
        job.say(f"failed:     evaluations in training after updates {', '.join(str(one['update']) for one in failed)}")
    for name, figures in (("last", outcome), ("best", outcome.get("best"))):
        if figures is not None and "mean" in figures:
            job.say(describe(name, figures))


def _describe_data(job: Job) -> str:
    returns, reference = job.dataset.trajectories.returns.astype(np.float64), job.dataset.reference
    score = f", score {reference.score(float(returns.mean())):.1f}" if reference else ""
    mean = f"{rounded(float(returns.mean()))} +- {rounded(float(returns.std()))}"
    return f"data:       mean return {mean} over {len(returns)} episodes{score}"


def _describe_seeds(summary: dict[str, Any]) -> str:
    means, scores = summary["means"], summary["normalized_scores"]
    spread = f"return {rounded(summary['mean'])} ({rounded(min(means))} to {rounded(max(means))})"
    if None not in scores:
        spread += f", normalised score {summary['normalized_score']:.1f} ({min(scores):.1f} to {max(scores):.1f})"
    return f"{len(means)} seeds:    {spread}"
