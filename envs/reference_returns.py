"""Measures the returns that scores are held against: of random actions, and of what makes a dataset."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.baselines import random_actor
from aaren_rl.envs.catalogue import Entry
from aaren_rl.envs.collect import recipe_of
from aaren_rl.envs.environments import registering_package
from aaren_rl.envs.recording_roll_out import Amount, roll_out
from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Returns:
    """Returns in one environment.

    Attributes:
        name: of the dataset.
        environment: where they are from.
        made_by: who acted for `behaviour`, in words.
        random: of uniformly random actions, (episodes,).
        behaviour: of what makes the dataset, (episodes,).
    """

    name: str
    environment: EnvironmentSpec
    made_by: str
    random: npt.NDArray[np.float64]
    behaviour: npt.NDArray[np.float64]


def measure(entry: Entry, episodes: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Returns:
    """Rolls random actions and an entry's behaviours or expert out.

    Args:
        entry: of the catalogue.
        episodes: number of episodes of each.
        seed: of the environments, and of all that is drawn.
        progress: called with numbers of episodes done.

    Raises:
        InvalidInput: nothing here makes the entry's data, they are not collected as an agent is evaluated, or a part of
            the environment's actions is not bounded.
    """
    if entry.evaluation is not None or entry.environments["bundled"].wrappers:
        raise InvalidInput(
            f"{entry.name} is collected otherwise than it is evaluated, or in a wrapped environment; no table of "
            "references is of such"
        )
    recipe, amount = recipe_of(entry), Amount(episodes, "episodes")
    stream = (zlib.crc32(recipe.stream.encode()), seed)

    def returns(players: Any) -> npt.NDArray[np.float64]:
        made = roll_out(recipe.environment, players, amount, stream, progress)
        return np.array([episode.rewards.sum(dtype=np.float64) for episode in made])

    random = returns(random_actor(recipe.environment).policies)
    return Returns(entry.name, recipe.environment, recipe.made_by, random, returns(recipe.players))


def to_toml(found: list[Returns]) -> str:
    """Rows of a table of references (`envs/references/experts.toml`), whose `expert` is what makes the dataset.

    Raises:
        InvalidInput: what makes a dataset is no better than random actions, so no score can be held against it.
    """
    rows = []
    for one in found:
        if not one.behaviour.mean() > one.random.mean():
            raise InvalidInput(
                f"{one.name}: {one.made_by} returns {one.behaviour.mean():.4g} on average, random actions "
                f"{one.random.mean():.4g}; a score needs more than random ones"
            )
        spec, package = one.environment, registering_package(one.environment.registered_id)
        rows.append(
            {
                "id": spec.registered_id,
                **({} if package in (None, "gymnasium") else {"package": package}),
                **({"kwargs": spec.kwargs} if spec.kwargs else {}),
                **({} if spec.max_episode_steps is None else {"limit": spec.max_episode_steps}),
                "random": _rounded(one.random),
                "expert": _rounded(one.behaviour),
                "episodes": len(one.random),
            }
        )
    return tomli_w.dumps({"environments": rows})


def _rounded(returns: npt.NDArray[np.float64]) -> float:
    return float(f"{returns.mean():.4g}")
