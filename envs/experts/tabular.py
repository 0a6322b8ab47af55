"""Plays environments that hold a table of their transitions: Taxi, FrozenLake, CliffWalking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.envs.experts.expert import Env, game_of

DISCOUNT = 0.999
"""Close to 1, so that the shortest of several ways is the best one."""


class Tabular:
    """Follows the best action of each state, by value iteration on the environment's own table."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.best = _best_actions(game_of(env).P)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        return int(self.best[int(observation)])


def _best_actions(table: Mapping[int, Mapping[int, list[tuple[float, int, float, bool]]]]) -> np.ndarray:
    """The best action of each state, (states,).

    Args:
        table: for each state and action, what may follow: probability, next state, reward, whether the episode ends.
    """
    rows = [(s, a, *outcome) for s, actions in table.items() for a, outcomes in actions.items() for outcome in outcomes]
    state, action, probability, following, reward, ends = (np.array(column) for column in zip(*rows, strict=True))
    values, expected = np.zeros(len(table)), np.zeros((len(table), int(action.max()) + 1))
    change = np.inf
    while change > 1e-9:
        expected[:] = 0.0
        np.add.at(expected, (state, action), probability * (reward + DISCOUNT * ~ends.astype(bool) * values[following]))
        change = np.abs(expected.max(1) - values).max()
        values = expected.max(1)
    return np.asarray(expected.argmax(1))
