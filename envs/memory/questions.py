"""Base of the memory tasks that show a sequence and ask about it at many of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int64]

NO_QUESTION = -1
"""Answer of a step at which no answer counts."""


class Questions(gym.Env[Any, np.int64]):
    """A sequence shown step by step, with questions about what was shown so far.

    The last step alone is rewarded, with the share of right answers among those that count. So the return is the
    accuracy: exactly 1 if all answers are right, and `chance` on average for random ones. Before that step neither
    reward nor return-to-go tells an agent whether an answer was right. No action changes what is shown.

    Subclasses draw the sequence and the right answers of an episode in `_draw`.

    Args:
        length: steps of an episode.
        answers: number of possible answers; actions are `Discrete(answers)`.
    """

    def __init__(self, length: int, answers: int) -> None:
        self.length = length
        self.action_space = gym.spaces.Discrete(answers)
        self.chance = 1 / answers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draws the sequence, and shows its first entry."""
        super().reset(seed=seed)
        self._shown, self._answers = self._draw()
        self._step = self._right = 0
        return self._shown[0], {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes the answer, and shows the next entry."""
        # No action is NO_QUESTION, so a step without a question counts nothing.
        self._right += int(action == self._answers[self._step])
        self._step += 1
        ended = self._step == self.length
        reward = self._right / int((self._answers != NO_QUESTION).sum()) if ended else 0.0
        return self._shown[self._step], reward, ended, False, {}

    def expert_action(self, observations: Sequence[Any]) -> np.int64:
        """The right answer after the observations of an episode so far; 0 while no answer counts."""
        raise NotImplementedError

    def _draw(self) -> tuple[Whole, Whole]:
        """Observations of an episode, (length + 1, ...), and its right answers, (length,), `NO_QUESTION` for none."""
        raise NotImplementedError
