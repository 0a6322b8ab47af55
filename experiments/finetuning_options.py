"""Options of online fine-tuning, its command line, and the runs that it takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aaren_rl.data.context import Context
from aaren_rl.envs.dataset import ARRAYS
from aaren_rl.envs.environments import import_packages
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments import command_line, settings
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.command_line import Group
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.online_buffer import Keep


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
    keep: Keep = "newest"
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
    resume: Path | None = None
    """Go on with the fine-tuning in this folder, with its settings, in place of a run; other options override them."""
    imports: tuple[str, ...] = ()
    """Packages that register environments, objectives or mixers, to be imported first."""

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


@dataclass(frozen=True)
class Arguments:
    """Fine-tune an agent online, from the checkpoint and the data of its run."""

    agent: Path | None = None
    """Folder of a run, or of its agent, as runs/<run>/last."""
    options: Options = field(default_factory=Options)


GROUPS = (
    Group("exploration", "Episodes in the environment.", ("steps", "round_episodes", "explore", "noise", "seed")),
    Group("training", "Buffer and updates.", ("buffer", "keep", "round_updates", "learning_rate")),
    Group(
        "run",
        "Episodes before and after, packages to import, and folders.",
        ("episodes", "out", "resume", "imports"),
    ),
)


def parse(arguments: list[str] | None = None) -> Arguments:
    """Arguments of a command line; those of a fine-tuning to resume have its options as defaults.

    Raises:
        CheckpointError: the folder to resume is none of a fine-tuning.
        InvalidInput: a saved option does not fit.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # They may register objectives and mixers, which the saved settings name.
    import_packages(run_config.words_of(arguments, "--import"))
    resume, default = run_config.peek(arguments, "--resume"), None
    if resume is not None:
        default = Arguments(options=read(Path(resume))[1])
    return command_line.parse(Arguments, "finetune", GROUPS, ["agent"], arguments=arguments, default=default)


def read(folder: Path) -> tuple[RunConfig, Options]:
    """Settings of a fine-tuning: those of its model, data and training, and its options.

    Raises:
        CheckpointError: the folder is none of a fine-tuning.
        InvalidInput: it holds unknown settings or values.
    """
    config, saved = run_config.load_finetuning(folder / CONFIG)
    options = settings.from_table(Options, saved, str(folder / CONFIG))
    # As with other runs, a file does not make the program import packages.
    return config, replace(options, out=None, resume=None, imports=())


def to_table(options: Options) -> dict[str, Any]:
    """The options as config.toml holds them, without folders and packages."""
    return settings.to_table(replace(options, out=None, resume=None, imports=()))


def run_of(agent: Path) -> Path:
    """The folder of the run that an agent is from."""
    if (agent / CONFIG).exists():
        return agent
    if agent.name == "last" and (agent.parent / CONFIG).exists():
        return agent.parent
    raise CheckpointError(
        f"{agent} is neither a run, with its {CONFIG}, nor the last agent in one; fine-tuning goes on from a run's "
        "last checkpoint, and other agents have no optimiser's state: give runs/RUN or runs/RUN/last"
    )


def check_run(config: RunConfig, run: Path) -> None:
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
