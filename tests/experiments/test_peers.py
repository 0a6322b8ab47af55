import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from aaren_rl.data.episode import Episode
from aaren_rl.data.spaces import space_of
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import sources
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.comparison import matrix
from aaren_rl.experiments.peers import d3rlpy, worker
from aaren_rl.experiments.peers.d3rlpy import ALGORITHMS, PeerActor
from aaren_rl.scripts.compare import main

PYTHON = os.environ.get("AAREN_D3RLPY")
"""Interpreter with d3rlpy, which needs another gymnasium than this project."""

ECHO = """
import json, sys
print(json.dumps({"versions": {"settings": sys.argv[1]}}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "fail":
        sys.exit("it broke")
    if order["do"] == "train":
        import time
        time.sleep(600)
    print(json.dumps(order), flush=True)
"""


@pytest.fixture
def echo(tmp_path):
    """A program that answers orders with themselves."""
    file = tmp_path / "echo.py"
    file.write_text(ECHO)
    return file


def test_worker_answers_orders(echo):
    with worker.start(Path(sys.executable), echo, {"seed": 1}) as started:
        assert json.loads(started.versions["settings"]) == {"seed": 1}
        assert started.ask({"do": "act", "observations": [[0.5]]}) == {"do": "act", "observations": [[0.5]]}


def test_worker_that_ends_is_quoted(echo):
    with (
        worker.start(Path(sys.executable), echo, {}) as started,
        pytest.raises(InvalidInput, match="d3rlpy's worker ended: it broke$"),
    ):
        started.ask({"do": "fail"})


def test_worker_in_the_midst_of_a_training_is_not_waited_for(echo):
    began = time.monotonic()
    with worker.start(Path(sys.executable), echo, {}) as started:
        started._process.stdin.write('{"do": "train"}\n')
        started._process.stdin.flush()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("python", "said"), [("nowhere", "cannot be run"), (sys.executable, "No module named 'd3rlpy'")]
)
def test_interpreter_without_d3rlpy(python, said, tmp_path):
    program = Path(d3rlpy.__file__).with_name("d3rlpy_program.py")
    settings = {"algorithm": "BC", "options": {}, "seed": 0, "data": "none"}
    with pytest.raises(InvalidInput, match=said), worker.start(Path(python), program, settings):
        pass


def test_an_action_of_one_value_is_in_the_middle():
    space = space_of(gym.spaces.Box(np.array([1.0, -1.0], np.float32), np.array([1.0, 1.0], np.float32)))
    actions = np.array([[1.0, 0.5]], np.float32)
    unit = d3rlpy.to_unit(actions, space)
    assert unit.tolist() == [[0.0, 0.5]]
    assert d3rlpy.from_unit(unit, space).tolist() == actions.tolist()


def test_actions_cross_the_border_in_both_directions():
    space = space_of(gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)))
    actions = np.array([[-2.0, 0.0], [0.0, 5.0], [2.0, 10.0], [1.0, 2.5]], np.float32)
    unit = d3rlpy.to_unit(actions, space)
    assert unit == pytest.approx(np.array([[-1, -1], [0, 0], [1, 1], [0.5, -0.5]]))
    assert d3rlpy.from_unit(unit, space) == pytest.approx(actions)
    assert d3rlpy.from_unit(np.array([[3.0, -3.0]]), space) == pytest.approx(np.array([[2.0, 0.0]]))


class Listener:
    """Notes orders and answers with the middle of the actions."""

    def __init__(self):
        self.orders = []

    def ask(self, order):
        self.orders.append(order)
        return {"actions": [[0.0]] * len(order["observations"])}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_rows_start_where_their_episodes_do(mode):
    listener, space = Listener(), space_of(gym.spaces.Box(-1.0, 1.0, (1,), np.float32))
    actor = PeerActor(listener, space)
    actor.reset(10.0, 2, mode)
    none = np.zeros(2, np.bool_)
    ended = np.array([True, False])
    actor.act(np.zeros((2, 3), np.float32), None, none, none)
    actor.act(np.ones((2, 3), np.float32), np.array([1.0, 2.0]), ended, none)
    actor.act(np.ones((2, 3), np.float32), np.array([0.0, 2.0]), none, none)
    starts = [order["starts"] for order in listener.orders]
    first = mode == AutoresetMode.SAME_STEP
    assert starts == [[True, True], [first, False], [not first, False]]
    assert [order["rewards"] for order in listener.orders] == [[0.0, 0.0], [1.0, 2.0], [0.0, 2.0]]
    assert {order["target"] for order in listener.orders} == {10.0}


def test_arrays_mark_the_ends_of_episodes():
    def episode(steps, terminated):
        return Episode(
            np.zeros((steps, 2), np.float32),
            np.zeros((steps, 1), np.float32),
            np.arange(steps, dtype=np.float32),
            terminated=terminated,
            truncated=not terminated,
        )

    arrays = d3rlpy._arrays(
        Trajectories.from_episodes([episode(2, True), episode(3, False)]),
        space_of(gym.spaces.Box(-1.0, 1.0, (1,), np.float32)),
    )
    assert arrays["terminated"].tolist() == [False, True, False, False, False]
    assert arrays["truncated"].tolist() == [False, False, False, False, True]
    assert arrays["rewards"].tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ({"algorithm": "TD3BC"}, "unknown algorithm of d3rlpy 'TD3BC'"),
        ({"algorithm": "BC", "seconds": 0}, "seconds is 0; expected a positive number"),
        ({"algorithm": "BC", "speed": 1}, "unknown setting 'speed'"),
        ({}, "algorithm"),
        ("BC", "expected a table"),
    ],
)
def test_peers_that_are_refused(peer, said, tmp_path):
    table: dict[str, Any] = {"datasets": ["hopper-medium"], "seeds": [0], "agents": {"one": {"peer": peer}}}
    with pytest.raises(InvalidInput, match=said):
        matrix.from_table(table, tmp_path / "race.toml")


RACE = """
datasets = ["hopper-medium"]
seeds = [0]
[settings]
source = "bundled"
check_episodes = 1
episodes = 2
[settings.training]
updates = 4
evaluate_every = 2
"""


def race(folder, *algorithms, **more):
    """The file of a race."""
    file = folder / "race.toml"
    options = "".join(f"{name} = {value}\n" for name, value in more.items())
    agents = "".join(f'[agents.{one}.peer]\nalgorithm = "{one}"\n{options}' for one in algorithms)
    file.write_text(RACE + agents)
    return file


def test_a_race_needs_an_interpreter(command, tmp_path):
    race(tmp_path, "BC")
    status, _, errors = command(main, "race.toml")
    assert status == 2
    assert "hopper-medium/BC/seed-0: these train with d3rlpy" in errors
    assert "pip install d3rlpy" in errors


def test_costs_of_peers_are_not_measured(command, tmp_path):
    race(tmp_path, "BC")
    status, _, errors = command(main, "race.toml", "--picture", "--table")
    assert status == 2
    assert "--picture measures this project's agents, and BC are d3rlpy's" in errors


@pytest.mark.skipif(PYTHON is None, reason="AAREN_D3RLPY names no interpreter with d3rlpy")
def test_a_race(command, tmp_path):
    assert PYTHON is not None
    race(tmp_path, *ALGORITHMS)
    status, out, errors = command(main, "race.toml", "--d3rlpy", PYTHON, "--bandit")
    assert status == 0, errors
    digest = sources.load("hopper-medium", "bundled", say=lambda line: None).trajectories.sha256
    for algorithm in ALGORITHMS:
        folder = tmp_path / "runs/race/hopper-medium" / algorithm / "seed-0"
        result = json.loads((folder / "result.json").read_text())
        assert result["data_sha256"] == digest
        assert result["updates"] == 4
        assert [point["updates"] for point in result["curve"]] == [2, 4]
        assert result["train_seconds"] == result["curve"][1]["seconds"] > result["curve"][0]["seconds"] > 0
        assert len(result["returns"]) == 2
        assert "d3rlpy" in result["versions"]
        assert f"| {algorithm} | 1 | " in out
    # Finished runs stand; other settings of a peer are another configuration.
    assert command(main, "race.toml", "--d3rlpy", PYTHON)[0] == 0
    race(tmp_path, *ALGORITHMS, seconds=3.0)
    status, _, errors = command(main, "race.toml", "--d3rlpy", PYTHON)
    assert status == 2
    assert "peer is Peer(algorithm='BC', seconds=None" in errors
    # By wall-clock.
    assert command(main, "race.toml", "--d3rlpy", PYTHON, "--only", "BC", "--out", "timed")[0] == 0
    timed = json.loads((tmp_path / "timed/hopper-medium/BC/seed-0/result.json").read_text())
    assert timed["train_seconds"] >= 3.0
    assert timed["updates"] >= 1
