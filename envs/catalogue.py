"""The datasets known by name, read from catalogue.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.environments import is_own, registered_limit
from aaren_rl.errors import unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Reference:
    """Returns that a normalised score is measured against.

    Attributes:
        name: name of the table that holds them.
        random: mean return of a random policy, score 0.
        expert: mean return of an expert policy, score 100.
    """

    name: str
    random: float
    expert: float

    def score(self, mean_return: float) -> float:
        """The normalised score of a mean return."""
        return 100.0 * (mean_return - self.random) / (self.expert - self.random)


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue.

    Attributes:
        name: task and level, as "hopper-medium".
        task: name of the task, as "hopper".
        minari_id: id on the Minari hub; None if the hub lacks it.
        d4rl_file: name of D4RL's HDF5 file; None if D4RL lacks it.
        behaviours: training steps of the bundled snapshots that make it, each with an equal share of the steps; empty
            for random actions, None if no snapshot is bundled.
        scripted: True if the scripted expert of its environment makes it.
        environments: the environment to act in, by the source of the data ("minari", "d4rl", "bundled").
        reference: returns for normalised scores.
        target_returns: returns to ask an agent for; the first is the default.
        return_scale: number that a model divides returns-to-go by.
        horizon: greatest number of steps of an episode.
    """

    name: str
    task: str
    minari_id: str | None
    d4rl_file: str | None
    behaviours: tuple[int, ...] | None
    scripted: bool
    environments: dict[str, EnvironmentSpec]
    reference: Reference
    target_returns: tuple[float, ...]
    return_scale: float
    horizon: int

    @property
    def bundled(self) -> bool:
        """True if a bundled behaviour or expert makes it."""
        return self.scripted or self.behaviours is not None

    @property
    def bundled_id(self) -> str:
        """Minari id of the bundled behaviours' roll-out."""
        return f"aaren/{self.task}/{self.name.removeprefix(self.task + '-')}-v0"


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name."""
    table = tomllib.loads((resources.files("aaren_rl.envs") / "catalogue.toml").read_text("utf-8"))
    entries = [
        _entry(task, facts, level, details)
        for task, facts in table["tasks"].items()
        for level, details in facts.get("levels", table["levels"]).items()
    ]
    return {entry.name: entry for entry in entries}


def _entry(task: str, facts: dict[str, Any], level: str, details: dict[str, Any]) -> Entry:
    behaviours = facts.get("behaviours", {}).get(level)
    return Entry(
        name=f"{task}-{level}",
        task=task,
        minari_id=f"mujoco/{task}/{details['minari']}-v0" if "minari" in details else None,
        d4rl_file=f"{task}_{details['d4rl']}-v2.hdf5" if "d4rl" in details else None,
        behaviours=() if level == "random" else tuple(behaviours) if behaviours else None,
        scripted=details.get("scripted", False),
        environments={
            source: EnvironmentSpec(facts[source]["id"], facts[source].get("kwargs", {}) | details.get("kwargs", {}))
            for source in ("minari", "d4rl", "bundled")
            if source in facts
        },
        reference=Reference(facts["reference"], facts["random_return"], facts["expert_return"]),
        target_returns=tuple(facts["target_returns"]),
        return_scale=facts["return_scale"],
        horizon=details.get("horizon") or facts["horizon"],
    )


def find(name: str) -> Entry:
    """The entry of a name.

    Raises:
        InvalidInput: the catalogue lacks the name; the message lists near matches.
    """
    if name not in catalogue():
        raise unknown_name("dataset", name, catalogue())
    return catalogue()[name]


def by_environment(spec: EnvironmentSpec) -> Entry | None:
    """The first entry that acts in an environment, whose task's returns serve.

    Returns are comparable only where the id is Gymnasium's or this project's, and where id, arguments, wrappers and
    time limit are the entry's; None if no entry has them.
    """
    for entry in catalogue().values() if is_own(spec) else ():
        for known in entry.environments.values():
            same = (spec.registered_id, spec.kwargs, spec.wrappers) == (known.id, known.kwargs, known.wrappers)
            if same and spec.max_episode_steps in (None, entry.horizon, registered_limit(known.id)):
                return entry
    return None


def reference_of(spec: EnvironmentSpec) -> Reference | None:
    """The reference returns of an environment; None if no table has it."""
    entry = by_environment(spec)
    return entry.reference if entry else None
