"""MiniGrid and BabyAI: the package's own bot, and walkers that plan on the grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aaren_rl.envs.experts.expert import Env, game_of
from aaren_rl.errors import InvalidInput

TURN_LEFT, TURN_RIGHT, FORWARD = 0, 1, 2
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Where each direction leads, in the order of MiniGrid's directions."""

Cell = tuple[int, int]


class BabyAI:
    """The bot that minigrid ships, which plans on the level."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self.env, self.new_bot = env, BabyAIBot

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.bot = self.new_bot(self.env)

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        return int(self.bot.replan(taken))


class Walker:
    """Walks the shortest way to the nearest goal square, through open cells and around lava."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        return next_action(self.game, self._is_goal)

    def _is_goal(self, cell: Cell) -> bool:
        there = self.game.grid.get(*cell)
        return there is not None and there.type == "goal"


class Memory:
    """Walks to where it sees the object in the first room, then to the matching one at the hallway's end."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.has_seen = False

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> int:
        """See `Policy`."""
        row = self.game.height // 2
        self.has_seen = self.has_seen or bool(self.game.agent_sees(1, row - 1))
        goal = tuple(map(int, self.game.success_pos)) if self.has_seen else (1, row)
        return next_action(self.game, lambda cell: cell == goal)


def next_action(game: Any, is_goal: Callable[[Cell], bool]) -> int:
    """The first action of a shortest way, turns counted.

    Args:
        game: a MiniGrid environment.
        is_goal: whether a cell is to be reached.

    Raises:
        InvalidInput: no way leads there through open cells.
    """
    start = (*map(int, game.agent_pos), int(game.agent_dir))
    # First action of the shortest way to each place and direction that was reached.
    first: dict[tuple[int, ...], int | None] = {start: None}
    queue = deque([start])
    while queue:
        x, y, direction = state = queue.popleft()
        if is_goal((x, y)) and first[state] is not None:
            return int(first[state] or 0)
        ahead = (x + STEPS[direction][0], y + STEPS[direction][1])
        moves = [(TURN_LEFT, (x, y, (direction - 1) % 4)), (TURN_RIGHT, (x, y, (direction + 1) % 4))]
        if _is_open(game, ahead):
            moves.insert(0, (FORWARD, (*ahead, direction)))
        for action, following in moves:
            if following not in first:
                known = first[state]
                first[following] = action if known is None else known
                queue.append(following)
    raise InvalidInput(
        f"{type(game).__name__} has no way to the goal through open cells; this expert neither opens doors nor moves "
        "objects: use the expert babyai where the level is BabyAI's, or another level"
    )


def _is_open(game: Any, cell: Cell) -> bool:
    there = game.grid.get(*cell)
    return there is None or (there.can_overlap() and there.type != "lava")
