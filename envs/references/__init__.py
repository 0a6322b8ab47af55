"""Which returns a normalised score is measured against, and why those.

First those that a dataset records, then the tables beside this file, then none. A table serves only where id, package,
arguments, wrappers and time limit are its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import gymnasium as gym

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import Reference
from aaren_rl.envs.environments import OWN_PACKAGES, limit_of, register, registered_limit, registering_package
from aaren_rl.envs.references import atari
from aaren_rl.errors import InvalidInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Found(NamedTuple):
    """What normalised scores are measured against.

    Attributes:
        reference: None for none.
        reason: one sentence: why that one, or why none.
    """

    reference: Reference | None
    reason: str


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        reference: the returns.
        environment: id, arguments and time limit that they are of.
        package: root module that registers the id.
        ends_itself: True if every episode ends within the limit, whether there is one or not.
        source: what the numbers are of, for the reason.
    """

    reference: Reference
    environment: EnvironmentSpec
    package: str
    ends_itself: bool
    source: str


def find_reference(
    environment: EnvironmentSpec | None, recorded: Reference | None = None, recorded_in: EnvironmentSpec | None = None
) -> Found:
    """The returns that scores in an environment are measured against.

    Args:
        environment: that is acted in; None for none.
        recorded: returns that the dataset records; None for none.
        recorded_in: environment that the recorded returns are of: the dataset's for evaluation.
    """
    if environment is None:
        return Found(None, "none: nothing is rolled out")
    other = ""
    if recorded is not None:
        if recorded_in is not None and same_environment(environment, recorded_in):
            return Found(recorded, "recorded with the dataset")
        other = f"; those that the dataset records are of {recorded_in or 'an environment that it does not name'}"
    found = _in_tables(environment)
    return Found(found.reference, found.reason + other)


def reference_of(environment: EnvironmentSpec) -> Reference | None:
    """The reference of an environment that the tables have; None for none."""
    return find_reference(environment).reference


def same_environment(one: EnvironmentSpec, other: EnvironmentSpec, limits: bool = True) -> bool:
    """True if two specs mean the same: id, arguments, wrappers and limit, whether they are written or registered.

    Args:
        one: a spec.
        other: another.
        limits: False leaves their time limits out.
    """
    if one.registered_id != other.registered_id or one.wrappers != other.wrappers:
        return False
    packages = [spec.package for spec in (one, other) if spec.package not in OWN_PACKAGES]
    return (
        len(set(filter(None, packages))) < 2
        and arguments_of(one) == arguments_of(other)
        and (not limits or limit_of(one) == limit_of(other))
    )


def arguments_of(spec: EnvironmentSpec) -> dict[str, Any]:
    """Arguments of an environment, those that its id is registered with among them."""
    registered = gym.registry.get(spec.registered_id)
    return {**(registered.kwargs if registered else {}), **spec.kwargs}


@cache
def rows() -> tuple[Row, ...]:
    """All lines of the tables by environment; Atari's are in `aaren_rl.envs.references.atari`."""
    return (*_own(), *_experts(), *_d4rl())


def _in_tables(spec: EnvironmentSpec) -> Found:
    named = [row for row in rows() if row.environment.registered_id == spec.registered_id]
    game = atari.game_of(spec)
    unlike = next((one["why"] for one in _table("d4rl")["unlike"] if re.match(one["ids"], spec.registered_id)), None)
    if named or game:
        try:
            register(spec)
        except InvalidInput as error:
            return Found(None, f"none: {error}")
    for row in named:
        if _is_of(row, spec):
            return Found(row.reference, row.source)
    if game is not None:
        return Found(*atari.find(spec, game, arguments_of(spec), _table("atari")))
    if unlike is not None:
        return Found(None, f"none: {spec.registered_id} is not D4RL's environment: {unlike}")
    if named:
        known = " or ".join(dict.fromkeys(f"{row.reference.name} has {_words(row)}" for row in named))
        return Found(None, f"none: {known}, and this is {_with_limit(spec)}")
    return Found(None, f"none: no table has {spec.registered_id}")


def _is_of(row: Row, spec: EnvironmentSpec) -> bool:
    """True if an environment is the one that a line is of."""
    known = row.environment
    limit = spec.max_episode_steps or registered_limit(spec.registered_id)
    packages = OWN_PACKAGES if row.package in OWN_PACKAGES else {row.package}
    return (
        registering_package(spec.registered_id) in packages
        and spec.package in (None, *packages)
        and not spec.wrappers
        and arguments_of(spec) == arguments_of(known)
        and (limit == limit_of(known) or (limit is None and row.ends_itself))
    )


def _own() -> Iterator[Row]:
    table = _table("own")
    for line in table["environments"]:
        spec = EnvironmentSpec(line["id"], line["kwargs"], line["limit"])
        reference = Reference(table["name"], line["random"], line["expert"])
        yield Row(reference, spec, "aaren_rl", True, f"by the rules of {spec.registered_id}")


def _experts() -> Iterator[Row]:
    table = _table("experts")
    for line in table["environments"]:
        reference = Reference(table["name"], line["random"], line["expert"])
        source = f"this project's random and scripted actions in {line['id']}, {line['episodes']} episodes each"
        spec = EnvironmentSpec(line["id"], line.get("kwargs", {}), line.get("limit"))
        yield Row(reference, spec, line.get("package", "gymnasium"), False, source)


def _d4rl() -> Iterator[Row]:
    table = _table("d4rl")
    returns = table["returns"]
    for name, (random, expert) in returns.items():
        reference = Reference(f"D4RL {name.rpartition('-')[2]}", random, expert)
        # The limit is the one that D4RL registers.
        yield Row(reference, EnvironmentSpec(name), "d4rl", False, f"D4RL's table for {name}")
    for kin in table["kin"]:
        reference = Reference(kin["name"], *returns[kin["of"]])
        for line in kin["environments"]:
            spec = EnvironmentSpec(line["id"], line.get("kwargs", {}), kin["limit"])
            source = f"D4RL's table for {kin['of']}, whose environment lives on as {spec.registered_id}"
            yield Row(reference, spec, kin["package"], False, source)


def _words(row: Row) -> str:
    package = "" if row.package in OWN_PACKAGES else f" of {row.package}"
    return f"{row.environment}{package}"


def _with_limit(spec: EnvironmentSpec) -> str:
    """A spec in words, its package and its registered limit among them."""
    package = registering_package(spec.registered_id)
    of = "" if package in (None, *OWN_PACKAGES) else f" of {package}"
    limit = registered_limit(spec.registered_id)
    return f"{spec}{of}" if spec.max_episode_steps or not limit else f"{spec}, limit {limit} steps{of}"


@cache
def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("aaren_rl.envs.references") / f"{name}.toml").read_text("utf-8"))
