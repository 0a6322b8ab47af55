"""The configuration of a training run: defaults, presets, the command line, and its saved form."""

from __future__ import annotations

import dataclasses
import sys
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro
from typeguard import TypeCheckError, check_type

from aaren_rl.agents.acting import Acting
from aaren_rl.checkpoint import replace_file
from aaren_rl.envs.sources import Source
from aaren_rl.errors import CheckpointError, InvalidInput, unknown_name
from aaren_rl.model import ModelConfig
from aaren_rl.training.run import TrainingConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "config.toml"


@dataclass(frozen=True)
class RunConfig:
    """Train a decision agent on an offline dataset, evaluate it, and save it."""

    env: str = "hopper-medium"
    """A name of the catalogue, a Minari id, or the path of a D4RL HDF5 file or of a Minari dataset's folder."""
    source: Source = "auto"
    """Where to take a name of the catalogue from."""
    env_id: str | None = None
    """Gymnasium id to act in, where the data do not say or say it wrong."""
    preset: str | None = None
    """Start from the settings of a preset ("quick") instead of the paper's; what is given beside it counts."""
    run: Path | None = None
    """Folder of the run; runs/<env>-<time> by default."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with, with its own settings."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    target: float | None = None
    """Return to ask for in evaluations; by default the dataset's first target."""
    return_scale: float | None = None
    """Returns-to-go are divided by this; by default the catalogue's scale, or the data's largest return."""
    acting: str = "stream"
    """How the agent acts: "stream" carries its state through the episode; "reset:20" empties the mixers' state every 20
    steps; "window:20" runs the last 20 steps through the model again at every step."""
    check_episodes: int = 10
    """Episodes of each evaluation during training; 0 for none."""
    episodes: int = 100
    """Episodes of the final evaluation."""
    seeds: int = 1
    """Train this many agents, with the seed given and those after it: as one batch on a GPU, one by one on a CPU."""
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.check_episodes < 0:
            raise InvalidInput(
                f"episodes {self.episodes} and check_episodes {self.check_episodes}; expected at least 1 and at least 0"
            )
        Acting.parse(self.acting)
        if self.seeds < 1:
            raise InvalidInput(f"seeds is {self.seeds}; expected at least 1")


def parse(arguments: list[str] | None = None) -> RunConfig:
    """The configuration that a command line asks for.

    Raises:
        InvalidInput: a preset or a value is not known.
        CheckpointError: the run to resume has no configuration.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # The preset, or the run to resume, gives the defaults that the rest of the line changes.
    preset, resume = _peek(arguments, "--preset"), _peek(arguments, "--resume")
    default = RunConfig()
    if resume is not None:
        for option in ("--preset", "--run"):
            if _peek(arguments, option) is not None:
                raise InvalidInput(f"{option} does not go with --resume, which takes the settings of {resume}")
        default = load(Path(resume) / CONFIG)
    elif preset is not None:
        default = load(_preset(preset))
    return tyro.cli(RunConfig, args=arguments, default=default, prog="train", config=(tyro.conf.FlagConversionOff,))


def load(path: Path) -> RunConfig:
    """Reads a saved configuration or a preset.

    Raises:
        CheckpointError: the file is missing or not TOML.
        InvalidInput: it holds unknown settings or values.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; expected the folder of a run that was started before") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    config: RunConfig = _from_table(RunConfig, table, path)
    return config


def from_table(table: dict[str, Any], where: str) -> RunConfig:
    """The configuration that a table of settings asks for, on top of the preset that it may name.

    Args:
        table: settings, those of the model and of the training in tables of their own.
        where: what errors say it is from.

    Raises:
        InvalidInput: it holds unknown settings or values.
    """
    preset = table.get("preset")
    if preset is not None:
        table = merge(tomllib.loads(_preset(str(preset)).read_text("utf-8")), table, where)
    config: RunConfig = _from_table(RunConfig, table, where)
    return config


def merge(below: dict[str, Any], above: dict[str, Any], where: str) -> dict[str, Any]:
    """One table over another, and so for the tables in them.

    Raises:
        InvalidInput: a table would replace a value, or a value a table.
    """
    merged = dict(below)
    for name, value in above.items():
        if name in below and isinstance(below[name], dict) != isinstance(value, dict):
            raise InvalidInput(f"{where}: {name} is {below[name]!r} and {value!r}; expected two tables or two values")
        merged[name] = merge(below[name], value, where) if name in below and isinstance(value, dict) else value
    return merged


def save(config: RunConfig, path: Path) -> None:
    """Writes a configuration as TOML."""
    replace_file(path, tomli_w.dumps(_to_table(config)))


def presets() -> dict[str, Path]:
    """The presets by name."""
    folder = Path(str(resources.files("aaren_rl.experiments") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _preset(name: str) -> Path:
    if name not in presets():
        raise unknown_name("preset", name, presets())
    return presets()[name]


def _peek(arguments: list[str], option: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def _to_table(config: Any) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if dataclasses.is_dataclass(value):
            table[setting.name] = _to_table(value)
        elif value is not None:
            table[setting.name] = str(value) if isinstance(value, Path) else value
    return table


def _from_table(kind: type[Any], table: dict[str, Any], path: Path | str) -> Any:
    known = {setting.name for setting in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in known:
            raise InvalidInput(f"{path}: {unknown_name('setting', name, known)}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            values[name] = _from_table(hints[name], value, path)
        else:
            values[name] = Path(value) if hints[name] == Path | None and isinstance(value, str) else value
            try:
                check_type(values[name], hints[name])
            except TypeCheckError as error:
                raise InvalidInput(f"{path}: {name} is {value!r}; {error}") from error
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInput(f"{path}: {error}") from error
