"""Recall of values by their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from aaren_rl.envs.memory.arguments import require_whole
from aaren_rl.envs.memory.questions import NO_QUESTION, Questions, Whole
from aaren_rl.errors import InvalidInput

QUESTION = 0
"""Stands in the place of the value where a key is asked for."""


class AssociativeRecall(Questions):
    """Binds keys to values, then asks for the value that a key was bound to last (Arora et al. 2023, arXiv 2312.04927).

    The first half of the steps, rounded down, shows a key and its value each: first every key once, in random order,
    then random keys with new values, which replace the old ones. Each later step shows a random key alone, and the
    action names its value. So twice the length binds as many keys, more often. In the paper nothing is bound twice, and
    a key and its value are two tokens. Rewards and return are those of `Questions`; chance is 1 / values.

    Observations: `MultiDiscrete([pairs, values + 1])`, the key, and its value counted from 1 or a 0 that asks. Actions:
    `Discrete(values)`, the value counted from 0.

    Args:
        pairs: number of keys.
        values: number of values.
        length: steps of an episode.

    Raises:
        InvalidInput: not whole numbers, too small, or a length below 2 x pairs.
    """

    def __init__(self, pairs: int = 4, values: int = 4, length: int = 32) -> None:
        require_whole(pairs=pairs, length=length)
        require_whole(2, values=values)
        if length < 2 * pairs:
            raise InvalidInput(f"length is {length} with {pairs} pairs; expected at least 2 x pairs")
        super().__init__(length, values)
        self.pairs, self.values = pairs, values
        self.observation_space = gym.spaces.MultiDiscrete([pairs, values + 1])

    def expert_action(self, observations: Sequence[Any]) -> np.int64:
        """See `Questions`."""
        asked, value = observations[-1]
        if value != QUESTION:
            return np.int64(0)
        return next(np.int64(bound - 1) for key, bound in reversed(observations) if key == asked and bound != QUESTION)

    def _draw(self) -> tuple[Whole, Whole]:
        bindings = self.length // 2
        more = self.np_random.integers(self.pairs, size=self.length + 1 - self.pairs)
        keys = np.concatenate([self.np_random.permutation(self.pairs), more])
        values = self.np_random.integers(self.values, size=bindings)
        bound = np.empty(self.pairs, dtype=np.int64)
        for key, value in zip(keys[:bindings], values, strict=True):
            bound[key] = value
        shown = np.stack([keys, np.full(self.length + 1, QUESTION)], 1)
        shown[:bindings, 1] = values + 1
        return shown, np.concatenate([np.full(bindings, NO_QUESTION), bound[keys[bindings:-1]]])
