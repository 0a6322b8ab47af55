import itertools
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from aaren_rl.envs import sources
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.collect import collect
from aaren_rl.envs.environments import make
from aaren_rl.envs.experts import ant
from aaren_rl.envs.experts.mazes import Maze, PointMaze
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
            x, y = maze.next_place(maze.goal)
            assert steps[cells.index((round(y), round(x))), end] == steps[start, end] - 1


def test_goal_itself_is_next_in_its_cell_and_beside_it():
    walls = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    goal = np.array([2.3, 1.2])
    assert maze_of(walls, (1, 1), goal).next_place(goal).tolist() == [2.3, 1.2]
    assert maze_of(walls, (2, 1), goal).next_place(goal).tolist() == [2.3, 1.2]


def test_near_places_are_those_within_so_many_cells():
    rng = np.random.default_rng(1)
    walls = rng.random((6, 7)) < 0.3
    cells = list(zip(*np.nonzero(~walls), strict=True))
    links = np.array([[abs(a - c) + abs(b - d) == 1 for c, d in cells] for a, b in cells], float)
    steps = shortest_path(links, unweighted=True)
    for start, (row, column) in enumerate(cells):
        maze = maze_of(walls.astype(int), (column, row), (0, 0))
        for reach in (1, 3):
            expected = {cells[i] for i in range(len(cells)) if 0 < steps[start, i] <= reach}
            assert {(int(y), int(x)) for x, y in maze.near(reach)} == expected


@pytest.mark.parametrize("cells", [-1, 1.5, True])
def test_routes_of_no_length_are_refused(cells):
    with pytest.raises(InvalidInput, match="cells is"):
        PointMaze(SimpleNamespace(), np.random.default_rng(0), cells)


def test_routes_of_stitch_data_are_short_and_evaluation_asks_for_long_ones(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    collect(find("pointmaze-stitch"), episodes=12, progress=False, say=lambda line: None)
    dataset = sources.load("pointmaze-stitch", "bundled", say=lambda line: None)
    collected_in, environment = dataset.collected_in, dataset.environment
    assert collected_in is not None
    assert environment is not None
    assert (collected_in.registered_id, environment.registered_id) == ("PointMaze_Medium-v3", "PointMaze_Medium-v3")
    data, far = make(collected_in), make(environment)
    maze, ways = Maze(data), []
    # The goal that is reached comes first in an observation.
    cells = [maze._cell(place) for place in dataset.trajectories.observations[:, :2].astype(np.float64)]
    for first, end in itertools.pairwise(dataset.trajectories.offsets):
        away = maze._to(cells[first])
        # Noise may end an episode's way beyond the cell that it leads to.
        ways.append(max(away[cell] for cell in cells[first:end]))
    assert 2 <= max(ways) <= 5
    maze = Maze(far)
    for seed in range(5):
        far.reset(seed=seed)
        assert maze._to(maze._cell(maze.goal))[maze._cell(maze.place)] >= 9
    data.close()
    far.close()


def test_goal_behind_walls_is_named():
    with pytest.raises(InvalidInput, match="no way from"):
        maze_of([[0, 1, 0]], (0, 0), (2, 0)).next_place(np.array([2.0, 0.0]))


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
