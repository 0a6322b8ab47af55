"""The datasets known by name.

Names come from four lists beside this file: tasks with their levels (one TOML file for each family), Minari's hub
(minari-hub.tsv), D4RL's files (d4rl.toml) and OGBench's (ogbench.toml). One name may be in several: these are its
sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.data.reference import Reference
from aaren_rl.envs.catalogue import hub
from aaren_rl.envs.catalogue.tables import table
from aaren_rl.envs.environments import is_own, limit_of
from aaren_rl.envs.references import reference_of, same_environment
from aaren_rl.errors import unknown_name

FAMILIES = ("mujoco", "memory", "classic", "minigrid", "popgym", "mazes")
"""Files of tasks and levels, the first of which win where tasks share an environment."""

OWN_EXPERT = "aaren"
"""The expert that an environment of this project's is itself."""


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue.

    Attributes:
        name: task and level, as "hopper-medium"; with D4RL's version, as "hopper-medium-v2", D4RL's set alone.
        task: name of the task, as "hopper".
        minari_id: id on the Minari hub; None if the hub lacks it.
        d4rl_path: folder and name of D4RL's HDF5 file; None if D4RL lacks it.
        ogbench_file: name of OGBench's npz file; None if OGBench lacks it.
        behaviours: training steps of the bundled snapshots that make it, each with an equal share of the steps; empty
            for random actions, None if no snapshot is bundled.
        expert: name of the scripted expert that makes it; None for none.
        expert_arguments: of the expert, by name.
        episodes: of the expert's set; None for the usual number.
        environments: the environment to act in, by the source of the data ("minari", "d4rl", "ogbench", "bundled");
            sources whose data record their own, or that none fits, are missing.
        evaluation: the environment to evaluate in that the bundled data name; None for that of their collection.
        target_returns: returns to ask an agent for, the first by default; None for the data's.
        ambition: how many times the median return an agent is asked for beyond the best one; None for none.
        return_scale: number that a model divides returns-to-go by; None for the data's.
        horizon: greatest number of steps of an episode; None for the environment's.
        needs: why no environment here takes the data of D4RL; None where one does.
    """

    name: str
    task: str
    minari_id: str | None = None
    d4rl_path: str | None = None
    ogbench_file: str | None = None
    behaviours: tuple[int, ...] | None = None
    expert: str | None = None
    expert_arguments: Mapping[str, Any] = field(default_factory=dict)
    episodes: int | None = None
    environments: dict[str, EnvironmentSpec] = field(default_factory=dict)
    evaluation: EnvironmentSpec | None = None
    target_returns: tuple[float, ...] | None = None
    ambition: float | None = None
    return_scale: float | None = None
    horizon: int | None = None
    needs: str | None = None

    @property
    def d4rl_file(self) -> str | None:
        """Name of D4RL's HDF5 file; None if D4RL lacks it."""
        return self.d4rl_path and self.d4rl_path.rpartition("/")[2]

    @property
    def bundled(self) -> bool:
        """True if a bundled behaviour or an expert makes it."""
        return self.expert is not None or self.behaviours is not None

    @property
    def bundled_id(self) -> str:
        """Minari id of the bundled behaviours' roll-out."""
        return f"aaren/{self.task}/{self.name.removeprefix(self.task).removeprefix('-') or 'expert'}-v0"

    @property
    def reference(self) -> Reference | None:
        """Returns for normalised scores in the environment of its data; None for none."""
        found = (reference_of(spec) for spec in self.environments.values())
        return next((reference for reference in found if reference is not None), None)


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name."""
    parts: dict[str, dict[str, Any]] = {}
    for name, fields in (*_levels(), *_hub(), *_ogbench(), *_d4rl()):
        part = parts.setdefault(name, {"environments": {}})
        # The lists that come first win.
        for source, spec in fields.pop("environments", {}).items():
            part["environments"].setdefault(source, spec)
        part |= {**fields, **part}
    return {name: Entry(name, **part) for name, part in parts.items()}


def find(name: str) -> Entry:
    """The entry of a name.

    Raises:
        InvalidInput: the catalogue lacks the name; the message lists near matches.
    """
    if name not in catalogue():
        raise unknown_name("dataset", name, catalogue())
    return catalogue()[name]


def by_environment(spec: EnvironmentSpec) -> Entry | None:
    """The first entry that says what to ask for in an environment; None where no entry does.

    Targets are known for Gymnasium's and this project's environments alone.
    """
    entries = [entry for entry in catalogue().values() if entry.target_returns or entry.ambition]
    for entry in entries if is_own(spec) else ():
        for known in entry.environments.values():
            limits = (limit_of(known), entry.horizon)
            if limit_of(spec) in limits and same_environment(spec, known, limits=False):
                return entry
    return None


def _levels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of the tasks and levels of each family."""
    for family in FAMILIES:
        content = table(family)
        for task, facts in content["tasks"].items():
            levels = facts.get("levels", content.get("levels", {}))
            for level in levels:
                details = levels[level] if isinstance(levels, Mapping) else {}
                yield f"{task}-{level}", {"task": task, **_fields(facts, level, details)}


def _fields(facts: Mapping[str, Any], level: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an entry that a task and a level give."""
    behaviours, targets = facts.get("behaviours", {}).get(level), facts.get("target_returns")
    given = details.get("environment") or facts.get("environment")
    fields = {
        "behaviours": () if level == "random" else tuple(behaviours) if behaviours else None,
        "expert": details.get("expert"),
        "expert_arguments": details.get("arguments"),
        "episodes": details.get("episodes"),
        "target_returns": tuple(targets) if targets else None,
        "ambition": facts.get("ambition"),
        "return_scale": facts.get("return_scale"),
        "horizon": details.get("horizon") or facts.get("horizon"),
    }
    if given is not None:
        spec = _spec({**given, "kwargs": {**given.get("kwargs", {}), **details.get("kwargs", {})}})
        # Minari's mazes hold a goal that the experts' episodes end at, so the data's own record stands alone.
        sources = ("bundled",) if details.get("environment") or details.get("expert") else ("minari", "bundled")
        fields["environments"] = dict.fromkeys(sources, spec)
    if "evaluation" in details:
        fields["evaluation"] = _spec(details["evaluation"])
    return {name: value for name, value in fields.items() if value is not None}


def _hub() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of the sets on Minari's hub, and the experts that are known to have made them."""
    for listed in hub.newest():
        fields: dict[str, Any] = {"task": listed.task, "minari_id": listed.id, **_facts(listed.task)}
        family, task = listed.id.split("/")[:2]
        if family == "metaworld":
            spec = EnvironmentSpec("Meta-World/MT1", {"env_name": f"{task}-v3"})
            fields |= {"expert": "metaworld", "environments": {"minari": spec, "bundled": spec}}
        elif listed.environment.startswith("BabyAI-"):
            env_id = hub.RENAMED.get(listed.environment, listed.environment)
            spec = EnvironmentSpec(env_id, wrappers=tuple(map(Wrapper, listed.wrappers)))
            fields |= {"expert": "babyai", "environments": {"minari": spec, "bundled": spec}}
        yield listed.name, fields


def _d4rl() -> Iterator[tuple[str, dict[str, Any]]]:
    """D4RL's ids, and the same without a version for the newest of each."""
    content = table("d4rl")
    newest: dict[str, dict[str, Any]] = {}
    for name, path in content["files"].items():
        base, _, _ = name.rpartition("-")
        fields: dict[str, Any] = {"task": _task(base), "d4rl_path": path, **_facts(_task(base))}
        known = _by_beginning(content["environments"], base)
        fields["environments"] = {} if known is None else {"d4rl": _spec(known)}
        if needs := _by_beginning(content["needs"], base):
            fields["needs"] = needs
        yield name, dict(fields)
        # Versions rise within the file.
        newest[base] = fields
    yield from ((base, dict(fields)) for base, fields in newest.items())


def _ogbench() -> Iterator[tuple[str, dict[str, Any]]]:
    """OGBench's sets, with and without their version."""
    content = table("ogbench")
    for task, types in content["datasets"].items():
        for name in (f"{task}-{kind}" for kind in types):
            spec = EnvironmentSpec(f"{task}-v0")
            made = content["experts"].get(name)
            fields: dict[str, Any] = {"task": task, "ogbench_file": f"{name}-v0.npz"}
            yield f"{name}-v0", {**fields, "environments": {"ogbench": spec}}
            environments = {"ogbench": spec}
            if made is not None:
                fields |= {"expert": made["expert"], "expert_arguments": made.get("arguments", {})}
                environments["bundled"] = EnvironmentSpec(spec.id, made.get("kwargs", {}))
            yield name, {**fields, "environments": environments}


def _facts(task: str) -> dict[str, Any]:
    """What a family's file says of all levels of a task."""
    for family in FAMILIES:
        if facts := table(family)["tasks"].get(task):
            return _fields({name: value for name, value in facts.items() if name != "behaviours"}, "", {})
    return {}


def _task(name: str) -> str:
    """The task of a D4RL id without its version."""
    found = re.match(r"(bullet|flow)-\w+|\w+", name)
    return found[0] if found else name


def _by_beginning(known: Mapping[str, Any], name: str) -> Any:
    return next((value for beginning, value in known.items() if name.startswith(beginning)), None)


def _spec(saved: Mapping[str, Any]) -> EnvironmentSpec:
    wrappers = tuple(map(Wrapper, saved.get("wrappers", ())))
    return EnvironmentSpec(saved["id"], saved.get("kwargs", {}), saved.get("limit"), wrappers)
