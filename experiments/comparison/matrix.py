"""The matrix of a comparison: its TOML file, and the configuration and folder of every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aaren_rl import mixers
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.errors import InvalidInput, unknown_name
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.peers.d3rlpy import Peer
from aaren_rl.experiments.settings import from_table as from_settings
from aaren_rl.experiments.settings import merge, read

KEYS = ("datasets", "seeds", "settings", "agents", "search")


@dataclass(frozen=True)
class Run:
    """One training of a comparison.

    Attributes:
        dataset: name in the file.
        agent: name of its table in the file.
        seed: seed of the training.
        config: whole configuration; its `run` is the run's folder.
        peer: the agent of another library that is trained in place of one of this; None for one of this.
    """

    dataset: str
    agent: str
    seed: int
    config: RunConfig
    peer: Peer | None = None

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        assert self.config.run is not None
        return self.config.run

    @property
    def name(self) -> str:
        """Path of its folder below the comparison's."""
        return "/".join(self.folder.parts[-3:])


@dataclass(frozen=True)
class Matrix:
    """Datasets x agents x seeds.

    Attributes:
        file: TOML file of the comparison.
        datasets: names as `aaren_rl.envs.sources.load` takes them.
        seeds: seeds of the trainings.
        agents: configurations by name, still without environment, seed and folder.
        peers: those of `agents` that are another library's.
        tables: settings of each agent, with those of all agents below them.
        search: the [search] of the file, which `aaren_rl.experiments.search` reads; None without one.
    """

    file: Path
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    agents: dict[str, RunConfig]
    peers: dict[str, Peer]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    search: dict[str, Any] | None = None

    def select(self, agents: Sequence[str], datasets: Sequence[str], seeds: Sequence[int]) -> Matrix:
        """Part of the matrix with these agents, datasets and seeds; an empty list selects all.

        Raises:
            InvalidInput: a name or a seed is not in the file.
        """
        for noun, given, known in (("agent", agents, self.agents), ("dataset", datasets, self.datasets)):
            for name in given:
                if name not in known:
                    raise InvalidInput(f"{self.file}: {unknown_name(noun, name, known)}")
        for seed in seeds:
            if seed not in self.seeds:
                raise InvalidInput(f"{self.file}: seed {seed} is not among its seeds {list(self.seeds)}")
        return Matrix(
            self.file,
            tuple(name for name in self.datasets if name in datasets or not datasets),
            tuple(seed for seed in self.seeds if seed in seeds or not seeds),
            {name: config for name, config in self.agents.items() if name in agents or not agents},
            self.peers,
            self.tables,
            self.search,
        )

    def runs(self, out: Path) -> list[Run]:
        """All runs, seed by seed, so that all agents have about as many runs after an interruption."""
        return [
            Run(
                dataset,
                agent,
                seed,
                _config(config, dataset, seed, out / folder_name(dataset) / agent),
                self.peers.get(agent),
            )
            for seed in self.seeds
            for dataset in self.datasets
            for agent, config in self.agents.items()
        ]


def load(file: Path) -> Matrix:
    """Reads the TOML file of a comparison.

    Raises:
        InvalidInput: it is missing, not TOML, or holds unknown names or values.
    """
    try:
        table = read(file)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}; expected a TOML file with {', '.join(KEYS)}") from error
    return from_table(table, file)


def from_table(table: dict[str, Any], file: Path) -> Matrix:
    """The matrix of a table.

    Args:
        table: content of a comparison's file.
        file: that errors name.

    Raises:
        InvalidInput: it holds unknown names or values.
    """
    for key in table:
        if key not in KEYS:
            raise InvalidInput(f"{file}: {unknown_name('key', key, KEYS)}")
    datasets, seeds = _list(file, table, "datasets", str, "names"), _list(file, table, "seeds", int, "whole numbers")
    if min(seeds) < 0:
        raise InvalidInput(f"{file}: seeds is {seeds}; expected none below 0")
    check_datasets(file, datasets)
    settings, agents = table.get("settings", {}), table.get("agents", {})
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file}: settings is {settings!r}; expected a table [settings]")
    if not (isinstance(agents, dict) and agents and all(isinstance(one, dict) for one in agents.values())):
        raise InvalidInput(f"{file}: agents is {agents!r}; expected a table [agents.NAME] for each agent")
    search = table.get("search")
    if search is not None and not isinstance(search, dict):
        raise InvalidInput(f"{file}: search is {search!r}; expected a table [search]")
    tables = {
        name: merge(settings, {key: value for key, value in changes.items() if key != "peer"}, f"{file}, agent {name}")
        for name, changes in agents.items()
    }
    return Matrix(
        file,
        tuple(datasets),
        tuple(seeds),
        {name: agent_config(file, name, one) for name, one in tables.items()},
        {name: _peer(file, name, changes["peer"]) for name, changes in agents.items() if "peer" in changes},
        tables,
        search,
    )


def check_datasets(file: Path, datasets: Sequence[str]) -> None:
    """Checks names of datasets.

    Args:
        file: that errors name.
        datasets: the names.

    Raises:
        InvalidInput: one is unknown, or two would have one folder.
    """
    for name in datasets:
        if name not in catalogue() and not ("/" in name or Path(name).suffix or Path(name).expanduser().exists()):
            raise InvalidInput(f"{file}: {unknown_name('dataset', name, catalogue())}")
    folders = [folder_name(name) for name in datasets]
    if len(set(folders)) < len(folders):
        raise InvalidInput(
            f"{file}: datasets {list(datasets)} would lie in folders {folders}; expected one folder for each"
        )


def located(one: Any) -> Any:
    """The whole path of a dataset that is one, with its links followed; anything else as it is."""
    path = Path(str(one)).expanduser()
    return path.resolve() if one not in catalogue() and path.exists() else one


def folder_name(dataset: str) -> str:
    """Name of the folder of a dataset's runs."""
    return dataset.strip("/").replace("/", "-")


def _list(file: Path, table: dict[str, Any], key: str, item: type, what: str) -> list[Any]:
    values = table.get(key)
    # type() and not isinstance: true is no seed.
    if not (isinstance(values, list) and values and all(type(value) is item for value in values)):
        raise InvalidInput(f"{file}: {key} is {values!r}; expected a list of {what}, at least one")
    if len(set(values)) < len(values):
        raise InvalidInput(f"{file}: {key} is {values}; expected each once")
    return values


def agent_config(file: Path, name: str, table: dict[str, Any]) -> RunConfig:
    """Configuration of an agent, still without environment, seed and folder.

    Args:
        file: that errors name.
        name: of the agent.
        table: its settings.

    Raises:
        InvalidInput: the name or a setting does not fit.
    """
    where = f"{file}, agent {name}"
    if Path(name).name != name or name.startswith((".", "-")) or "|" in name:
        raise InvalidInput(f"{where}: this cannot be the name of a folder and the cell of a table; name it otherwise")
    set_here = {"env": "datasets", "seeds": "seeds", "run": "--out", "resume": "the command"}
    # Nor does a file make the program import packages.
    set_here["imports"] = "--import"
    training = table.get("training", {})
    taken = [key for key in set_here if key in table]
    if taken:
        raise InvalidInput(f"{where}: {taken[0]} is set by {set_here[taken[0]]}; leave it out")
    if isinstance(training, dict) and "seed" in training:
        raise InvalidInput(f"{where}: training.seed is set by seeds; leave it out")
    config = run_config.from_table(table, where)
    try:
        # An option out of range would else end each run after its data were loaded.
        for spec in config.model.mixers:
            mixers.build(spec, config.model.width, config.model.heads)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    return config


def _peer(file: Path, name: str, table: Any) -> Peer:
    where = f"{file}, agent {name}, peer"
    if not isinstance(table, dict):
        raise InvalidInput(f"{where} is {table!r}; expected a table, as [agents.{name}.peer] with an algorithm")
    return from_settings(Peer, table, where)


def _config(config: RunConfig, dataset: str, seed: int, folder: Path) -> RunConfig:
    training = dataclasses.replace(config.training, seed=seed)
    return dataclasses.replace(config, env=dataset, training=training, run=folder / f"seed-{seed}")
