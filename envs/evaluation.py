"""How actors are evaluated, and the result file."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from aaren_rl.actor import Actor, Target
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import Reference
from aaren_rl.envs import success
from aaren_rl.envs.environments import limit_of, limits_itself, make_vector, time_limit
from aaren_rl.envs.episodes import Episodes
from aaren_rl.envs.rollout import roll_out
from aaren_rl.errors import InvalidInput
from aaren_rl.folders import alone_in, replace_file

INSTANCES = 25
"""Environments that are open at once unless something else is asked for; each plays its share of the episodes."""

PACKAGES = ("aaren-rl", "torch", "gymnasium", "mujoco", "minari", "numpy")


UNLIMITED = 100_000
"""Steps after which an episode is taken to have no end, in an environment without a time limit."""

LIMITS_ITSELF = 1_000_000
"""The same in an environment that limits its episodes itself: Atari's end after 108,000 frames."""


@dataclass(frozen=True)
class Protocol:
    """How an actor is evaluated; the result holds all of it.

    Attributes:
        environment: the environment to act in.
        episodes: number of episodes.
        seed: row i of the vector environment is seeded with seed + i.
        target_return: return to ask for, or "auto"; None for actors that take none.
        reference: returns for the normalised score; None without a table.
        instances: largest number of environments that are open at once. Their number determines which seeds are
            played.
        processes: processes that the environments are spread over; 1 for this process alone, more for as many worker
            processes, never more than there are instances. Episodes are the same either way.
        reference_reason: one sentence: why that reference, or why none; None where nobody asked.

    Raises:
        InvalidInput: the number of episodes, of instances or of processes is below 1.
    """

    environment: EnvironmentSpec
    episodes: int
    seed: int
    target_return: Target | None
    reference: Reference | None
    instances: int = INSTANCES
    processes: int = 1
    reference_reason: str | None = None

    def __post_init__(self) -> None:
        for name in ("episodes", "instances", "processes"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{getattr(self, name)} {name}; expected at least 1")

    @property
    def rows(self) -> int:
        """Rows of the vector environment."""
        return min(self.instances, self.episodes)

    def to_json(self) -> dict[str, Any]:
        """The protocol in JSON's types, as results hold it."""
        return {
            "episodes": self.episodes,
            "instances": self.instances,
            "processes": self.processes,
            "seeds": [self.seed + row for row in range(self.rows)],
            "target": self.target_return,
            "environment": self.environment.id,
            "environment_kwargs": self.environment.kwargs,
            "max_episode_steps": limit_of(self.environment),
            "time_limit": time_limit(self.environment),
            "wrappers": list(map(str, self.environment.wrappers)),
            "reference": self.reference.name if self.reference else None,
            "reference_reason": self.reference_reason,
        }


def evaluate(
    actor: Actor, protocol: Protocol, progress: Callable[[int], object] = lambda done: None, record: bool = False
) -> Episodes:
    """Rolls an actor out as the protocol says; all environments are closed afterwards, whatever happened.

    Args:
        actor: to roll out.
        protocol: says where, and how often.
        progress: called with the number of episodes done since the last call.
        record: keeps the episodes as well as their returns.

    Raises:
        EpisodeFailed: an environment cannot be made, fails, or returns what nobody can act on.
        InvalidInput: there is no such environment, or the actor refuses to act.
    """
    envs = make_vector(protocol.environment, protocol.rows, protocol.processes)
    try:
        longest = _longest(protocol.environment)
        asked = protocol.episodes, protocol.target_return, protocol.seed
        rule = success.rule_of(protocol.environment, envs.single_observation_space)
        return roll_out(actor, envs, *asked, progress, record, longest, rule)
    finally:
        envs.close()


def _longest(environment: EnvironmentSpec) -> int | None:
    """Steps after which an episode is taken to have no end; None where Gymnasium truncates it."""
    if limit_of(environment) is not None:
        return None
    return LIMITS_ITSELF if limits_itself(environment) else UNLIMITED


def result(episodes: Episodes, protocol: Protocol, **about: Any) -> dict[str, Any]:
    """The result of an evaluation, ready for JSON.

    Args:
        episodes: the episodes of the evaluation.
        protocol: the protocol that they follow.
        **about: further entries (source, dataset, checkpoint, ...).

    Returns:
        Mean, standard deviation and 95% confidence interval of the return over episodes; mean and interval as
        normalised scores (0 = random, 100 = expert of the reference; None without one); the share of episodes that
        reached the goal, with its interval and the rule (None where the environment does not say); and the whole
        protocol.
    """
    mean, interval = float(episodes.returns.mean()), confidence_interval(episodes.returns, protocol.seed)
    reference = protocol.reference
    succeeded = None if episodes.success is None else int(episodes.success.sum())
    count = len(episodes.returns)
    return {
        "normalized_score": reference.score(mean) if reference else None,
        "ci95": [reference.score(bound) for bound in interval] if reference and interval else None,
        "mean": mean,
        "std": float(episodes.returns.std()),
        "ci95_return": list(interval) if interval else None,
        "success_rate": None if succeeded is None else succeeded / count,
        "success_ci95": None if succeeded is None else list(success_interval(succeeded, count)),
        "success_rule": episodes.success_rule,
        "mean_length": float(episodes.lengths.mean()),
        "mean_per_step": float(episodes.returns.sum() / episodes.lengths.sum()),
        **protocol.to_json(),
        **about,
        "versions": versions(),
        "returns": episodes.returns.round(3).tolist(),
        "lengths": episodes.lengths.tolist(),
        "successes": None if episodes.success is None else episodes.success.tolist(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on a result."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def write_result(folder: Path, figures: dict[str, Any]) -> Path:
    """Writes result.json into a run's folder; earlier ones are kept as result-1.json, result-2.json, and so on.

    Of several processes that do so at once, each keeps what the others wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    with alone_in(folder):
        if path.exists():
            numbers = itertools.count(1)
            path.rename(next(kept for number in numbers if not (kept := folder / f"result-{number}.json").exists()))
        replace_file(path, json.dumps(figures, indent=2) + "\n")
    return path


def confidence_interval(returns: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """95% percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13); None for one episode."""
    if len(returns) < 2:
        return None
    if np.ptp(returns) == 0:
        return float(returns[0]), float(returns[0])
    # Imported late, since the import takes seconds that every command line would wait for.
    from scipy.stats import bootstrap

    found = bootstrap((returns,), np.mean, confidence_level=0.95, method="percentile", rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95% interval of a success rate (Wilson 1927), which also holds at rates of 0 and 1.

    Raises:
        InvalidInput: the number of episodes is below 1, or the number of successes is not between 0 and it.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise InvalidInput(
            f"{successes} successes in {episodes} episodes; expected at least 1 episode, and 0 to {episodes} successes"
        )
    from scipy.stats import binomtest

    found = binomtest(successes, episodes).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)
