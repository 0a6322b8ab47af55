"""popgym's memory games, which ship no experts: players that remember what they saw, and the player of each game."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from aaren_rl.envs.experts.board_games import Battleship, Concentration, MineSweeper
from aaren_rl.envs.experts.classic import CartPole, Pendulum
from aaren_rl.envs.experts.expert import Env, Policy, game_of

RANKS = 13
PLAYING = 0
"""Autoencode's word for its second half."""


class Remembering:
    """A player that keeps the observations of its episode."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)
        self.rng = rng

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.seen: list[Any] = []

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        self.seen.append(observation)
        return int(self.answer(taken))

    def answer(self, taken: Any) -> int:
        """The action after `seen`, whose last entry is the present observation."""
        raise NotImplementedError


class RepeatFirst(Remembering):
    """Names the suit of the first card."""

    def answer(self, taken: Any) -> int:
        """See `Remembering`."""
        return int(self.seen[0])


class RepeatPrevious(Remembering):
    """Names the suit of the k-th last card; 0 while no answer counts."""

    def answer(self, taken: Any) -> int:
        """See `Remembering`."""
        return int(self.seen[-self.game.k]) if len(self.seen) >= self.game.k else 0


class Autoencode(Remembering):
    """Names the suits of the cards that were shown, the last one first; 0 while they are shown."""

    def answer(self, taken: Any) -> int:
        """See `Remembering`."""
        playing = [mode == PLAYING for mode, _ in self.seen]
        if not playing[-1]:
            return 0
        # The first observation of the second half shows the last card.
        last = playing.index(True)
        return int(self.seen[2 * last + 1 - len(self.seen)][1])


class CountRecall(Remembering):
    """Counts the cards of the value that is asked for."""

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        super().reset(observation, info)
        self.counts: Counter[int] = Counter()

    def answer(self, taken: Any) -> int:
        """See `Remembering`."""
        value, query = map(int, self.seen[-1])
        self.counts[value] += 1
        return self.counts[query]


class HigherLower(Remembering):
    """Says "higher" (0) where more of the cards that are left are higher than the present one than lower."""

    def answer(self, taken: Any) -> int:
        """See `Remembering`."""
        left = np.full(RANKS, 4 * self.game.num_decks)
        np.subtract.at(left, np.array(self.seen, dtype=np.int64), 1)
        now = int(self.seen[-1])
        return int(left[now + 1 :].sum() < left[:now].sum())


class MultiarmedBandit(Remembering):
    """Draws each bandit's chance from what it has paid so far, and takes the best (Thompson sampling)."""

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        super().reset(observation, info)
        self.counts = np.ones((2, self.game.num_bandits))

    def answer(self, taken: Any) -> int:
        """See `Remembering`."""
        if taken is not None:
            self.counts[int(self.seen[-1]), int(taken)] += 1
        losses, gains = self.counts
        return int(self.rng.beta(gains, losses).argmax())


PLAYERS: dict[str, type[Any]] = {
    "repeat_first.RepeatFirst": RepeatFirst,
    "repeat_previous.RepeatPrevious": RepeatPrevious,
    "autoencode.Autoencode": Autoencode,
    "count_recall.CountRecall": CountRecall,
    "higher_lower.HigherLower": HigherLower,
    "multiarmed_bandit.MultiarmedBandit": MultiarmedBandit,
    "concentration.Concentration": Concentration,
    "battleship.Battleship": Battleship,
    "minesweeper.MineSweeper": MineSweeper,
    "position_only_cartpole.PositionOnlyCartPole": CartPole,
    "velocity_only_cartpole.VelocityOnlyCartPole": CartPole,
    "position_only_pendulum.PositionOnlyPendulum": Pendulum,
}
"""Players by the class of the game, below popgym.envs; the noisy games are subclasses."""


def player(env: Env, rng: np.random.Generator) -> Policy:
    """The player of popgym's game."""
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(env.unwrapped).__mro__}
    found: Policy = next(made(env, rng) for name, made in PLAYERS.items() if f"popgym.envs.{name}" in names)
    return found
