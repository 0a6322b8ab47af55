"""Loads the data of runs once before they train, and settles the source of each dataset and where its data lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aaren_rl.envs import sources
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.dataset import Dataset, Say
from aaren_rl.envs.keeping import Choice
from aaren_rl.envs.sources import Source
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.comparison import running
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.comparison.processes import Pool
from aaren_rl.experiments.config import CONVERTED, DATA, RunConfig, keeping, reading

LEAVE_OUT = "so its scores cannot be normalised and compared; leave it out, or pass --returns"
"""What is said of a dataset without reference returns."""


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from, and where its data lie during training.

    Attributes:
        source: of a name of the catalogue; "auto" for other datasets, and for what is not settled yet.
        data: "memory" or "disk"; "auto" for what is not settled yet.
    """

    source: Source = "auto"
    data: Choice = "auto"

    def settle(self, config: RunConfig) -> RunConfig:
        """The configuration with these in place of "auto"."""
        source = self.source if config.source == "auto" else config.source
        return dataclasses.replace(config, source=source, data=self.data if config.data == "auto" else config.data)


def begun(runs: Iterable[Run]) -> dict[str, Origin]:
    """Origin of each dataset on which a run has begun.

    Raises:
        CheckpointError: a configuration cannot be read.
    """
    saved = [(run.dataset, config) for run in runs if (config := running.saved_configuration(run)) is not None]
    return {dataset: Origin(config.source, config.data) for dataset, config in saved}


def joined(searched: Mapping[str, Origin], reported: Mapping[str, Origin]) -> dict[str, Origin]:
    """Origins of the datasets of a search and of the runs that are reported.

    Raises:
        DataError: a dataset of both comes from two sources.
    """
    for dataset in searched.keys() & reported.keys():
        one, other = searched[dataset].source, reported[dataset].source
        if one != other:
            raise DataError(
                f"the search had {dataset} from {one}, and runs that are reported have it from {other}; set one source "
                "under [settings] and pass another --out, or delete the runs of one of them"
            )
    return {**searched, **reported}


def prepare(
    runs: list[Run],
    known: Mapping[str, Origin],
    out: Path,
    pool: Pool,
    say: Say,
    without_scores: bool = False,
    unscored: str = LEAVE_OUT,
) -> list[Run]:
    """Fetches, rolls out or converts the data of runs once, before several processes need them.

    Args:
        runs: selected runs.
        known: origins that are settled; they replace "auto".
        out: folder of the comparison, which data on disk are converted below.
        pool: that the runs train in; "auto" counts those of one machine, and no GPU, which this one may lack.
        say: receives lines on the data.
        without_scores: takes datasets without reference returns too.
        unscored: end of the sentence that refuses a dataset without them.

    Returns:
        Runs that are not finished, with the source of their data set, and with where these lie.

    Raises:
        InvalidInput: a dataset has no reference returns, which normalised scores need.
        DataError: data cannot be loaded, or come from different sources.
        CheckpointError: a result or a configuration cannot be read.
    """
    settled = dict(known)
    loaded: dict[tuple[Any, ...], str] = {}
    found: list[tuple[Run, str]] = []
    left: list[Run] = []
    for run in runs:
        figures = running.outcome(run)
        if figures is not None:
            found.append((run, str(figures.get("source"))))
            continue
        config = settled.get(run.dataset, Origin()).settle(run.config)
        config = dataclasses.replace(config, data_folder=config.data_folder or out.absolute() / CONVERTED)
        if _key(config) not in loaded:
            dataset = _load(config, pool, say)
            if dataset.reference is None and not without_scores:
                why = dataset.reference_reason.removeprefix("none: ")
                acted = f"for {dataset.environment}" if dataset.environment else "without an environment"
                raise InvalidInput(f"{run.dataset} has no reference returns {acted} ({why}), {unscored}")
            # Only names of the catalogue have a source.
            source = cast(Source, dataset.source) if run.dataset in catalogue() else "auto"
            origin = Origin(source, "disk" if dataset.trajectories.storage.on_disk else "memory")
            config = origin.settle(config)
            # Agents that leave it open get one origin of a dataset.
            if settled.get(run.dataset, Origin()).data == "auto":
                settled[run.dataset] = origin
            loaded[_key(config)] = dataset.source
        found.append((run, loaded[_key(config)]))
        left.append(dataclasses.replace(run, config=config))
    running.check_sources(found)
    return left


def _load(config: RunConfig, pool: Pool, say: Say) -> Dataset:
    assert config.data_folder is not None
    where = keeping(config, config.data_folder, None, progress=True)
    if config.data == "auto":
        where = dataclasses.replace(where, copies=pool.per_machine)
    return sources.load(config.env, config.source, reading(config, where), say)


def _key(config: RunConfig) -> tuple[Any, ...]:
    """What the data of a run depend on, and where they lie."""
    return tuple(getattr(config, name) for name in (*DATA, "data", "data_folder"))
