"""popgym's board games: players that remember what they tried and break ties in the board's order.

Their actions follow from the actions and observations before them, so an agent with memory can learn them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.envs.experts.expert import Env, game_of

Cell = tuple[int, int]
Rule = tuple[frozenset[Cell], int]
"""Covered cells, and how many of them hide a mine."""


class Concentration:
    """Turns a known pair, else the first card that it never saw, and remembers every card."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.cards = int(game_of(env).action_space.n)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.values: dict[int, int] = {}
        self.matched: set[int] = set()
        self.turned: list[int] = []

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        if taken is not None:
            self._learn(int(taken), int(observation[int(taken)]))
        places = defaultdict(list)
        for card, value in self.values.items():
            if card not in self.matched and card not in self.turned:
                places[value].append(card)
        if self.turned:
            partners = places[self.values[self.turned[0]]]
            return partners[0] if partners else self._unseen()
        pair = next((cards for cards in places.values() if len(cards) > 1), None)
        return pair[0] if pair else self._unseen()

    def _learn(self, card: int, value: int) -> None:
        """Follows the rules: two cards that are alike stay up, and a card that was up already ends the turn."""
        self.values[card] = value
        self.turned.append(card)
        if card in self.matched:
            self.turned = []
        elif len(self.turned) == 2:
            first, second = self.turned
            if first != second and self.values[first] == self.values[second]:
                self.matched |= {first, second}
            self.turned = []

    def _unseen(self) -> int:
        hidden = [card for card in range(self.cards) if card not in self.values]
        # Noise may have turned the last cards alone; then any that is face down serves.
        left = hidden or [card for card in range(self.cards) if card not in self.matched and card not in self.turned]
        return left[0]


class Battleship:
    """Shoots where most placements of the ships that fit all shots lie; placements through hits weigh more."""

    HIT = 6.0
    """Factor by which each hit that a placement covers raises its weight: after a hit the cells beside it come next."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        game = game_of(env)
        self.size = int(game.board_size)
        self.placements = np.concatenate([_placements(self.size, length) for length in game.ship_sizes])

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.hits, self.misses = (np.zeros(self.size**2) for _ in range(2))

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> npt.NDArray[np.int64]:
        """See `Policy`."""
        if taken is not None:
            cell = np.ravel_multi_index(tuple(taken), (self.size, self.size))
            # A second shot at a hit counts as a miss, and tells nothing.
            if not self.hits[cell]:
                (self.hits if observation else self.misses)[cell] = 1
        fits = self.placements @ self.misses == 0
        weights = fits * self.HIT ** (self.placements @ self.hits)
        worth = weights @ self.placements
        worth[(self.hits + self.misses) > 0] = -1
        return np.array(np.unravel_index(int(worth.argmax()), (self.size, self.size)), dtype=np.int64)


class MineSweeper:
    """Uncovers a cell that the counts prove free, else one of least risk by the counts around it."""

    ROUNDS = 3
    """Rounds in which rules are subtracted from the rules that contain them."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        game = game_of(env)
        self.rows, self.columns = map(int, game.dims)
        self.mines = int(game.num_mines)
        self.cells = [(row, column) for row in range(self.rows) for column in range(self.columns)]

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.counts: dict[Cell, int] = {}

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> npt.NDArray[np.int64]:
        """See `Policy`."""
        if taken is not None:
            self.counts[int(taken[0]), int(taken[1])] = int(observation)
        return np.array(self._choice(), dtype=np.int64)

    def _choice(self) -> Cell:
        covered = [cell for cell in self.cells if cell not in self.counts]
        local = {self._rule(cell) for cell in self.counts}
        for rules in _closures({*local, (frozenset(covered), self.mines)}, self.ROUNDS):
            if free := [cell for cells, mines in rules if mines == 0 for cell in cells]:
                return min(free)
        sure = {cell for cells, mines in rules if mines == len(cells) for cell in cells}
        near = {cell for cells, _ in local for cell in cells}

        def risk(cell: Cell) -> float:
            # The largest risk by a rule counts; the whole board's where no number is near.
            if cell not in near:
                return self.mines / len(covered)
            return max(mines / len(cells) for cells, mines in rules if cell in cells)

        return min((cell for cell in covered if cell not in sure), key=lambda cell: (risk(cell), cell))

    def _rule(self, cell: Cell) -> Rule:
        row, column = cell
        around = {(i, j) for i in range(row - 1, row + 2) for j in range(column - 1, column + 2)}
        return frozenset(around.intersection(self.cells).difference(self.counts)), self.counts[cell]


def _closures(rules: set[Rule], rounds: int) -> Iterator[set[Rule]]:
    """Rules, and again with those that follow: where one's cells lie in another's, the rest hides the other mines."""
    yield rules
    for _ in range(rounds):
        rules = rules | {
            (wide - narrow, more - fewer) for narrow, fewer in rules for wide, more in rules if narrow and narrow < wide
        }
        yield rules


def _placements(size: int, length: int) -> npt.NDArray[np.float64]:
    """All placements of a ship on a square board, as ones among zeros, (placements, cells)."""
    boards = []
    for row in range(size):
        for column in range(size - length + 1):
            board = np.zeros((size, size))
            board[row, column : column + length] = 1
            boards += [board.ravel(), board.T.ravel()]
    return np.array(boards)
