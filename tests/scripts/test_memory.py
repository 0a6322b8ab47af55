import json
import re

import numpy as np
import pytest
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box, DiscreteSpace
from aaren_rl.envs.evaluation import success_interval
from aaren_rl.envs.memory import MEMORY_CHAIN, RECALL, T_MAZE
from aaren_rl.experiments.comparison import matrix, running
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
        assert left["perfect"] + right["perfect"] == 60
        assert 10 < left["perfect"] < 50
    for point in points:
        assert (point["environment"], point["episodes"]) == (T_MAZE, 60)
        assert point["accuracy"] == point["perfect"] / 60
        assert point["ci95"] == list(success_interval(point["perfect"], 60))
        assert point["ms_per_step"] > 0
        # The state is the same after 3 steps and after 40.
        assert point["state_bytes"] == points[0]["state_bytes"]
        assert f"| {point['agent']} | {point['acting']} | {point['length']} | {point['accuracy']:.2f} |" in out
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


def test_same_seed_same_answers(command, tmp_path):
    tiny_agent(tmp_path / "agent", answer=0.9)
    counts = []
    for seed in (0, 0, 1000):
        command(main, "agent", "--lengths", "4", "--episodes", "50", "--seed", seed, "--json", "f.json")
        counts.append(json.loads((tmp_path / "f.json").read_text())["points"][0]["perfect"])
    assert counts[0] == counts[1]
    assert counts[0] != counts[2]


def test_an_agent_that_cannot_be_measured_is_named(command, tmp_path):
    """A learned embedding of 100 steps trains on 64, and cannot play 256; recall-4 of 64 steps it can."""
    out = tmp_path / "runs" / "probes"
    asked = ("--probes", "none", *PROBES, "--updates", "1", "--settings", 'model.timesteps="learned"')
    status, _, errors = command(main, *asked, "model.max_steps=100")
    assert status != 0
    assert "1 of 1 runs failed:" in errors
    assert "100 steps" in errors
    assert not (out / "probes.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "agent.json is missing"),
        (["agent", "agent"], "agent needs a label of its own; pass LABEL=FOLDER"),
        (["=agent"], "=agent needs a label of its own"),
        (["agent", "--lengths", "0", "5"], "expected whole numbers, at least 1"),
        (["agent", "--episodes", "0"], "0 episodes; expected at least 1"),
        (["agent", "short", "--lengths", "5", "50"], "short has a learned timestep embedding for 50 steps; .*below 50"),
        (["hopper"], "hopper was trained for Hopper-v5, which has no length to set; expected one of aaren/Pass"),
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


# Tasks that ask at many steps


def recall_agent(folder, k=4, constant=None):
    """Saves an untrained agent for recall; with `constant` one that names this symbol always."""
    torch.manual_seed(0)
    spaces = DiscreteSpace((), (4,), (0,)), DiscreteSpace((), (4,), (0,))
    model = DecisionModel(ModelConfig(width=16, blocks=1), *spaces, Scaling(np.zeros(()), np.ones(())))
    if constant is not None:
        torch.nn.init.zeros_(model.head.linear.weight)
        with torch.no_grad():
            model.head.linear.bias.copy_(torch.eye(4)[constant])
    spec = EnvironmentSpec(RECALL, {"k": k, "length": 64, "symbols": 4}, 64)
    DecisionAgent(model, AgentCard(spec, "tests/recall-v0", "bundled", (1.0,))).save(folder)


def test_agents_of_recall_are_measured_beyond_their_own_length(command, tmp_path):
    for symbol in range(4):
        recall_agent(tmp_path / str(symbol), constant=symbol)
    lengths = ("--lengths", "7", "200", "--episodes", "5")
    assert command(main, *"0123", *lengths, "--json", "f.json", "--plot", "f.png")[0] == 0
    points = json.loads((tmp_path / "f.json").read_text())["points"]
    for length in (7, 200):
        found = [point for point in points if point["length"] == length]
        # All meet the same symbols, of which each agent names one.
        assert sum(point["accuracy"] for point in found) == pytest.approx(1)
        assert {point["chance"] for point in found} == {0.25}
        for point in found:
            assert point["ci95"][0] <= point["accuracy"] <= point["ci95"][1]


def test_length_that_a_task_does_not_have(command, tmp_path):
    recall_agent(tmp_path / "agent", k=32)
    status, out, errors = command(main, "agent", "--lengths", "20", "64")
    assert (status, out) == (2, "")
    assert "k is 32 in episodes of 20 steps; expected length to be at least k" in errors


# Probes

PROBES = ("--tasks", "recall-4", "--seeds", "1", "--episodes", "3", "--settings", "model.width=16", "model.blocks=1")


@pytest.fixture
def small_data(command):
    assert command(collect.main, "recall-4-expert", "--steps", "600", "--overwrite")[0] == 0


@pytest.mark.usefixtures("small_data")
def test_probes_from_mixers_to_the_table_and_on(command, tmp_path):
    mixers = ("none", "aaren(recency=true)")
    asked = ("--probes", *mixers, *PROBES, "--updates", "3", "--longest", "64")
    status, out, errors = command(main, *asked)
    assert status == 0, errors
    folder = tmp_path / "runs" / "probes"
    found = json.loads((folder / "probes.json").read_text())
    assert (found["episodes"], found["seed"]) == (3, 0)
    markdown = (folder / "probes.md").read_text()
    assert markdown in out
    for row, mixer in zip(found["runs"], mixers, strict=True):
        assert (row["task"], row["mixer"], row["seed"]) == ("recall-4", mixer, 0)
        assert (row["lengths"], list(row["points"]), row["chance"]) == ([64, 256, 1024], ["64"], 0.25)
        agent = DecisionAgent.load(folder / "recall-4-expert" / mixer / "seed-0" / "last")
        config = agent.model.config
        assert (config.mixer, config.width, config.blocks, config.heads) == (mixer, 16, 1, 1)
        assert (config.previous_action, agent.card.updates) == (False, 3)
        # Its evaluation after the training meets the same episodes.
        result = json.loads((folder / "recall-4-expert" / mixer / "seed-0" / "result.json").read_text())
        assert row["parameters"] == result["parameters"]
        point = row["points"]["64"]
        assert f"| {mixer} | {point['accuracy']:.2f} [{point['ci95'][0]:.2f}, {point['ci95'][1]:.2f}] | - | - |" in out
    # Without memory, the foreign observation counts at its own step alone.
    assert set(found["runs"][0]["contamination"]["deviation"].values()) == {0.0}

    before = {path: path.read_bytes() for path in folder.glob("*/*/*/result.json")}
    assert len(before) == 2
    kept = [row["points"]["64"] for row in found["runs"]]
    file = folder / "recall-4-expert" / "none" / "seed-0" / "memory.json"
    # What was measured stands, and is not measured again.
    file.write_text(file.read_text().replace('"perfect": 0', '"perfect": -7'))
    status, out, _ = command(main, *asked[:-2], "--longest", "256")
    assert status == 0
    assert "2 of 2 runs are finished and stand" in out
    again = json.loads((folder / "probes.json").read_text())
    assert {path: path.read_bytes() for path in folder.glob("*/*/*/result.json")} == before
    assert [list(row["points"]) for row in again["runs"]] == [["64", "256"]] * 2
    assert again["runs"][0]["points"]["64"] == {**kept[0], "perfect": -7}

    # Other episodes are other figures.
    status, _, _ = command(main, *asked[:-2], "--longest", "64", "--seed", "5")
    assert status == 0
    other = json.loads((folder / "probes.json").read_text())
    assert other["runs"][0]["points"]["64"]["perfect"] == 0
    # Where nothing is short enough, the table has no figures.
    status, out, _ = command(main, *asked[:-2], "--longest", "63")
    assert status == 0
    assert "| recall-4 (64 steps, chance 0.25) | none | - | - | - |" in out
    # compare.py takes the matrix that was written, with the same runs.
    runs = matrix.load(folder / "probes.toml").runs(folder)
    assert all(running.outcome(run) for run in runs)
    running.check_folders(runs, folder / "probes.toml")

    status, _, errors = command(main, "--probes", "none", *PROBES, "--updates", "4")
    assert status == 2
    assert "holds a run of another configuration: training.updates is 3 there and 4 in" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either folders of agents or --probes with mixers"),
        (["agent", "--probes", "gru"], "expected either folders of agents or --probes with mixers"),
        (["agent", "--updates", "3"], "--tasks, --seeds, --updates, .* are for --probes"),
        (["--probes", "gru", "--lengths", "5"], "--lengths, --json and --plot are for agents"),
        (["--probes", "grru"], "unknown mixer 'grru'; did you mean 'gru'"),
        (["--probes", "gru", "--tasks", "recall-5"], "unknown task 'recall-5'; did you mean 'recall-4'"),
        (["--probes", "gru", "--seeds", "0"], "--seeds 0; expected at least 1"),
        (["--probes", "gru", "--jobs", "0"], "0 jobs and 100 episodes; expected at least 1 each"),
        (["--probes", "gru", "--longest", "0"], "--longest 0; expected a number of steps, at least 1"),
        (["--probes", "gru(conv=1)"], r"agent gru\(conv=1\): conv is 1; expected 0 for no convolution, or 2 to 64"),
        (["--probes", "aaren(rotary=2)"], "rotary is 2.0; expected a share of each head's numbers"),
        (["--probes", "gru", "--settings", "width"], "--settings width: .*expected TOML, as model.width=32"),
        (["--probes", "gru", "--settings", "model.wdith=3"], "unknown setting 'wdith'; did you mean 'width'"),
        (["--probes", "gru", "--settings", "training=3"], "expected two tables or two values"),
    ],
)
def test_mistakes_in_probes_end_before_anything_is_written(command, tmp_path, arguments, message):
    status, out, errors = command(main, *arguments)
    assert (status, out) == (2, "")
    assert re.search(message, errors)
    assert not (tmp_path / "runs").exists()
