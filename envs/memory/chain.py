"""Retention: the first observation determines the right action any number of steps later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.memory.arguments import require_whole
from aaren_rl.errors import InvalidInput


class MemoryChain(gym.Env[Floats, Floats]):
    """Bits, a chain without information, and a question about one of the bits.

    After bsuite's memory_len and memory_size (Osband et al. 2020, arXiv 1908.03568, appendix A), with Box actions and
    rewards of 0 and 1. The first observation shows all bits; `length` steps later an observation names one of them, and
    the sign of the next action must be the sign of that bit. Earlier actions do not count, and all bits give the same
    return. Without memory, half of the answers are right.

    Observations (2 x bits,): the bits, -1 or 1, at the first step and 0 after it; then a 1 at the place of the named
    bit, at the last step alone. Actions (1,), in [-1, 1]; 0 is no answer. The right answer has reward 1. The episode
    ends with the answer, after length + 1 steps.

    Args:
        bits: number of bits.
        shortest: least length.
        longest: greatest length; each reset draws a length between the two.

    Raises:
        InvalidInput: not whole numbers, below 1, or shortest above longest.
    """

    chance = 0.5
    """Mean return of random answers."""

    def __init__(self, bits: int = 4, shortest: int = 1, longest: int = 150) -> None:
        require_whole(bits=bits, shortest=shortest, longest=longest)
        if shortest > longest:
            raise InvalidInput(f"lengths from {shortest} to {longest}; expected shortest to be at most longest")
        self.bits, self.shortest, self.longest = bits, shortest, longest
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2 * bits,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Draws bits, length and question."""
        super().reset(seed=seed)
        self._shown = (2 * self.np_random.integers(2, size=self.bits) - 1).astype(np.float32)
        self._left = int(self.np_random.integers(self.shortest, self.longest, endpoint=True))
        self._asked = int(self.np_random.integers(self.bits))
        observation = self._blank()
        observation[: self.bits] = self._shown
        return observation, {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Moves along the chain; at its end, the action is the answer."""
        observation = self._blank()
        if self._left == 0:
            right = np.sign(np.asarray(action).item()) == self._shown[self._asked]
            return observation, float(right), True, False, {}
        self._left -= 1
        if self._left == 0:
            observation[self.bits + self._asked] = 1.0
        return observation, 0.0, False, False, {}

    def expert_action(self, observations: Sequence[Floats]) -> Floats:
        """The right action after the observations of an episode so far: 0, and at the end the named bit."""
        shown, question = observations[0][: self.bits], observations[-1][self.bits :]
        # Adding 0 turns -0, whose sign would show the bit, into 0.
        return np.array([shown @ question + 0.0], dtype=np.float32)

    def _blank(self) -> Floats:
        return np.zeros(2 * self.bits, dtype=np.float32)


class PassiveTMaze(MemoryChain):
    """A T-maze that moves the agent along the corridor (Ni et al. 2023, arXiv 2307.03864, section 4).

    The first observation is a cue, -1 or 1. A corridor leads to the junction, where the sign of the action must be the
    sign of the cue. That is a memory chain of one bit: observations (2,) are the cue, at the first step alone, and a 1
    at the junction. They do not show the position.

    Args:
        shortest: least number of steps from the cue to the junction.
        longest: greatest number; each reset draws a number between the two.

    Raises:
        InvalidInput: as `MemoryChain`.
    """

    def __init__(self, shortest: int = 1, longest: int = 150) -> None:
        super().__init__(1, shortest, longest)
