from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from aaren_rl.envs.experts import ant
from aaren_rl.envs.experts.mazes import Maze
from aaren_rl.errors import InvalidInput


def maze_of(walls, place, goal):
    """A maze as OGBench's, with cells of size 1."""
    game = SimpleNamespace(
        maze_map=np.array(walls),
        get_xy=lambda: np.array(place, float),
        cur_goal_xy=np.array(goal, float),
        xy_to_ij=lambda xy: (int(xy[1] + 0.5), int(xy[0] + 0.5)),
        ij_to_xy=lambda ij: (ij[1], ij[0]),
    )
    return Maze(SimpleNamespace(unwrapped=game))


def test_routes_are_shortest():
    """Against Dijkstra's algorithm over the open cells of random mazes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        walls = rng.random((6, 7)) < 0.3
        cells = list(zip(*np.nonzero(~walls), strict=True))
        links = np.array([[abs(a - c) + abs(b - d) == 1 for c, d in cells] for a, b in cells], float)
        steps = shortest_path(links, unweighted=True)
        end = int(rng.integers(len(cells)))
        for start, cell in enumerate(cells):
            maze = maze_of(walls.astype(int), (cell[1], cell[0]), (cells[end][1], cells[end][0]))
            if start == end or np.isinf(steps[start, end]):
                continue
            x, y = maze.next_place()
            assert steps[cells.index((round(y), round(x))), end] == steps[start, end] - 1


def test_goal_itself_is_next_in_its_cell_and_beside_it():
    walls = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert maze_of(walls, (1, 1), (2.3, 1.2)).next_place().tolist() == [2.3, 1.2]
    assert maze_of(walls, (2, 1), (2.3, 1.2)).next_place().tolist() == [2.3, 1.2]


def test_goal_behind_walls_is_named():
    with pytest.raises(InvalidInput, match="no way from"):
        maze_of([[0, 1, 0]], (0, 0), (2, 0)).next_place()


@pytest.mark.parametrize("degrees", [0, 50, 135, -100])
def test_ant_walks_where_it_is_told(degrees):
    env = gym.make("Ant-v5", terminate_when_unhealthy=False)
    env.reset(seed=1)
    game, way = env.unwrapped, np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
    start = game.data.qpos[:2].copy()
    for step in range(200):
        env.step(ant.trot(ant.GAIT, game.data.qpos, game.data.qvel, step * game.dt, way))
    walked = game.data.qpos[:2] - start
    env.close()
    # Ten seconds at some 1.5 metres a second.
    assert walked @ way > 10
    assert abs(walked @ np.array([-way[1], way[0]])) < 0.3 * (walked @ way)


@pytest.mark.parametrize(("name", "env_id"), [("pointmaze", "PointMaze_UMaze-v3"), ("antmaze", "AntMaze_UMaze-v5")])
def test_mazes_of_gymnasium_robotics_are_walked(play, name, env_id):
    gym.register_envs(pytest.importorskip("gymnasium_robotics"))
    played = play(name, env_id, 5)
    assert played.success.all()
    # The goal is held once it is reached.
    assert (played.returns > 0.2 * played.lengths).all()


def test_mazes_of_ogbench_are_walked(play):
    pytest.importorskip("ogbench")
    assert play("pointmaze", "pointmaze-medium-v0", 5).success.all()
    assert play("antmaze", "antmaze-medium-v0", 5).success.all()
