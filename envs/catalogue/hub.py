"""Minari's hub: which datasets it has, and how many of them this project's spaces and packages cover."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from aaren_rl.envs import packages
from aaren_rl.envs.catalogue.tables import text
from aaren_rl.envs.environments import OWN_PACKAGES
from aaren_rl.envs.wrappers import REBUILT

OBSERVED = frozenset({"Box", "Image", "Discrete", "MultiDiscrete", "MultiBinary", "Text"})
"""Parts of observations that a model takes in."""
ACTED = frozenset({"Box", "Discrete", "MultiDiscrete", "MultiBinary"})
"""Parts of actions that a model gives out."""

RENAMED = {"BabyAI-GoToObjS6-v0": "BabyAI-GoToObjS6-v1"}
"""Ids that data record and that their package does not register any more (minigrid 3.2), by the one that succeeds."""

FAMILIES = {
    "mujoco": "MuJoCo",
    "D4RL/antmaze": "D4RL, mazes",
    "D4RL/pointmaze": "D4RL, mazes",
    "D4RL/door": "D4RL, hands",
    "D4RL/hammer": "D4RL, hands",
    "D4RL/pen": "D4RL, hands",
    "D4RL/relocate": "D4RL, hands",
    "D4RL/kitchen": "D4RL, kitchen",
    "D4RL/minigrid": "D4RL, four rooms",
    "minigrid": "BabyAI",
    "atari": "Atari",
    "metaworld": "Meta-World",
    "webagents": "web agents",
}


@dataclass(frozen=True)
class Listed:
    """A dataset on the hub, as Minari's documentation describes it.

    Attributes:
        id: on the hub.
        documentation: "stable", or "development" for those that the released version's documentation lacks.
        observations: spaces of the parts, as "Dict(Discrete, Image, Text)".
        actions: likewise.
        environment: Gymnasium id; "-" where none is recorded.
        package: root module of its class; "-" likewise.
        wrappers: names of its wrappers.
    """

    id: str
    documentation: str
    observations: str
    actions: str
    environment: str
    package: str
    wrappers: tuple[str, ...]

    @property
    def task(self) -> str:
        """Name of its task in the catalogue."""
        family, *rest = self.id.split("/")
        task = _kebab(rest[0]) if rest[1:] else rest[0].rpartition("-")[0]
        return f"metaworld-{task}" if family == "metaworld" else task

    @property
    def name(self) -> str:
        """Its name in the catalogue."""
        level = self.id.split("/")[-1].rpartition("-")[0]
        if self.id.startswith("minigrid/"):
            # The bot's data are BabyAI's only ones.
            level = level.removeprefix("optimal").removeprefix("-")
        return self.task if level in ("", self.task) else f"{self.task}-{level}"

    @property
    def family(self) -> str:
        """Family of environments, in words."""
        return next(words for beginning, words in FAMILIES.items() if self.id.startswith(f"{beginning}/"))

    @property
    def has_known_spaces(self) -> bool:
        """True if a model takes its observations in and gives its actions out."""
        return _parts(self.observations) <= OBSERVED and _parts(self.actions) <= ACTED

    @property
    def has_known_environment(self) -> bool:
        """True if its environment and wrappers come from this project's packages, so that agents act in it.

        Where an id was renamed, they act in it only once the user names it.
        """
        if self.family == "Meta-World":
            # The data record no environment; the catalogue names it.
            return True
        wrapped = all(name in REBUILT or packages.has_wrapper(self.package, name) for name in self.wrappers)
        known = self.package in OWN_PACKAGES or packages.needed(self.environment, self.package) is not None
        return wrapped and known and self.environment not in RENAMED


@cache
def listing() -> tuple[Listed, ...]:
    """All datasets of minari-hub.tsv."""
    return tuple(_listed(*line.split("\t")) for line in text("minari-hub.tsv").splitlines() if line[0] != "#")


def newest() -> list[Listed]:
    """The newest version of each dataset."""
    return list({listed.id.rpartition("-v")[0]: listed for listed in listing()}.values())


def coverage(documentation: str = "stable") -> dict[str, Counter[str]]:
    """How many datasets of each family are covered: "sets", "spaces" known, "environment" known, "covered" by both.

    Args:
        documentation: "stable" or "development".
    """
    found: dict[str, Counter[str]] = {}
    for listed in listing():
        if listed.documentation == documentation:
            spaces, environment = listed.has_known_spaces, listed.has_known_environment
            found.setdefault(listed.family, Counter()).update(
                {"sets": 1, "spaces": +spaces, "environment": +environment, "covered": +(spaces and environment)}
            )
    return found


def as_markdown(found: dict[str, Counter[str]]) -> str:
    """A table of the coverage by family, with a line for all of them."""
    total: Counter[str] = Counter()
    for counts in found.values():
        total.update(counts)
    lines = ["| family | sets | spaces | environment | covered |", "|---|---|---|---|---|"]
    for family, counts in (*found.items(), ("all", total)):
        share = 100 * counts["covered"] / counts["sets"]
        lines.append(
            f"| {family} | {counts['sets']} | {counts['spaces']} | {counts['environment']} | {counts['covered']} "
            f"({share:.0f}%) |"
        )
    return "\n".join(lines)


def _listed(
    id: str, documentation: str, observations: str, actions: str, environment: str, package: str, wrappers: str
) -> Listed:
    names = () if wrappers == "-" else tuple(wrappers.split(","))
    return Listed(id, documentation, observations, actions, environment, package, names)


def _parts(space: str) -> set[str]:
    inside = re.fullmatch(r"Dict\((.*)\)", space)
    return set((inside[1] if inside else space).split(", "))


def _kebab(name: str) -> str:
    """A name in small letters with hyphens, as babyai-go-to-red-ball for BabyAI-GoToRedBall."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Z][a-z])", "-", name.replace("BabyAI", "babyai"))
    return words.lower()
