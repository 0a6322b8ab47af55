"""popgym's RepeatPrevious, with continuous observations and actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.errors import InvalidInput

REPEAT_PREVIOUS = "aaren/RepeatPrevious-v0"
SUITS = 4


class RepeatPrevious(gym.Env[Floats, Floats]):
    """Asks at every step for the suit of an earlier card (popgym: Morad et al. 2023, arXiv 2303.01859).

    Each observation shows the next card of shuffled decks. The action names the suit of the k-th last card, counting
    the present one as the first. Rules and rewards are popgym's: with n cards, n - k answers count, and each gains or
    costs 1 / (n - k). The return is 1 if all are right, and -1/2 on average for random answers.

    Observations (4,): the suit, one-hot. Actions (4,), in [-1, 1]: the greatest component names the suit.

    Args:
        decks: number of decks of 52 cards; an episode has 52 x decks - 1 steps.
        k: place of the asked card, counted from the present one.

    Raises:
        InvalidInput: popgym is not installed, or decks or k do not fit.
    """

    def __init__(self, decks: int = 1, k: int = 4) -> None:
        for name, value in (("decks", decks), ("k", k)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"{name} is {value!r}; expected a whole number, at least 1")
        if k >= 52 * decks:
            raise InvalidInput(f"k is {k} with {52 * decks} cards; expected fewer than the cards")
        try:
            from popgym.envs import repeat_previous
        except ImportError as error:
            raise InvalidInput(f"{error}; in a clone: .venv/bin/pip install '.[popgym]'") from error
        self.k = k
        self._game = repeat_previous.RepeatPrevious(decks, k)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (SUITS,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (SUITS,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Shuffles the decks and shows the first card."""
        super().reset(seed=seed)
        suit, _ = self._game.reset(seed=seed)
        return self._one_hot(suit), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Takes the answer and shows the next card."""
        suit, reward, terminated, truncated, _ = self._game.step(int(np.argmax(action)))
        return self._one_hot(suit), float(reward), terminated, truncated, {}

    def expert_action(self, observations: Sequence[Floats]) -> Floats:
        """The right action after the observations of an episode so far; 0 while no answer counts."""
        if len(observations) < self.k:
            return np.zeros(SUITS, dtype=np.float32)
        return np.asarray(2 * observations[-self.k] - 1, dtype=np.float32)

    def _one_hot(self, suit: int) -> Floats:
        observation = np.zeros(SUITS, dtype=np.float32)
        observation[suit] = 1.0
        return observation
