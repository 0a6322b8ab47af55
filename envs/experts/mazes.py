"""Mazes of gymnasium-robotics and OGBench: routes on the map, and what walks or rolls along them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.experts import ant
from aaren_rl.envs.experts.expert import Env, game_of, within
from aaren_rl.errors import InvalidInput

WALL = 1

Point = npt.NDArray[np.float64]
Cell = tuple[int, int]


class Maze:
    """The map of a maze, in either package's words.

    Args:
        env: environment of gymnasium-robotics, which holds a `maze`, or of OGBench, which is one itself.
    """

    def __init__(self, env: Env) -> None:
        self.game = game_of(env)
        self.is_ogbench = not hasattr(self.game, "maze")
        cells = self.game.maze_map if self.is_ogbench else self.game.maze.maze_map
        # Beside walls, letters mark where episodes begin and end.
        self.walls = np.array([[str(cell) == str(WALL) for cell in row] for row in cells])
        self._distances: dict[Cell, npt.NDArray[np.int64]] = {}

    @property
    def place(self) -> Point:
        """Where the body is."""
        if self.is_ogbench:
            return np.asarray(self.game.get_xy(), dtype=np.float64)
        return np.array(self.game.data.qpos[:2], dtype=np.float64)

    @property
    def goal(self) -> Point:
        """Where it is to go."""
        return np.asarray(self.game.cur_goal_xy if self.is_ogbench else self.game.goal, dtype=np.float64)

    def next_place(self, goal: Point) -> Point:
        """Centre of the next cell on a shortest way to a goal, or the goal in its own cell.

        Two cells beside each other have no wall between them, so the way there is straight.

        Raises:
            InvalidInput: walls are between the body and the goal on every way.
        """
        here, end = self._cell(self.place), self._cell(goal)
        if here == end:
            return goal
        distances = self._to(end)
        reached = [cell for cell in self._beside(here) if distances[cell] >= 0]
        if not reached:
            raise InvalidInput(f"the maze has no way from {self.place.tolist()} to the goal {goal.tolist()}")
        cell = min(reached, key=lambda beside: int(distances[beside]))
        return goal if cell == end else self._centre(cell)

    def near(self, cells: int) -> list[Point]:
        """Centres of the other cells that a way of at most so many cells leads to from where the body is."""
        distances = self._to(self._cell(self.place))
        return [self._centre((int(i), int(j))) for i, j in np.argwhere((distances > 0) & (distances <= cells))]

    def _to(self, end: Cell) -> npt.NDArray[np.int64]:
        """Steps from each cell to the end, (rows, columns); -1 for walls, and for what no way reaches."""
        if end not in self._distances:
            distances = np.full(self.walls.shape, -1, dtype=np.int64)
            distances[end] = 0
            queue = deque([end])
            while queue:
                cell = queue.popleft()
                for beside in self._beside(cell):
                    if distances[beside] < 0:
                        distances[beside] = distances[cell] + 1
                        queue.append(beside)
            self._distances[end] = distances
        return self._distances[end]

    def _beside(self, cell: Cell) -> list[Cell]:
        row, column = cell
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        rows, columns = self.walls.shape
        return [(i, j) for i, j in around if 0 <= i < rows and 0 <= j < columns and not self.walls[i, j]]

    def _cell(self, place: Point) -> Cell:
        found = self.game.xy_to_ij(place) if self.is_ogbench else self.game.maze.cell_xy_to_rowcol(place)
        return int(found[0]), int(found[1])

    def _centre(self, cell: Cell) -> Point:
        if self.is_ogbench:
            return np.asarray(self.game.ij_to_xy(cell), dtype=np.float64)
        return np.asarray(self.game.maze.cell_rowcol_to_xy(np.array(cell)), dtype=np.float64)


class PointMaze:
    """Rolls the ball along the route: a proportional and derivative control of its force, or its steps in OGBench."""

    STEP = 0.2
    """OGBench's point moves by this times the action."""

    def __init__(self, env: Env, rng: np.random.Generator, cells: int = 0) -> None:
        """See `Expert.make`.

        Args:
            env: the maze.
            rng: draws places.
            cells: length of an episode's route: to a place so many cells away at most, drawn at its start, as in
                OGBench's "stitch" data (Park et al. 2025, arXiv 2410.20092); 0 goes to the environment's goal.

        Raises:
            InvalidInput: cells is no whole number from 0 on.
        """
        if isinstance(cells, bool) or not isinstance(cells, int) or cells < 0:
            raise InvalidInput(f"cells is {cells!r}; expected a whole number from 0 on")
        self.maze, self.rng, self.cells = Maze(env), rng, cells

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        if self.cells:
            self.end = self.rng.choice(np.array(self.maze.near(self.cells)))

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Floats:
        """See `Policy`."""
        way = self.maze.next_place(self.end if self.cells else self.maze.goal) - self.maze.place
        if self.maze.is_ogbench:
            action = way / self.STEP
            action = action / max(1.0, float(np.linalg.norm(action)))
        else:
            action = 10.0 * way - self.maze.game.data.qvel[:2]
        return within(action)


class AntMaze:
    """Walks the ant along the route by a trot in any direction; nothing of it is trained."""

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.maze = Maze(env)
        self.gait = ant.SLOW_GAIT if self.maze.is_ogbench else ant.GAIT

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.steps = 0

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Floats:
        """See `Policy`."""
        game, way = self.maze.game, self.maze.next_place(self.maze.goal) - self.maze.place
        body = game if self.maze.is_ogbench else game.ant_env
        time = self.steps * body.dt
        self.steps += 1
        return ant.trot(self.gait, game.data.qpos, game.data.qvel, time, way)
