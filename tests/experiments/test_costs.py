import json
import shutil

import pytest
import tomli_w
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.envs import sources
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison import costs, matrix
from aaren_rl.experiments.train import train
from aaren_rl.scripts.compare import main

TABLE = {
    "datasets": ["hopper-medium"],
    "seeds": [0, 1],
    "settings": {
        "device": "cpu",
        "source": "bundled",
        "episodes": 2,
        "check_episodes": 0,
        "model": {"width": 16, "blocks": 1},
        "training": {"updates": 2, "batch_size": 4, "log_every": 1, "evaluate_every": 2},
    },
    "agents": {
        "default": {},
        "softmax": {"model": {"mixer": "softmax", "timesteps": "learned"}},
        "window": {"acting": "window:7", "model": {"mixer": "softmax"}},
    },
}


@pytest.fixture(scope="session")
def compared(surroundings, tmp_path_factory):
    """A comparison's folder of finished runs: real ones of the first seed, and copies of them for the second."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "tiny.toml").write_text(tomli_w.dumps(TABLE))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        for run in matrix.load(folder / "tiny.toml").runs(folder / "runs" / "tiny"):
            if run.seed == 0:
                train(run.config)
            else:
                shutil.copytree(run.folder.with_name("seed-0"), run.folder)
                run_config.save(run.config, run.folder / "config.toml")
                result = json.loads((run.folder / "result.json").read_text())
                result["normalized_score"] += 5
                (run.folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def folder(compared, tmp_path):
    """A copy of it, which is the working directory of `command`."""
    shutil.copytree(compared, tmp_path, dirs_exist_ok=True)
    return tmp_path


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def in_the_end(agent, data, steps):
    """An agent after so many steps on the data."""
    agent.reset()
    for t in range(steps):
        agent.act(data.observations[t], data.rewards[t - 1] if t else None)
    return agent


@pytest.fixture
def data(surroundings, monkeypatch):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    return sources.load("hopper-medium", "bundled", say=lambda line: None).trajectories


def test_picture_is_of_what_the_agents_cost(command, folder, data):
    before, threads = files(folder), torch.get_num_threads()
    torch.set_num_threads(2)
    status, out, errors = command(main, "tiny.toml", "--table", "--picture")
    assert (status, errors) == (0, "")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    made = {str(path) for path in files(folder) - before}
    assert made == {f"runs/tiny/{name}" for name in ("table.md", "table.json", "table.png", "costs.json", "costs.png")}
    assert (folder / "runs/tiny/costs.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    written = json.loads((folder / "runs/tiny/costs.json").read_text())
    assert written["machine"]["threads"] == 1
    assert (written["measured"]["dataset"], written["measured"]["source"]) == ("hopper-medium", "bundled")
    assert list(written["agents"]) == list(TABLE["agents"])
    assert [one["memory"] for one in written["agents"].values()] == ["constant", "growing", "window"]
    table = json.loads((folder / "runs/tiny/table.json").read_text())
    for name, cost in written["agents"].items():
        for figure in ("sequences_per_second", "milliseconds_per_step"):
            assert 0 < cost[figure]["lowest"] <= cost[figure]["median"] <= cost[figure]["highest"]
        agent = DecisionAgent.load(folder / f"runs/tiny/hopper-medium/{name}/seed-0/last")
        assert cost["step"] == 1_000
        assert cost["early_state_bytes"] == in_the_end(agent, data, 100).state_bytes
        assert cost["state_bytes"] == in_the_end(agent, data, 1_000).state_bytes
        assert cost["state_bytes"] == cost["early_state_bytes"] * (10 if name == "softmax" else 1)
        assert f"| {name} | {table['iqm'][name]:.1f} [" in out
    markdown = (folder / "runs/tiny/table.md").read_text()
    printed = out[out.index("| agent | IQM |") : out.index("\ncosts:  ")]
    assert markdown.endswith(f"`\n\n{printed}")
    assert f"| {written['agents']['window']['state_bytes']:,} |" in printed
    assert "by `python scripts/compare.py tiny.toml --picture`" in printed
    # They serve for some of these agents too.
    status, out, _ = command(main, "tiny.toml", "--table", "--picture", "--only", "window")
    assert status == 0
    assert "costs: those in runs/tiny/costs.json stand" in out
    assert f"{written['agents']['window']['state_bytes']:,} |" in out[out.index("| agent | IQM |") :]
    assert json.loads((folder / "runs/tiny/costs.json").read_text()) == written


def test_costs_are_measured_once_and_anew_for_other_agents(command, folder):
    file = folder / "runs/tiny/costs.json"
    status, out, _ = command(main, "tiny.toml", "--table", "--picture", "--only", "default")
    assert status == 0
    assert "costs: measuring 1 agents" in out
    first = file.read_text()
    status, out, _ = command(main, "tiny.toml", "--table", "--picture", "--only", "default")
    assert status == 0
    assert "costs: those in runs/tiny/costs.json stand; delete it to measure anew" in out
    assert file.read_text() == first
    # As if another configuration had been measured.
    edited = json.loads(first)
    edited["agents"]["default"]["configuration"]["model"]["width"] = 8
    edited["agents"]["default"]["state_bytes"] = 1
    file.write_text(json.dumps(edited))
    status, out, _ = command(main, "tiny.toml", "--table", "--picture", "--only", "default")
    assert status == 0
    assert "costs.json has none of default as they are now; measuring all agents anew" in out
    anew, once = json.loads(file.read_text())["agents"]["default"], json.loads(first)["agents"]["default"]
    assert anew["configuration"] == once["configuration"]
    assert anew["state_bytes"] == once["state_bytes"] > 1


def test_costs_come_back_as_they_were_saved(tmp_path):
    spread = costs.Spread(2.0, 1.0, 3.0)
    cost = costs.Cost(spread, spread, 1_000, 80, 80, "constant")
    written = costs.Costs({"a": cost, "b": cost}, {"a": {"device": "cpu"}, "b": {}}, {"threads": 1}, {"rounds": 5})
    written.save(tmp_path / "costs.json")
    assert costs.Costs.load(tmp_path / "costs.json") == written


@pytest.mark.parametrize("content", [{}, {"agents": {"a": {}}}, {"agents": [], "machine": {}, "measured": {}}])
def test_costs_of_another_form_are_refused(tmp_path, content):
    (tmp_path / "costs.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no costs as this version writes them"):
        costs.Costs.load(tmp_path / "costs.json")


def test_agents_without_a_run_in_common_have_no_costs(command, folder):
    for name, seed in (("default", 0), ("softmax", 1), ("window", 0)):
        shutil.rmtree(folder / f"runs/tiny/hopper-medium/{name}/seed-{seed}")
    status, out, errors = command(main, "tiny.toml", "--table", "--picture")
    assert status == 2
    assert "no costs: the agents shown have no finished run on the same dataset and seed" in errors
    # The table was made all the same.
    assert "table:      runs/tiny/table.md" in out


def test_picture_of_nothing(command, folder):
    shutil.rmtree(folder / "runs")
    status, _, errors = command(main, "tiny.toml", "--table", "--picture")
    assert status == 2
    assert "no run under runs/tiny is finished" in errors


def test_learned_table_of_timesteps_is_not_run_past(folder, data):
    trained = DecisionAgent.load(folder / "runs/tiny/hopper-medium/softmax/seed-0/last")
    assert trained.longest == 1_000
    for longest, turn in ((150, 3), (6, 1)):
        trained.longest = longest
        episode = costs.Episode(trained, data)
        assert episode.turn == turn
        for _ in range((costs.ROUNDS + 1) * turn):
            episode.step()
        assert episode.taken == longest
        with pytest.raises(InvalidInput, match=r"longer than the \d+ steps"):
            episode.step()
