"""Recall at an exact age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from aaren_rl.envs.memory.arguments import require_whole
from aaren_rl.envs.memory.questions import NO_QUESTION, Questions, Whole
from aaren_rl.errors import InvalidInput


class Recall(Questions):
    """Asks at every step for an earlier symbol, as popgym's RepeatPrevious (Morad et al. 2023, arXiv 2303.01859).

    Each observation shows a symbol, drawn independently of the others (popgym deals decks of cards). The action names
    the k-th last symbol, counting the present one as the first: it was shown k - 1 steps before. The first k - 1
    answers do not count. Rewards and return are those of `Questions`; chance is 1 / symbols.

    Observations and actions: `Discrete(symbols)`.

    Args:
        k: place of the asked symbol, counted from the present one.
        length: steps of an episode.
        symbols: number of symbols.

    Raises:
        InvalidInput: not whole numbers, too small, or k above length.
    """

    def __init__(self, k: int = 4, length: int = 64, symbols: int = 4) -> None:
        require_whole(k=k, length=length)
        require_whole(2, symbols=symbols)
        if k > length:
            raise InvalidInput(f"k is {k} in episodes of {length} steps; expected length to be at least k")
        super().__init__(length, symbols)
        self.k, self.symbols = k, symbols
        self.observation_space = gym.spaces.Discrete(symbols)

    def expert_action(self, observations: Sequence[Any]) -> np.int64:
        """See `Questions`."""
        return np.int64(observations[-self.k]) if len(observations) >= self.k else np.int64(0)

    def _draw(self) -> tuple[Whole, Whole]:
        shown = self.np_random.integers(self.symbols, size=self.length + 1)
        none = np.full(self.k - 1, NO_QUESTION)
        return shown, np.concatenate([none, shown[: self.length - self.k + 1]])
