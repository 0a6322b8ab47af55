"""Online fine-tuning: an agent rolls out, learns from what it did, and rolls out again.

After Online Decision Transformer (Zheng et al. 2022, arXiv 2202.05607, algorithm 1): a buffer of episodes that starts
with the best of the offline data, and whose oldest make room for new ones. The returns-to-go of new episodes are those
that they had, whatever was asked for (hindsight return relabelling). Unlike there, episodes come in rounds of several,
and agents whose head predicts one action explore by noise and keep all episodes.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
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
from aaren_rl.data.context import Context
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import ARRAYS, Dataset
from aaren_rl.envs.evaluation import evaluate, result, write_result
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import describe, device_named, progress, say, target_in_words
from aaren_rl.experiments.report import Job, final_protocol
from aaren_rl.experiments.train import make_card, make_learner, save_config
from aaren_rl.training.learner import SingleLearner
from aaren_rl.training.lock import locked
from aaren_rl.training.log import RunLog
from aaren_rl.training.run import Interrupted, Run

EXPLORING_SEED = 1_000_000
"""First environment seed of exploration; evaluations have those from 0 and from 10,000 on."""


@dataclass(frozen=True)
class Options:
    """How an agent goes on learning in its environment.

    Raises:
        InvalidInput: a value is out of range.
    """

    steps: int = 100_000
    """Least number of steps in the environment, in whole rounds."""
    round_episodes: int = 10
    """Episodes between two rounds of updates, rolled out side by side."""
    round_updates: int = 300
    """Updates after each round of episodes."""
    buffer: int | None = None
    """Most episodes to learn from, the best of the offline data at first; by default 200 where the head samples, and
    all where it predicts one action."""
    keep: Literal["newest", "best"] = "newest"
    """Episodes that stay when there are more: the newest, or those with the highest returns."""
    noise: float = 0.1
    """Standard deviation of the noise on actions, as a share of half their range, where the head predicts one action;
    other heads sample."""
    explore: float | None = None
    """Target return of exploration; by default that of evaluations."""
    learning_rate: float | None = None
    """Learning rate, constant; by default the run's peak."""
    seed: int = 0
    """Seed of environments and exploration, from 0 on."""
    episodes: int = 100
    """Episodes of the evaluations before and after."""
    out: Path | None = None
    """Folder of the new run; by default the old one's, with -online added."""
    imports: tuple[str, ...] = ()
    """Packages that register environments, to be imported first."""

    def __post_init__(self) -> None:
        for name in ("steps", "round_episodes", "round_updates", "buffer", "episodes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; expected at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < np.inf:
            raise InvalidInput(f"learning_rate is {self.learning_rate}; expected a positive number")
        if not 0 <= self.noise < np.inf:
            raise InvalidInput(f"noise is {self.noise}; expected a number from 0 on")
        if self.explore is not None and not np.isfinite(self.explore):
            raise InvalidInput(f"explore is {self.explore}; expected a return")
        if self.seed < 0:
            raise InvalidInput(f"seed is {self.seed}; expected at least 0")


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
        Interrupted: Ctrl-C; the agent of the last whole round is saved.
        EpisodeFailed: the environment failed; likewise.
    """
    run = _run_of(agent.resolve())
    config = dataclasses.replace(run_config.load(run / CONFIG), imports=options.imports)
    run_config.refuse_files(config, None, str(run))
    _check(config, run)
    if not (run / "checkpoints").is_dir() and run.name.endswith("-online"):
        raise InvalidInput(
            f"{run} is a fine-tuning, which keeps no checkpoint; give the run that it began with, and more --steps"
        )
    folder = options.out or run.with_name(f"{run.name}-online")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is there already; give another --out, or remove it")
    device = device_named(config.device)
    reading = run_config.reading(config, run_config.keeping(config, run.parent, device, progress=True))
    dataset = sources.load(config.env, config.source, reading, _say_data)
    job = Job(config, dataset, folder, device, (), say, True)
    learner = make_learner(job)
    card = make_card(job)
    Run(learner, card, run, say=say).restore()
    say(f"going on from update {learner.updates} of {run}")
    rate = options.learning_rate or config.training.learning_rate
    learner.config = dataclasses.replace(learner.config, decay="none", warmup=0, learning_rate=rate)
    # What does not fit is found here, before anything is written.
    finetuning = _Finetuning(job, learner, card, options)
    with locked(folder, say):
        save_config(dataclasses.replace(job, config=dataclasses.replace(config, training=learner.config)))
        return finetuning.run()


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
        self.samples = learner.model.head.noise_size > 0
        self.most = options.buffer or (200 if self.samples else None)
        self.buffer = _described(_best_last(job.dataset.trajectories, self.most), job.dataset)
        self.steps = self.rounds = 0
        self._check_exploration()

    def _check_exploration(self) -> None:
        space, head = self.job.dataset.action_space, self.job.config.model.head
        vectors = isinstance(space, Box) or any(isinstance(part.space, Box) for part in space.parts())
        if vectors and not isinstance(space, Box) and head != "gaussian":
            raise InvalidInput(
                "some parts of the actions are vectors, which this head cannot sample; train with --head gaussian"
            )

    def run(self) -> dict[str, Any]:
        """Explores and learns, between an evaluation before and one after; see `finetune`."""
        job, options = self.job, self.options
        way = "samples its actions" if self.samples else f"adds noise of {options.noise:g} to its actions"
        kept = "all episodes" if self.most is None else f"the {options.keep} {self.most} episodes"
        job.say(f"exploring: the agent {way}, target {target_in_words(self.target)}, and learns from {kept}")
        before: dict[str, Any] | None = None
        try:
            before = self._evaluated("before")
            with RunLog(job.folder) as log, progress(options.steps, "step", "online") as advance:
                while self.steps < options.steps:
                    metrics = self._round(advance)
                    log(self.learner.updates, metrics)
                    self._save()
            after = self._evaluated("after")
        except KeyboardInterrupt:
            raise Interrupted(self._stopped(before)) from None
        outcome = {**after, "before": before, **self._about()}
        job.say(f"agent:      {job.folder / 'last'}\nresult:     {write_result(job.folder, outcome)}")
        return outcome

    def _about(self) -> dict[str, Any]:
        """What was done, with the values that stand behind the defaults."""
        options = {name: value for name, value in dataclasses.asdict(self.options).items() if name != "out"}
        chosen = {"buffer": self.most, "explore": self.target, "learning_rate": self.learner.config.learning_rate}
        return {"online_steps": self.steps, "online_rounds": self.rounds, "options": {**options, **chosen}}

    def _stopped(self, before: dict[str, Any] | None) -> str:
        """Cleans up after Ctrl-C, and says what is kept."""
        folder = self.job.folder
        if not (folder / "last").exists():
            shutil.rmtree(folder)
            return f"stopped before the first round was whole; nothing was learned, and {folder} is removed"
        kept = f"the agent after {self.rounds} rounds ({self.steps} steps) is {folder / 'last'}"
        write_result(folder, {"before": before, **self._about(), "stopped": True})
        return f"stopped; {kept}, evaluate it with scripts/evaluate.py; a fine-tuning cannot be resumed"

    def _round(self, advance: Callable[[int], object]) -> dict[str, float]:
        """Rolls out, takes the episodes into the buffer, and updates; the round's metrics."""
        options = self.options
        count = options.round_episodes
        seed = EXPLORING_SEED * (options.seed + 1) + self.rounds * count
        protocol = dataclasses.replace(
            self.protocol, episodes=count, instances=count, seed=seed, target_return=self.target
        )
        found = evaluate(self._explorer(seed), protocol, record=True)
        self._take(found.recorded)
        losses = [float(self.learner.update()["loss"]) for _ in range(options.round_updates)]
        if not np.isfinite(losses).all():
            raise InvalidInput(f"the loss is not finite in round {self.rounds + 1}; pass a smaller --learning-rate")
        # Counted once it is whole.
        self.rounds += 1
        self.steps += int(found.lengths.sum())
        advance(int(found.lengths.sum()))
        return {
            "train/loss": float(np.mean(losses)),
            "online/steps": float(self.steps),
            "online/return": float(found.returns.mean()),
            "online/buffer_return": float(self.buffer.returns.mean()),
        }

    def _agent(self, **options: Any) -> DecisionAgent:
        """An agent of the weights as they stand; a copy, since an agent's model leaves its training mode."""
        return DecisionAgent(copy.deepcopy(self.learner.acting), self.card, self.job.device, **options)

    def _explorer(self, seed: int) -> Actor:
        if self.samples:
            return self._agent(temperature=1.0, seed=seed)
        return Explorer(self._agent(), self.options.noise, seed)

    def _take(self, recorded: tuple[Any, ...]) -> None:
        spaces = self.job.dataset.observation_space, self.job.dataset.action_space
        new = Trajectories.from_episodes(recorded, *spaces)
        if self.buffer.final_observations is None:
            new = dataclasses.replace(new, final_observations=None)
        joined = Trajectories.join([self.buffer, new])
        if self.options.keep == "best":
            self.buffer = _best_last(joined, self.most)
        else:
            self.buffer = joined.select(
                np.arange(max(0, joined.episodes - (self.most or joined.episodes)), joined.episodes)
            )
        self.learner.take(self.buffer)

    def _evaluated(self, name: str) -> dict[str, Any]:
        about = {"checkpoint": name, "source": self.job.dataset.source, "dataset": self.job.dataset.id}
        with progress(self.protocol.episodes, "episode", name) as advance:
            found = result(evaluate(self._agent(), self.protocol, advance), self.protocol, **about)
        self.job.say(describe(name, found))
        return {**found, "updates": self.learner.updates}

    def _save(self) -> None:
        card = dataclasses.replace(self.card, updates=self.learner.updates)
        checkpoint.save_agent(self.job.folder / "last", self.learner.acting, card)


def _say_data(line: str) -> None:
    """Says what loading says, less the hint at an option of training."""
    say(line.removesuffix("; --target asks for another"))


def _run_of(agent: Path) -> Path:
    """The folder of the run that an agent is from."""
    if (agent / CONFIG).exists():
        return agent
    if agent.name == "last" and (agent.parent / CONFIG).exists():
        return agent.parent
    raise CheckpointError(
        f"{agent} is neither a run, with its {CONFIG}, nor the last agent in one; fine-tuning goes on from a run's "
        "last checkpoint, and other agents have no optimiser's state: give runs/RUN or runs/RUN/last"
    )


def _result_of(run: Path) -> dict[str, Any]:
    """The run's result; empty where it has none."""
    return checkpoint.read_json(run / "result.json") if (run / "result.json").exists() else {}


def _check(config: RunConfig, run: Path) -> None:
    """Refuses runs that cannot go on with other data."""
    if config.env == ARRAYS:
        raise InvalidInput(f"{run} was trained on arrays, which are not saved, and fine-tuning begins with the data")
    if config.seeds > 1:
        raise InvalidInput(
            f"{run} has several seeds; give the folder of one, as {run / 'seed-0'}, if they were trained one after "
            "another, or train one alone"
        )
    if not config.model.return_to_go:
        raise InvalidInput("this agent was trained without returns, so nothing tells it better episodes from worse")
    if config.goals != "data":
        raise InvalidInput(
            "this agent was trained with hindsight goals, which fine-tuning does not give; train without"
        )
    if Context.parse(config.training.context).mode == "carry":
        raise InvalidInput(
            f"this agent was trained with --context {config.training.context}, which carries a state through its data; "
            "fine-tuning needs windows or whole episodes"
        )


def _best_last(trajectories: Trajectories, most: int | None) -> Trajectories:
    """The episodes with the highest returns, at most so many, the best last."""
    return trajectories.select(np.argsort(trajectories.returns, kind="stable")[-(most or trajectories.episodes) :])


def _described(trajectories: Trajectories, dataset: Dataset) -> Trajectories:
    """The trajectories with the spaces of the model."""
    return dataclasses.replace(
        trajectories, observation_space=dataset.observation_space, action_space=dataset.action_space
    )
