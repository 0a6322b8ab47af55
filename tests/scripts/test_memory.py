import json
import re

import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.envs.evaluation import success_interval
from aaren_rl.envs.memory import MEMORY_CHAIN, T_MAZE
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.scripts import collect, evaluate, train
from aaren_rl.scripts.memory import main

BOUNDS = (-np.ones(1, np.float32), np.ones(1, np.float32))


def tiny_agent(folder, env_id=T_MAZE, bits=1, answer=None, **settings):
    """Saves an untrained agent; with `answer` one that gives this action always."""
    torch.manual_seed(0)
    size = 2 * bits
    scaling = Scaling(np.zeros(size, np.float32), np.ones(size, np.float32), return_scale=1.0)
    spaces = Box.unbounded((size,)), Box.bounded(*BOUNDS)
    model = DecisionModel(ModelConfig(width=16, blocks=1, layout="fused", **settings), *spaces, scaling)
    if answer is not None:
        torch.nn.init.zeros_(model.head.linear.weight)
        torch.nn.init.constant_(model.head.linear.bias, float(np.arctanh(answer)))
    kwargs = {"bits": bits} if env_id == MEMORY_CHAIN else {"longest": 9}
    DecisionAgent(model, AgentCard(EnvironmentSpec(env_id, kwargs), "tests/memory-v0", "bundled", (1.0,))).save(folder)
    return folder


def test_from_the_name_of_a_task_to_its_figures(command, tiny, tmp_path):
    name = "t-maze-expert"
    assert command(collect.main, name, "--steps", "400", "--overwrite")[0] == 0
    status, out, _ = command(evaluate.main, "behaviour", "--env", name, "--episodes", "30")
    assert status == 0
    assert "return 1 +- 0 over 30 episodes, normalised score 100.0 [100.0, 100.0] (by construction)" in out
    status, out, _ = command(train.main, *tiny, "--env", name, "--context", "episode", "--run", "run")
    assert status == 0
    assert "data: aaren/t-maze/expert-v0 (source bundled)" in out
    agent = DecisionAgent.load(tmp_path / "run" / "last")
    assert (float(agent.model.inputs.return_scale), agent.card.target_returns) == (1.0, (1.0,))
    status, out, _ = command(main, "run/last", "--lengths", "200", "--episodes", "2")
    assert status == 0
    assert "| run/last | stream | 200 |" in out


def test_return_scale_that_is_given_counts(command, tiny, tmp_path):
    assert command(train.main, *tiny, "--return-scale", "7", "--run", "seven")[0] == 0
    assert command(train.main, *tiny, "--run", "own")[0] == 0
    scales = [float(DecisionAgent.load(tmp_path / run / "last").model.inputs.return_scale) for run in ("seven", "own")]
    assert scales == [7.0, 1000.0]


def test_constant_answers_divide_the_episodes_between_them(command, tmp_path):
    # Where the one answers wrongly the other is right, since both meet the same cues.
    for name, answer in (("left", -0.5), ("right", 0.5)):
        tiny_agent(tmp_path / name, answer=answer)
    status, out, _ = command(
        main, "left", f"R={tmp_path / 'right'}", "--lengths", "40", "3", "--episodes", "60", "--json", "a/figures.json"
    )
    assert status == 0
    figures = json.loads((tmp_path / "a" / "figures.json").read_text())
    points = figures["points"]
    assert [(point["agent"], point["length"]) for point in points] == [("left", 3), ("left", 40), ("R", 3), ("R", 40)]
    for left, right in ((points[0], points[2]), (points[1], points[3])):
        assert left["successes"] + right["successes"] == 60
        assert 10 < left["successes"] < 50
    for point in points:
        assert (point["environment"], point["episodes"]) == (T_MAZE, 60)
        assert point["success"] == point["successes"] / 60
        assert point["ci95"] == list(success_interval(point["successes"], 60))
        assert point["ms_per_step"] > 0
        # The state is the same after 3 steps and after 40.
        assert point["state_bytes"] == points[0]["state_bytes"]
        assert f"| {point['agent']} | {point['acting']} | {point['length']} | {point['success']:.2f} |" in out
    assert figures["agents"]["R"]["model"]["mixer"] == "aaren"
    assert figures["agents"]["R"]["dataset"] == "tests/memory-v0"


def test_growing_state_grows(command, tmp_path):
    tiny_agent(tmp_path / "softmax", mixer="softmax")
    assert command(main, "softmax", "--lengths", "2", "30", "--episodes", "2", "--json", "f.json")[0] == 0
    few, many = (point["state_bytes"] for point in json.loads((tmp_path / "f.json").read_text())["points"])
    assert few < many


def test_plot_and_environments_of_two_tasks(command, tmp_path):
    tiny_agent(tmp_path / "maze")
    tiny_agent(tmp_path / "chain", MEMORY_CHAIN, bits=3)
    files = ("--plot", "made/plot.png", "--json", "f.json")
    status, out, _ = command(main, "maze", "chain", "--lengths", "2", "5", "--episodes", "3", *files)
    assert status == 0
    points = json.loads((tmp_path / "f.json").read_text())["points"]
    assert [point["environment"] for point in points] == [T_MAZE, T_MAZE, MEMORY_CHAIN, MEMORY_CHAIN]
    assert (tmp_path / "made" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "made/plot.png" in out


def test_same_seed_same_successes(command, tmp_path):
    tiny_agent(tmp_path / "agent", answer=0.9)
    counts = []
    for seed in (0, 0, 1000):
        command(main, "agent", "--lengths", "4", "--episodes", "50", "--seed", seed, "--json", "f.json")
        counts.append(json.loads((tmp_path / "f.json").read_text())["points"][0]["successes"])
    assert counts[0] == counts[1]
    assert counts[0] != counts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "agent.json is missing"),
        (["agent", "agent"], "agent needs a label of its own; pass LABEL=FOLDER"),
        (["=agent"], "=agent needs a label of its own"),
        (["agent", "--lengths", "0", "5"], "expected whole numbers, at least 1"),
        (["agent", "--episodes", "0"], "0 episodes; expected at least 1"),
        (["agent", "short", "--lengths", "5", "50"], "short has a learned timestep embedding for 50 steps; .*below 50"),
        (["hopper"], "hopper was trained for Hopper-v5, which has no length to set; expected aaren/PassiveTMaze-v0"),
    ],
)
def test_mistakes_end_with_status_two_and_what_to_do(command, tmp_path, arguments, message):
    tiny_agent(tmp_path / "agent")
    tiny_agent(tmp_path / "short", timesteps="learned", max_steps=50)
    tiny_agent(tmp_path / "hopper", "Hopper-v5")
    status, out, errors = command(main, *arguments)
    assert status == 2
    assert out == ""
    assert re.search(message, errors)
