"""Configuration of a training run: defaults, presets, command line, and saved form."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch

from aaren_rl.actor import AUTO, Target
from aaren_rl.agents.acting import Acting
from aaren_rl.data.environment_spec import file_arguments
from aaren_rl.data.hindsight import Hindsight
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.dataset import Reading
from aaren_rl.envs.environment_choice import EnvironmentChoice, parse_argument
from aaren_rl.envs.environments import import_packages
from aaren_rl.envs.evaluation import INSTANCES
from aaren_rl.envs.goals import Goals
from aaren_rl.envs.keeping import Choice, Keeping
from aaren_rl.envs.sources import Source
from aaren_rl.errors import CheckpointError, InvalidInput, unknown_name
from aaren_rl.experiments import command_line, console, settings
from aaren_rl.experiments.command_line import Group
from aaren_rl.folders import replace_file
from aaren_rl.model import ModelConfig
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.launch import launched_here

CONFIG = "config.toml"

FINETUNING = "finetuning"
"""Table of a configuration with the options of an online fine-tuning."""

CONVERTED = "converted"
"""Name of the folder that data on disk are converted into."""

DIGEST = "# sha256:"
"""How the last line of a run's configuration begins."""


@dataclass(frozen=True)
class RunConfig:
    """Train a decision agent on an offline dataset, evaluate it, and save it."""

    env: str = "hopper-medium"
    """Dataset: a name of the catalogue, a Minari id, or the path of a file or folder: Minari, D4RL, OGBench, robomimic,
    LeRobot, RLDS, d3rlpy, or npz."""
    source: Source = "auto"
    """Source of a dataset that the catalogue names."""
    env_id: str | None = None
    """Gymnasium id of the environment to act in, or package:Id; "none" trains without roll-outs; by default the one
    that the data name."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, each as NAME=VALUE, as use_contact_forces=true; they replace those that the data
    record."""
    horizon: int | None = None
    """Steps after which an episode is truncated; by default as recorded."""
    imports: tuple[str, ...] = ()
    """Packages that register environments, objectives or mixers, to be imported first."""
    clip_actions: bool = False
    """Clip actions of the data into the environment's bounds, for environments that clip what they are given."""
    keep_best: float = 1.0
    """Share of the episodes to learn from, those with the highest returns."""
    least_return: float | None = None
    """Least return of the episodes to learn from."""
    data: Choice = "auto"
    """Keeps the data in memory, or on disk; auto takes the disk for data of more than half of the free memory."""
    data_folder: Path | None = None
    """Folder that data on disk are converted into, once; by default "converted" beside the run's folder, or in that
    of the comparison."""
    goals: Literal["data", "hindsight"] = "data"
    """Takes the goals of the data as they are, or gives some segments goals that were reached (hindsight relabelling);
    data without goals get some."""
    relabel: float = 0.8
    """Share of the segments that hindsight gives another goal; a "carry" keeps it for the whole episode."""
    goal_draws: tuple[str, ...] = ("future=1",)
    """Shares of the ways of drawing a goal, as future=0.5 geometric:0.99=0.3 random=0.2: uniformly from the later steps
    of the episode, from k steps later with a probability that falls by 0.99 a step, or from any step of the data."""
    goal_distance: float | None = None
    """Distance from a goal at which it counts as reached; by default as the environment's compute_reward says."""
    goal_columns: tuple[int, ...] = ()
    """Numbers of an observation, counted from 0, that a goal is made of, where the data have no goals; by default
    all."""
    preset: str | None = None
    """Start from a preset (quick, memory, cloning, best-cloning), or from several, the later ones on top
    ("quick+cloning"); other options override it."""
    run: Path | None = None
    """Folder of the run; by default runs/<env>-<time>."""
    resume: Path | None = None
    """Go on with the interrupted run in this folder, with its settings."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto takes a GPU if torch sees one."""
    target: Target | None = None
    """Target return of evaluations, or "auto" for what is in reach (with --reach); by default "auto" with --reach, else
    the dataset's first target."""
    return_scale: float | None = None
    """Divisor of returns-to-go; by default the catalogue's, or the largest return in the data."""
    acting: str = "stream"
    """"stream" carries the state through an episode, "reset:20" empties it every 20 steps, "window:20" runs the last 20
    steps through the model at every step; "closed-window:20" leaves out the outcome of the step before them."""
    check_episodes: int = 10
    """Episodes of each evaluation during training; 0 for none."""
    episodes: int = 100
    """Episodes of the final evaluation."""
    instances: int = INSTANCES
    """Largest number of copies of the environment at once in an evaluation; it determines the seeds that are played."""
    processes: int = 1
    """Processes that the copies of the environment are spread over; 1 for this one."""
    seeds: int = 1
    """Number of agents to train, with consecutive seeds; a GPU trains them as one batch."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.check_episodes < 0:
            raise InvalidInput(
                f"episodes {self.episodes} and check_episodes {self.check_episodes}; expected at least 1 and at least 0"
            )
        Acting.parse(self.acting)
        if self.instances < 1 or self.processes < 1:
            raise InvalidInput(f"instances {self.instances} and processes {self.processes}; expected at least 1 each")
        if self.seeds < 1:
            raise InvalidInput(f"seeds is {self.seeds}; expected at least 1")
        if self.target == AUTO and not self.model.reach:
            raise InvalidInput(
                f"target is {AUTO}, and this model does not predict the return in reach; pass --condition norm "
                "--reach True, or a number"
            )
        hindsight = Hindsight.parse(self.relabel, self.goal_draws)
        if self.goals == "data":
            given = hindsight != Hindsight(), self.goal_distance is not None, bool(self.goal_columns)
            for name, used in zip(("relabel or goal_draws", "goal_distance", "goal_columns"), given, strict=True):
                if used:
                    raise InvalidInput(f"{name} is for hindsight relabelling; pass --goals hindsight, or leave it out")


GOALS = ("goals", "relabel", "goal_draws", "goal_distance", "goal_columns")
"""Settings of hindsight relabelling."""

GROUPS = (
    Group(
        "run",
        "Folder, device and seeds of the run, and the settings that it starts from.",
        ("preset", "run", "resume", "device", "seed", "seeds"),
    ),
    Group(
        "data",
        "Episodes to learn from.",
        (
            *("env", "source", "data", "data_folder", "keep_best", "least_return", "clip_actions", "return_scale"),
            "held_out",
        ),
    ),
    Group(
        "goals",
        "Hindsight relabelling of data whose episodes are about reaching a goal.",
        GOALS,
    ),
    Group(
        "model",
        "Shape of the decision model.",
        ("mixer", "blocks", "width", "heads", "dropout", "layout", "norm", "head", "reach", "image_encoder"),
    ),
    Group(
        "input",
        "Parts of a step that the model sees.",
        ("previous_action", "reward", "return_to_go", "condition", "timesteps", "max_steps", "leave_out"),
    ),
    Group(
        "batch",
        "Objective and segments of an update, and how these are cut from episodes.",
        ("objective", "context", "weighting", "batch_size", "accumulate"),
    ),
    Group(
        "optimiser",
        "AdamW, its learning rate, and the average of its weights.",
        ("updates", "learning_rate", "warmup", "decay", "weight_decay", "clip", "average"),
    ),
    Group("speed", "Precision, compilation and CUDA graphs.", ("precision", "compile", "cuda_graph")),
    Group(
        "environment",
        "Environment to act in, in place of the recorded one.",
        ("env_id", "env_kwargs", "horizon", "imports"),
    ),
    Group(
        "evaluation",
        "Roll-outs during training and after it.",
        ("acting", "target", "episodes", "check_episodes", "evaluate_every", "instances", "processes"),
    ),
    Group("log", "Points of the curves, and checkpoints.", ("log_every", "checkpoint_every")),
)
"""Options of the command line by their groups; a TOML file has the fields of `RunConfig` instead."""


DATA = (
    *("env", "source", "env_id", "env_kwargs", "horizon", "imports", "clip_actions", "keep_best", "least_return"),
    *GOALS,
)
"""Settings that determine the data and their environment."""


def reading(config: RunConfig, keeping: Keeping | None = None) -> Reading:
    """How the data of a run are read; imports the packages that it names.

    Args:
        config: of the run.
        keeping: where the data lie; None for memory.

    Raises:
        InvalidInput: a package cannot be imported, or an option does not fit.
    """
    choice = EnvironmentChoice.of_options(config.env_id, config.env_kwargs, config.horizon, config.imports)
    goals = None
    if config.goals == "hindsight":
        hindsight = Hindsight.parse(config.relabel, config.goal_draws)
        goals = Goals(hindsight, config.goal_distance, config.goal_columns)
    kept = config.keep_best, config.least_return
    return Reading(choice, config.clip_actions, *kept, config.return_scale, goals, keeping or Keeping())


def keeping(config: RunConfig, runs: Path, device: torch.device | None, progress: bool) -> Keeping:
    """Where the data of a run lie.

    Args:
        config: of the run.
        runs: folder that the run's folder lies in.
        device: to train on; None where that is another process's, whose GPU is not looked at.
        progress: shows a progress bar while data are converted.
    """
    room = torch.cuda.mem_get_info(device)[0] if device is not None and device.type == "cuda" else None
    converted = config.data_folder or runs.absolute() / CONVERTED
    return Keeping(config.data, converted, room, _bar if progress else None, launched_here())


def _bar(steps: int, name: str) -> AbstractContextManager[Callable[[int], object]]:
    return console.progress(steps, "step", name)


def parse(arguments: list[str] | None = None) -> RunConfig:
    """Configuration of a command line.

    Args:
        arguments: words of the command line; None for those of the process.

    Raises:
        InvalidInput: a preset or a value is unknown, or a package to import cannot be imported.
        CheckpointError: the run to resume has no configuration.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # They may register objectives and mixers, which the settings name.
    import_packages(words_of(arguments, "--import"))
    # A preset or a run to resume gives the defaults, which the other options override.
    preset, resume = peek(arguments, "--preset"), peek(arguments, "--resume")
    default = RunConfig()
    if resume is not None:
        for option in ("--preset", "--run"):
            if peek(arguments, option) is not None:
                raise InvalidInput(f"{option} does not go with --resume, which takes the settings of {resume}")
        default = load(Path(resume) / CONFIG)
        refuse_files(default, peek(arguments, "--env-kwargs"), resume)
    elif preset is not None:
        default = from_table({"preset": preset}, "--preset")
    config = command_line.parse(RunConfig, "train", GROUPS, arguments=arguments, default=default, switches=False)
    return config if peek(arguments, "--env-id") is None else _with_package(config)


def load(path: Path) -> RunConfig:
    """Reads a saved configuration or a preset.

    Raises:
        CheckpointError: the file is missing or not TOML.
        InvalidInput: it holds unknown settings or values, or is a fine-tuning's.
    """
    table = _read(path)
    if FINETUNING in table:
        raise InvalidInput(
            f"{path.parent} is a fine-tuning; go on with it by scripts/finetune.py --resume {path.parent}"
        )
    return _of_file(table, path)


def load_finetuning(path: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Reads the saved configuration of an online fine-tuning, and the table of its own options.

    Raises:
        CheckpointError: the file is missing, not TOML, or that of another run.
        InvalidInput: it holds unknown settings or values.
    """
    table = _read(path)
    options = table.pop(FINETUNING, None)
    if not isinstance(options, dict):
        raise CheckpointError(
            f"{path.parent} is no fine-tuning, its {path.name} has no [{FINETUNING}]; to fine-tune the agent of a run, "
            f"give its folder without --resume"
        )
    return _of_file(table, path), options


def _read(path: Path) -> dict[str, Any]:
    try:
        table = settings.read(path)
        if path.name == CONFIG and _digests(path) is None:
            raise ValueError("it was cut, its last line is missing")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; expected the folder of a run that was started before") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; mend it, and if it is whole end it with the line '{DIGEST} edited' (the "
            "agents of the run load without it)"
        ) from error
    return table


def _of_file(table: dict[str, Any], path: Path) -> RunConfig:
    # A file does not make the program import packages: those are named on the command line.
    return dataclasses.replace(settings.from_table(RunConfig, table, str(path)), imports=())


def from_table(table: dict[str, Any], where: str) -> RunConfig:
    """Configuration of a table of settings, on top of the preset that it may name.

    Args:
        table: settings, with those of the model and of the training in tables of their names.
        where: origin that errors name.

    Raises:
        InvalidInput: it holds unknown settings or values.
    """
    preset = table.get("preset")
    if preset is not None:
        table = settings.merge(_presets(str(preset)), table, where)
    return settings.from_table(RunConfig, table, where)


def refuse_files(saved: RunConfig, given: object, resume: str) -> None:
    """Refuses saved arguments of an environment that name files, unless the user gives the environment anew.

    Args:
        saved: configuration of the run to resume.
        given: what the user says of the environment's arguments; None for nothing.
        resume: the run's folder, for the message.

    Raises:
        InvalidInput: an argument names a file.
    """
    names = file_arguments(dict(map(parse_argument, saved.env_kwargs)))
    if names and given is None:
        raise InvalidInput(
            f"the run in {resume} gives its environment the argument {names[0]}, which names a file; only you may say "
            f"which file to read: pass --env-kwargs {' '.join(saved.env_kwargs)} (in Python: environment)"
        )


def _with_package(config: RunConfig) -> RunConfig:
    """The configuration with the package of an env_id like "package:Id" among its imports."""
    package, colon, _ = (config.env_id or "").rpartition(":")
    if not colon or package in config.imports:
        return config
    return dataclasses.replace(config, imports=(*config.imports, package))


def located(config: RunConfig) -> RunConfig:
    """The configuration with the whole paths of the data's folder, and of a dataset that is named by a path."""
    if config.data_folder is not None:
        config = dataclasses.replace(config, data_folder=config.data_folder.expanduser().absolute())
    path = Path(config.env).expanduser()
    if config.env in catalogue() or not path.exists():
        return config
    return dataclasses.replace(config, env=os.path.abspath(path))


def save(config: RunConfig, path: Path, finetuning: dict[str, Any] | None = None) -> None:
    """Writes a configuration as TOML, less the packages to import. The digest in its last line shows if it was cut.

    Args:
        config: to write.
        path: of the file.
        finetuning: options of an online fine-tuning, as a table; None for another run.
    """
    table = settings.to_table(dataclasses.replace(config, imports=()))
    content = tomli_w.dumps(table if finetuning is None else {**table, FINETUNING: finetuning})
    replace_file(path, f"{content}{DIGEST} {_digest(content)}\n")


def was_edited(path: Path) -> bool:
    """True if a run's configuration was changed since it was saved."""
    digests = _digests(path) if path.exists() else None
    return digests is not None and digests[0] != digests[1]


def _digests(path: Path) -> tuple[str, str] | None:
    """The digest in a configuration's last line, and that of the lines before; None if the last line is missing."""
    content, found, last = path.read_text("utf-8").rstrip("\n").rpartition(f"{DIGEST} ")
    whole = re.fullmatch(r"[0-9a-f]{64}|edited", last)
    return (last, _digest(content)) if found and whole else None


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def presets() -> dict[str, Path]:
    """Files of the presets by name."""
    folder = Path(str(resources.files("aaren_rl.experiments") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _presets(names: str) -> dict[str, Any]:
    """Settings of presets, the later ones over the earlier ones."""
    table: dict[str, Any] = {}
    for name in names.split("+"):
        if name not in presets():
            raise unknown_name("preset", name, presets())
        table = settings.merge(table, settings.read(presets()[name]), f"preset {names}")
    return table


def words_of(arguments: list[str], option: str) -> list[str]:
    """The words of an option that takes several, as the parser reads them: those of its last occurrence."""
    words: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            behind = itertools.takewhile(lambda word: not word.startswith("--"), arguments[position + 1 :])
            words = [*([value] if equals else []), *behind]
    return words


def peek(arguments: list[str], option: str) -> str | None:
    """The word of an option that takes one; None without it."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        # The parser takes both.
        if not name.startswith("--") or name.replace("_", "-") != option:
            continue
        if equals:
            return value
        if position + 1 < len(arguments):
            return arguments[position + 1]
    return None
