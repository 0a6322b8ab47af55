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
from pathlib import Path
from typing import Any

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.actor import Actor, Target
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.explorer import Explorer
from aaren_rl.checkpoint import shortened
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.envs.dataset import Dataset
from aaren_rl.envs.environments import import_packages
from aaren_rl.envs.evaluation import evaluate, result, write_result
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import finetuning_checkpoint, finetuning_options
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import describe, device_named, progress, say, target_in_words
from aaren_rl.experiments.finetuning_options import Options
from aaren_rl.experiments.online_buffer import Buffer
from aaren_rl.experiments.report import Job, final_protocol
from aaren_rl.experiments.train import make_card, make_learner, save_config
from aaren_rl.model.weights_check import first_not_finite
from aaren_rl.training.lock import locked
from aaren_rl.training.log import RunLog
from aaren_rl.training.run import Interrupted, Run
from aaren_rl.training.signals import Stopped, StopSignal, stop_signal

EXPLORING_SEED = 1_000_000
"""First environment seed of exploration; evaluations have those from 0 and from 10,000 on."""


def finetune(agent: Path | None, options: Options) -> dict[str, Any]:
    """Goes on training the agent of a run in its environment, and evaluates it before and after.

    Args:
        agent: folder of a run, or of its last agent; None to go on with the fine-tuning of `options.resume`.
        options: how. For a resume they are taken as they are; `finetuning_options.read` gives the saved ones.

    Returns:
        What result.json in the folder holds: the result after, the one before under "before", and what was done.

    Raises:
        CheckpointError: the folder is no run's or no fine-tuning's, or its checkpoints are gone or damaged.
        InvalidInput: the run cannot go on online, or the fine-tuning is finished.
        Interrupted: Ctrl-C or SIGTERM; the last whole round is saved, and `options.resume` goes on from it.
        EpisodeFailed: the environment failed; likewise.
    """
    import_packages(options.imports)
    if agent is None and options.resume is None:
        raise InvalidInput("give the folder of a run, as runs/RUN, or --resume with the folder of a fine-tuning")
    if options.resume is None:
        assert agent is not None
        return _begin(finetuning_options.run_of(agent.resolve()), options)
    if agent is not None or options.out is not None:
        raise InvalidInput("--resume goes on in its own folder, from its own checkpoint; leave out the agent and --out")
    return _resume(options.resume, options)


def _begin(run: Path, options: Options) -> dict[str, Any]:
    """Fine-tunes from the last checkpoint of a run, in a new folder."""
    config = run_config.load(run / CONFIG)
    finetuning_options.check_run(config, run)
    folder = options.out or run.with_name(f"{run.name}-online")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(
            f"{folder} is there already; go on with it (--resume {folder}), give another --out, or remove it"
        )
    # What does not fit is found here, before anything is written.
    finetuning = _prepared(config, folder, options, run)
    learner = finetuning.learner
    Run(learner, finetuning.card, run, say=say).restore()
    say(f"going on from update {learner.updates} of {run}")
    with locked(folder, say):
        finetuning.save_config()
        return finetuning.run()


def _resume(folder: Path, options: Options) -> dict[str, Any]:
    """Goes on with a fine-tuning, after its last whole round."""
    config, _ = finetuning_options.read(folder)
    with locked(folder, say):
        if run_config.was_edited(folder / CONFIG):
            say(f"{folder / CONFIG} was edited since it was written; its settings count as they stand now")
        # Before the data are loaded, which takes longer.
        saved, tensors = finetuning_checkpoint.read(folder)
        _refuse_finished(folder, saved["steps"], options)
        finetuning = _prepared(config, folder, options, folder)
        finetuning.restore(saved, tensors)
        # Of earlier rounds than the agents will be.
        (folder / "result.json").unlink(missing_ok=True)
        say(f"going on after round {finetuning.rounds} ({finetuning.steps} steps) of {folder}")
        finetuning.save_config()
        # It is one round behind, or missing, if the process died between the two.
        finetuning.save_agent()
        return finetuning.run()


def _prepared(config: RunConfig, folder: Path, options: Options, source: Path) -> _Finetuning:
    """A fine-tuning before its first round, with the model untrained.

    Args:
        config: of the run that it begins with.
        folder: of the fine-tuning.
        options: how to go on.
        source: folder of the configuration, for messages.
    """
    run_config.refuse_files(config, None, str(source))
    rate = options.learning_rate or config.training.learning_rate
    training = dataclasses.replace(config.training, decay="none", warmup=0, learning_rate=rate)
    config = dataclasses.replace(config, training=training, imports=options.imports)
    device = device_named(config.device)
    reading = run_config.reading(config, run_config.keeping(config, folder.absolute().parent, device, progress=True))
    dataset = sources.load(config.env, config.source, reading, _say_data)
    return _Finetuning(Job(config, dataset, folder, device, (), say, True), options)


def _refuse_finished(folder: Path, steps: int, options: Options) -> None:
    """Refuses a fine-tuning with nothing left to do; one whose evaluation is missing goes on."""
    found = checkpoint.read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    if steps >= options.steps and "mean" in found and found.get("online_steps") == steps:
        raise InvalidInput(
            f"{folder} is finished: all of {steps} steps are played and evaluated (result.json); pass more --steps"
        )


class _Finetuning:
    """The rounds of a fine-tuning.

    Args:
        job: the run: its data, its environment, the folder.
        options: how to go on.
    """

    def __init__(self, job: Job, options: Options) -> None:
        self.job, self.options = job, options
        protocol = final_protocol(job)
        if protocol is None:
            raise InvalidInput(f"{job.config.env} has no environment to act in; fine-tuning needs one")
        self.learner, self.card = make_learner(job), make_card(job)
        self.offline = self.learner.data["sha256"]
        self.protocol = dataclasses.replace(protocol, episodes=options.episodes)
        self.target: Target = job.target if options.explore is None else options.explore
        self.samples = self.learner.model.head.noise_size > 0
        self.most = options.buffer or (200 if self.samples else None)
        self.buffer = Buffer(_described(job.dataset), self.most, options.keep)
        self.steps = self.rounds = 0
        self.before: dict[str, Any] | None = None
        self._check_exploration()

    def save_config(self) -> None:
        """Writes all settings into the folder."""
        save_config(self.job, finetuning_options.to_table(self.options))

    def restore(self, saved: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Goes back to a checkpoint.

        Raises:
            CheckpointError: it does not fit the settings or the data, or recorded episodes are missing or damaged.
        """
        folder, learner = self.job.folder, self.learner
        if self.offline != saved["data"]:
            raise CheckpointError(
                f"the data are not those that {folder} began with; resume with those, or start from the run again"
            )
        self.buffer.restore(folder, saved["buffer"])
        learner.load_state_dict(tensors)
        learner.take(self.buffer.trajectories)
        if saved["device"] != learner.device.type:
            self.job.say(
                f"the fine-tuning was on {shortened(str(saved['device']))} and goes on on {learner.device.type}: not "
                "bit for bit as it would have there"
            )
        learner.updates, self.rounds, self.steps = saved["updates"], saved["rounds"], saved["steps"]
        self.before = saved["before"]

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
        try:
            with stop_signal() as stop:
                after = self._run(stop)
        except (KeyboardInterrupt, Stopped):
            raise Interrupted(self._stopped()) from None
        outcome = {**after, "weights_sha256": checkpoint.weights_digest(job.folder / "last")}
        outcome |= {"before": self.before, **self._about()}
        job.say(f"agent:      {job.folder / 'last'}\nresult:     {write_result(job.folder, outcome)}")
        return outcome

    def _run(self, stop: StopSignal) -> dict[str, Any]:
        """The evaluation before, the rounds that are left, and the evaluation after. Saves wait for no signal."""
        if self.before is None:
            with stop.interrupts():
                self.before = self._evaluated("before")
        update = self.learner.updates if self.rounds else 0
        with RunLog(self.job.folder, update) as log, progress(self.options.steps, "step", "online") as advance:
            advance(self.steps)
            while self.steps < self.options.steps:
                with stop.interrupts():
                    metrics, steps = self._round()
                # Counted once it is whole.
                self.rounds, self.steps = self.rounds + 1, self.steps + steps
                advance(steps)
                log(self.learner.updates, {**metrics, "online/steps": float(self.steps)})
                self._save()
        with stop.interrupts():
            return self._evaluated("after")

    def _about(self) -> dict[str, Any]:
        """What was done, with the values that stand behind the defaults."""
        options = dataclasses.asdict(self.options)
        for name in ("out", "resume"):
            del options[name]
        chosen = {"buffer": self.most, "explore": self.target, "learning_rate": self.learner.config.learning_rate}
        return {"online_steps": self.steps, "online_rounds": self.rounds, "options": {**options, **chosen}}

    def _stopped(self) -> str:
        """Cleans up after Ctrl-C, and says what is kept."""
        folder = self.job.folder
        if not self.rounds:
            shutil.rmtree(folder)
            return f"stopped before the first round was whole; nothing was learned, and {folder} is removed"
        kept = f"the agent after {self.rounds} rounds ({self.steps} steps) is {folder / 'last'}"
        write_result(folder, {"before": self.before, **self._about(), "stopped": True})
        way = f"evaluate it with scripts/evaluate.py, or go on with scripts/finetune.py --resume {folder}"
        return f"stopped; {kept}, {way}"

    def _round(self) -> tuple[dict[str, float], int]:
        """Rolls out, takes the episodes into the buffer, and updates; the round's metrics, and its steps."""
        options = self.options
        count = options.round_episodes
        seed = EXPLORING_SEED * (options.seed + 1) + self.buffer.recorded
        protocol = dataclasses.replace(
            self.protocol, episodes=count, instances=count, seed=seed, target_return=self.target
        )
        found = evaluate(self._explorer(seed), protocol, record=True)
        spaces = self.job.dataset.observation_space, self.job.dataset.action_space
        self.buffer.take(Trajectories.from_episodes(found.recorded, *spaces))
        self.learner.take(self.buffer.trajectories)
        losses = [float(self.learner.update()["loss"]) for _ in range(options.round_updates)]
        if not np.isfinite(losses).all():
            raise InvalidInput(f"the loss is not finite in round {self.rounds + 1}; pass a smaller --learning-rate")
        metrics = {
            "train/loss": float(np.mean(losses)),
            "online/return": float(found.returns.mean()),
            "online/buffer_return": float(self.buffer.trajectories.returns.mean()),
        }
        return metrics, int(found.lengths.sum())

    def _agent(self, **options: Any) -> DecisionAgent:
        """An agent of the weights as they stand; a copy, since an agent's model leaves its training mode."""
        return DecisionAgent(copy.deepcopy(self.learner.acting), self.card, self.job.device, **options)

    def _explorer(self, seed: int) -> Actor:
        if self.samples:
            return self._agent(temperature=1.0, seed=seed)
        return Explorer(self._agent(), self.options.noise, seed)

    def _evaluated(self, name: str) -> dict[str, Any]:
        about = {"checkpoint": name, "source": self.job.dataset.source, "dataset": self.job.dataset.id}
        agent = self._agent()
        with progress(self.protocol.episodes, "episode", name) as advance:
            found = result(evaluate(agent, self.protocol, advance), self.protocol, **about, acting=str(agent.acting))
        self.job.say(describe(name, found))
        return {**found, "updates": self.learner.updates}

    def _save(self) -> None:
        """Writes the checkpoint and the agent of the rounds that are whole.

        Raises:
            InvalidInput: the weights are not finite; the checkpoint of the round before is still there.
        """
        folder = self.job.folder
        for model in (self.learner.model, self.learner.acting):
            if (weight := first_not_finite(model.state_dict())) is not None:
                raise InvalidInput(
                    f"the weight {weight} holds a NaN or infinity after round {self.rounds}; go on from the round "
                    f"before with --resume {folder} and a smaller --learning-rate"
                )
        counted = {"rounds": self.rounds, "steps": self.steps, "before": self.before, "data": self.offline}
        finetuning_checkpoint.write(folder, self.learner, {**counted, "buffer": self.buffer.save(folder)})
        self.buffer.drop_files(folder)
        self.save_agent()

    def save_agent(self) -> None:
        """Writes the agent as the learner stands."""
        card = dataclasses.replace(self.card, updates=self.learner.updates)
        checkpoint.save_agent(self.job.folder / "last", self.learner.acting, card)


def _say_data(line: str) -> None:
    """Says what loading says, less the hint at an option of training."""
    say(line.removesuffix("; --target asks for another"))


def _described(dataset: Dataset) -> Trajectories:
    """The data with the spaces of the model."""
    return dataclasses.replace(
        dataset.trajectories, observation_space=dataset.observation_space, action_space=dataset.action_space
    )
