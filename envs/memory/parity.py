"""Parity of all bits so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from aaren_rl.envs.memory.arguments import require_whole
from aaren_rl.envs.memory.questions import Questions, Whole


class Parity(Questions):
    """Asks at every step for the parity of all bits so far (state tracking; Merrill et al. 2024, arXiv 2404.08819).

    Each observation shows a random bit. The action is 1 if the number of ones so far, the present bit included, is odd.
    Rewards and return are those of `Questions`; chance is 1/2.

    An agent that sees its previous action needs no memory here: that action is the parity before the present bit. Train
    with `--previous-action False` to ask for memory.

    Observations and actions: `Discrete(2)`.

    Args:
        length: steps of an episode.

    Raises:
        InvalidInput: length is not a whole number, or below 1.
    """

    def __init__(self, length: int = 64) -> None:
        require_whole(length=length)
        super().__init__(length, 2)
        self.observation_space = gym.spaces.Discrete(2)

    def expert_action(self, observations: Sequence[Any]) -> np.int64:
        """See `Questions`."""
        return np.int64(np.sum(observations) % 2)

    def _draw(self) -> tuple[Whole, Whole]:
        bits = self.np_random.integers(2, size=self.length + 1)
        return bits, bits[:-1].cumsum() % 2
