"""Online fine-tuning: an agent rolls out, learns from what it did, and rolls out again.

After Online Decision Transformer (Zheng et al. 2022, arXiv 2202.05607, algorithm 1): a buffer of episodes that starts
with the best of the offline data, and whose oldest make room for new ones. The returns-to-go of new episodes are those
that they had, whatever was asked for (hindsight return relabelling). Unlike there, episodes come in rounds of several,
all of them are kept unless asked otherwise, and agents whose head predicts one action explore by noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.actor import Actor, Target
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.explorer import Explorer
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import ARRAYS, Dataset
from aaren_rl.envs.environments import make_vector
from aaren_rl.envs.evaluation import evaluate, result, write_result
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import describe, device_named, progress, say
from aaren_rl.experiments.report import Job, final_protocol
from aaren_rl.experiments.train import make_card, make_learner, save_config
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.lock import locked
from aaren_rl.training.log import RunLog
from aaren_rl.training.run import Run

EXPLORING_SEED = 1_000_000
"""First environment seed of exploration; evaluations have those from 0 and from 10,000 on."""


@dataclass(frozen=True)
class Options:
    """How an agent goes on learning in its environment.

    Raises:
        InvalidInput: a value is out of range.
    """

    steps: int = 100_000
    """Least number of steps in the environment, in whole episodes."""
    round_episodes: int = 10
    """Episodes between two rounds of updates, rolled out side by side."""
    round_updates: int = 300
    """Updates after each round of episodes."""
    buffer: int | None = None
    """Most episodes to learn from, the best of the offline data at first; by default all of the data, and all that
    follow."""
    keep: Literal["best", "newest"] = "best"
    """Episodes that stay when there are more: those with the highest returns, or the newest, as in Online Decision
    Transformer."""
    noise: float = 0.1
    """Standard deviation of the noise on actions, as a share of half their range, where the head predicts one action;
    other heads sample."""
    explore: float | None = None
    """Target return of exploration; by default that of evaluations."""
    learning_rate: float | None = None
    """Learning rate, constant; by default the run's peak."""
    seed: int = 0
    """Seed of environments and exploration."""
    episodes: int = 100
    """Episodes of the evaluations before and after."""
    out: Path | None = None
    """Folder of the new run; by default the old one's, with -online added."""

    def __post_init__(self) -> None:
        for name in ("steps", "round_episodes", "round_updates", "buffer", "episodes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; expected at least 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InvalidInput(f"learning_rate is {self.learning_rate}; expected a positive number")


def finetune(agent: Path, options: Options) -> dict[str, Any]:
    """Goes on training the agent of a run in its environment, and evaluates it before and after.

    Args:
        agent: folder of a run, or of its last agent.
        options: how.

    Returns:
        What result.json in the new folder holds: the result after, the one before under "before", and what was done.

    Raises:
        CheckpointError: the folder is no run's, or its checkpoints are gone.
        InvalidInput: the run cannot go on online.
    """
    run = _run_of(agent)
    config = run_config.load(run / CONFIG)
    run_config.refuse_files(config, None, str(run))
    _check(config, run)
    folder = options.out or run.with_name(f"{run.name}-online")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is there already; give another --out, or remove it")
    dataset = sources.load(config.env, config.source, run_config.reading(config), say)
    job = Job(config, dataset, folder, device_named(config.device), (), say, True)
    learner = make_learner(job)
    card = make_card(job)
    Run(learner, card, run, say=say).restore()
    learner.config = dataclasses.replace(
        learner.config,
        decay="none",
        warmup=0,
        learning_rate=options.learning_rate or config.training.learning_rate,
    )
    with locked(folder, say):
        save_config(job)
        return _Finetuning(job, learner, card, options).run()


class _Finetuning:
    """The rounds of a fine-tuning.

    Args:
        job: the run: its data, its environment, the new folder.
        learner: as the run left it.
        card: of the agents.
        options: how to go on.
    """

    def __init__(self, job: Job, learner: SingleLearner, card: AgentCard, options: Options) -> None:
        self.job, self.learner, self.card, self.options = job, learner, card, options
        protocol = final_protocol(job)
        if protocol is None:
            raise InvalidInput(f"{job.config.env} has no environment to act in; fine-tuning needs one")
        self.protocol = dataclasses.replace(protocol, episodes=options.episodes)
        self.target: Target = job.target if options.explore is None else options.explore
        offline = job.dataset.trajectories
        self.buffer = _described(_best_last(offline, options.buffer or offline.episodes), job.dataset)
        self.steps = self.rounds = 0

    def run(self) -> dict[str, Any]:
        job, options = self.job, self.options
        sampled = self.learner.model.head.noise_size > 0
        ways = "samples its actions" if sampled else f"adds noise of {options.noise:g} to its actions"
        job.say(f"exploring: the agent {ways}, target {self.target}; run folder {job.folder}")
        before = self._evaluated("before")
        with RunLog(job.folder) as log, progress(options.steps, "step", "online") as advance:
            while self.steps < options.steps:
                metrics = self._round(advance)
                log(self.learner.updates, metrics)
                self._save()
        after = self._evaluated("after")
        outcome = {**after, "before": before, "online_steps": self.steps, "online_rounds": self.rounds}
        outcome["options"] = {name: value for name, value in dataclasses.asdict(options).items() if name != "out"}
        job.say(f"agent:      {job.folder / 'last'}\nresult:     {write_result(job.folder, outcome)}")
        return outcome

    def _round(self, advance: Callable[[int], object]) -> dict[str, float]:
        """Rolls out, takes the episodes into the buffer, and updates; the round's metrics."""
        options = self.options
        envs = make_vector(self.protocol.environment, options.round_episodes)
        try:
            seed = EXPLORING_SEED * (options.seed + 1) + self.rounds * options.round_episodes
            found = roll_out(self._explorer(seed), envs, options.round_episodes, self.target, seed, record=True)
        finally:
            envs.close()
        self.rounds += 1
        self.steps += int(found.lengths.sum())
        self._take(found.recorded)
        losses = [float(self.learner.update()["loss"]) for _ in range(options.round_updates)]
        if not np.isfinite(losses).all():
            raise InvalidInput(f"the loss is not finite in round {self.rounds}; pass a smaller --learning-rate")
        advance(int(found.lengths.sum()))
        return {
            "train/loss": float(np.mean(losses)),
            "online/steps": float(self.steps),
            "online/return": float(found.returns.mean()),
            "online/buffer_return": float(self.buffer.returns.mean()),
        }

    def _explorer(self, seed: int) -> Actor:
        model, device = self.learner.acting, self.job.device
        if self.learner.model.head.noise_size > 0:
            return DecisionAgent(model, self.card, device, temperature=1.0, seed=seed)
        return Explorer(DecisionAgent(model, self.card, device), self.options.noise, seed)

    def _take(self, recorded: tuple[Any, ...]) -> None:
        spaces = self.job.dataset.observation_space, self.job.dataset.action_space
        new = Trajectories.from_episodes(recorded, *spaces)
        if self.buffer.final_observations is None:
            new = dataclasses.replace(new, final_observations=None)
        joined = Trajectories.join([self.buffer, new])
        most = self.options.buffer or joined.episodes
        if self.options.keep == "best":
            self.buffer = _best_last(joined, most)
        else:
            self.buffer = joined.select(np.arange(max(0, joined.episodes - most), joined.episodes))
        self.learner.take(self.buffer)

    def _evaluated(self, name: str) -> dict[str, Any]:
        agent = DecisionAgent(self.learner.acting, self.card, self.job.device)
        about = {"checkpoint": name, "source": self.job.dataset.source, "dataset": self.job.dataset.id}
        with progress(self.protocol.episodes, "episode", name) as advance:
            found = result(evaluate(agent, self.protocol, advance), self.protocol, **about)
        self.job.say(describe(name, found))
        return {**found, "updates": self.learner.updates}

    def _save(self) -> None:
        card = dataclasses.replace(self.card, updates=self.learner.updates)
        checkpoint.save_agent(self.job.folder / "last", self.learner.acting, card)


def _run_of(agent: Path) -> Path:
    """The folder of the run that an agent is from."""
    for folder in (agent, agent.parent):
        if (folder / CONFIG).exists():
            return folder
    raise CheckpointError(
        f"neither {agent} nor the folder above it has a {CONFIG}; fine-tuning goes on from a run's checkpoint: give "
        "runs/RUN or runs/RUN/last"
    )


def _check(config: RunConfig, run: Path) -> None:
    if config.env == ARRAYS:
        raise InvalidInput(f"{run} was trained on arrays, which are not saved, and fine-tuning begins with the data")
    if config.seeds > 1:
        raise InvalidInput(f"{run} has several seeds; give the folder of one, as {run / 'seed-0'}")
    if not config.model.return_to_go:
        raise InvalidInput("this agent was trained without returns, so nothing tells it better episodes from worse")


def _best_last(trajectories: Trajectories, most: int) -> Trajectories:
    """The episodes with the highest returns, at most so many, the best last."""
    return trajectories.select(np.argsort(trajectories.returns, kind="stable")[-most:])


def _described(trajectories: Trajectories, dataset: Dataset) -> Trajectories:
    """The trajectories with the spaces of the model."""
    return dataclasses.replace(
        trajectories, observation_space=dataset.observation_space, action_space=dataset.action_space
    )
