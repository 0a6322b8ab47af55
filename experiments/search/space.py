"""The [search] of a comparison's file: the agent whose settings are searched, the space, and the budget."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any

from typeguard import TypeCheckError, check_type

from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments.comparison import matrix
from aaren_rl.experiments.comparison.matrix import Matrix, Run
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.settings import from_table, merge

RANGE = ("low", "high", "log", "step")
"""Keys of a range; a table with other keys holds settings."""

MEASURE = (
    *("env", "source", "env_id", "env_kwargs", "horizon", "imports", "preset", "run", "resume", "device", "seeds"),
    *("data", "data_folder", "clip_actions", "episodes", "check_episodes", "instances", "processes"),
    *("training.seed", "training.updates", "training.evaluate_every"),
)
"""Settings that say on what, where and how an agent is measured, which no search may change. Evaluations, and pruning
with them, are counted in updates."""

FOLDER = "search"
"""Folder of a search's runs and of its trials, in that of the comparison."""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Raises:
        InvalidInput: the bounds do not fit.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise InvalidInput(f"low {self.low} and high {self.high}; expected a lower one first, above 0 with log")
        if self.step is not None and (self.log or self.step <= 0):
            raise InvalidInput(f"step {self.step} with log {self.log}; expected a step above 0, and no log")

    @property
    def whole(self) -> bool:
        """True for whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def __str__(self) -> str:
        more = ", log" if self.log else "" if self.step is None else f", step {self.step:g}"
        return f"{self.low:g} to {self.high:g}{more}"


Choices = tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class Options:
    """The [search] of a file but for its space.

    Raises:
        InvalidInput: a number is too small, or a list is empty or names something twice.
    """

    agent: str
    """Agent that the search starts from."""
    trials: int
    """Settings to try."""
    seeds: tuple[int, ...]
    """Seeds of the search's trainings, none of those reported."""
    datasets: tuple[str, ...] = ()
    """Datasets of the search, none of those reported; by default those reported, with other seeds."""
    name: str = "searched"
    """Name of the agent with the best settings."""
    episodes: int = 25
    """Episodes of each evaluation in training; the last one scores the trial."""
    evaluations: int = 9
    """Evaluations of each training, after which a trial may be pruned."""

    def __post_init__(self) -> None:
        for name in ("trials", "episodes", "evaluations"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected at least 1")
        for values in (self.seeds, self.datasets):
            if len(set(values)) < len(values):
                raise InvalidInput(f"{list(values)}; expected each once")
        if not self.seeds or min(self.seeds) < 0:
            raise InvalidInput(f"seeds is {list(self.seeds)}; expected at least one, none below 0")


@dataclass(frozen=True)
class Search:
    """A search for settings of an agent.

    Attributes:
        whole: the comparison.
        options: agent, budget and measure.
        space: choices or range of each setting, by its path, as training.learning_rate.
    """

    whole: Matrix
    options: Options
    space: dict[str, Choices | Range]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets of the search."""
        return self.options.datasets or self.whole.datasets

    def config(self, name: str, values: dict[str, Any]) -> RunConfig:
        """Configuration of the agent with these values of its settings.

        Raises:
            InvalidInput: they do not go together.
        """
        table = merge(self.whole.tables[self.options.agent], _nested(values), name)
        return matrix.agent_config(self.whole.file, name, table)

    def runs(self, name: str, config: RunConfig, folder: Any) -> list[Run]:
        """Runs of a trial: on every dataset with every seed, evaluated as the search says."""
        options = self.options
        every = math.ceil(config.training.updates / options.evaluations)
        training = dataclasses.replace(config.training, evaluate_every=every)
        # The evaluation at the end, of seeds that are reported too, is made as short as it can be.
        measured = dataclasses.replace(config, check_episodes=options.episodes, episodes=1, training=training)
        return Matrix(self.whole.file, self.datasets, options.seeds, {name: measured}, {}).runs(folder)

    def definition(self) -> dict[str, Any]:
        """All but the budget, which may grow, and the name, in JSON's types."""
        options = dataclasses.asdict(self.options)
        about = {name: value for name, value in options.items() if name not in ("trials", "name", "datasets")}
        space = {name: _described(one) for name, one in self.space.items()}
        return {
            **about,
            "seeds": list(self.options.seeds),
            "datasets": list(self.datasets),
            "space": space,
            "settings": self.whole.tables[self.options.agent],
        }


def read(whole: Matrix) -> Search | None:
    """The search of a comparison; None if its file has no [search].

    Raises:
        InvalidInput: it holds unknown names or values, or shares seeds or named datasets with what is reported.
    """
    if whole.search is None:
        return None
    where = f"{whole.file}, [search]"
    table = {key: value for key, value in whole.search.items() if key != "space"}
    for key in ("agent", "trials", "seeds"):
        if key not in table:
            raise InvalidInput(f"{where}: {key} is missing; expected agent, trials, seeds and a table [search.space]")
    try:
        options = from_table(Options, table, where)
    except InvalidInput as error:
        raise InvalidInput(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    _check(whole, options, where)
    space = whole.search.get("space")
    if not isinstance(space, dict) or not space:
        raise InvalidInput(f"{where}: space is {space!r}; expected a table [search.space] of settings")
    return Search(whole, options, dict(_read_space(space, where)))


def _check(whole: Matrix, options: Options, where: str) -> None:
    if options.agent not in whole.agents:
        raise InvalidInput(f"{where}: {unknown_name('agent', options.agent, whole.agents)}")
    if options.agent in whole.peers:
        raise InvalidInput(f"{where}: {options.agent} is d3rlpy's; a search is over this project's agents")
    if options.name in whole.agents:
        raise InvalidInput(f"{where}: name is {options.name!r}, as an agent's; name it otherwise")
    for noun, searched, reported in (
        ("seeds", options.seeds, whole.seeds),
        ("datasets", options.datasets, whole.datasets),
    ):
        known = [matrix.located(one) for one in reported]
        if shared := [one for one in searched if matrix.located(one) in known]:
            raise InvalidInput(
                f"{where}: {noun} share {shared} with those reported, and what was chosen on them would be reported on "
                f"them; choose others{'' if noun == 'seeds' else ', or leave datasets out to search with other seeds'}"
            )
    matrix.check_datasets(whole.file, options.datasets)


def _read_space(table: dict[str, Any], where: str, prefix: str = "") -> typing.Iterator[tuple[str, Choices | Range]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        here = f"{where}: space.{name}"
        if isinstance(value, dict) and not set(value) & set(RANGE):
            yield from _read_space(value, where, f"{name}.")
            continue
        if name in MEASURE:
            raise InvalidInput(f"{here} says how agents are measured, which a search cannot change; leave it out")
        hint = _hint(name, where)
        found: Choices | Range
        if isinstance(value, dict):
            try:
                found = from_table(Range, value, here)
            except InvalidInput as error:
                raise InvalidInput(str(error) if str(error).startswith(here) else f"{here}: {error}") from error
            tried: Choices = (found.low, found.high)
            tried = tried if found.whole else tuple(map(float, tried))
        elif isinstance(value, list) and len(value) > 1 and all(isinstance(one, str | int | float) for one in value):
            found = tried = tuple(value)
        else:
            raise InvalidInput(
                f"{here} is {value!r}; expected a list of two or more names, numbers or flags, or a range as "
                "{ low = 1e-4, high = 1e-2, log = true }"
            )
        for one in tried:
            try:
                check_type(one, hint)
            except TypeCheckError as error:
                raise InvalidInput(f"{here} would be {one!r}: {error}") from error
        yield name, found


def _hint(name: str, where: str) -> Any:
    """Type of a setting by its path."""
    form: Any = RunConfig
    for part in name.split("."):
        known = typing.get_type_hints(form) if dataclasses.is_dataclass(form) else {}
        if part not in known:
            raise InvalidInput(f"{where}: space: {unknown_name('setting', part, known)}")
        form = known[part]
    if dataclasses.is_dataclass(form):
        raise InvalidInput(f"{where}: space.{name} is a table of settings; name one of them")
    return form


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by path as a table of tables."""
    table: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split(".")
        inner = table
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return table


def _described(one: Choices | Range) -> Any:
    return dataclasses.asdict(one) if isinstance(one, Range) else list(one)
