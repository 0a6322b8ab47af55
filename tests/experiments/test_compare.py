import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from aaren_rl.agents import DecisionAgent
from aaren_rl.envs.evaluation import write_result
from aaren_rl.envs.statistics import interquartile_mean
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison import compare, matrix, table
from aaren_rl.scripts.compare import main
from aaren_rl.training.run import Interrupted

COMPARE = Path(__file__).parents[2] / "scripts" / "compare.py"

TABLE = {
    "datasets": ["hopper-medium"],
    "seeds": [0, 1],
    "settings": {
        "device": "cpu",
        "episodes": 2,
        "check_episodes": 1,
        "model": {"width": 16, "blocks": 1},
        "training": {"updates": 80, "batch_size": 4, "log_every": 4, "evaluate_every": 80},
    },
    "agents": {"default": {}, "wide": {"model": {"width": 24}}},
}


def write(folder, **changes):
    """A comparison's file, with the keys changed that are given."""
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps({**TABLE, **changes}))
    return file


def changed(**settings):
    return {**TABLE["settings"], **settings}


def results(folder):
    return sorted(folder.glob("runs/tiny/*/*/*/result.json"))


def edit(result, **figures):
    """Changes figures of a result; those that are None go."""
    edited = {**json.loads(result.read_text()), **figures}
    result.write_text(json.dumps({name: value for name, value in edited.items() if value is not None}))


@pytest.fixture
def finish(trained, tmp_path):
    """Puts runs as if finished into the comparison's folder: a real result with scores by dataset, agent and seed."""

    def put(scores):
        for run in matrix.load(tmp_path / "tiny.toml").runs(tmp_path / "runs" / "tiny"):
            score = scores.get((run.dataset, run.agent, run.seed))
            if score is not None:
                shutil.copytree(trained[1], run.folder)
                run_config.save(dataclasses.replace(run.config, source="bundled"), run.folder / "config.toml")
                best = {"checkpoint": "best", "normalized_score": score + 1}
                updates = run.config.training.updates
                edit(run.folder / "result.json", normalized_score=score, updates=updates, best=best)

    return put


@pytest.fixture
def folder(finish, tmp_path):
    """The working directory of `command`, with a finished comparison."""
    write(tmp_path)
    finish({("hopper-medium", agent, seed): 10.0 + seed for agent in TABLE["agents"] for seed in (0, 1)})
    return tmp_path


def test_comparison_resumes_and_outlives_a_failing_agent(surroundings, command, tmp_path):
    write(tmp_path, agents={"default": {}, "bad": {"training": {"learning_rate": 1e30, "warmup": 0}}})
    cut = subprocess.Popen(
        [sys.executable, str(COMPARE), "tiny.toml"],
        cwd=tmp_path,
        env={**os.environ, **surroundings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    first = tmp_path / "runs/tiny/hopper-medium/default/seed-0"
    deadline = time.monotonic() + 240
    while not ((first / "metrics.jsonl").exists() and (first / "metrics.jsonl").read_text()):
        assert time.monotonic() < deadline
        assert cut.poll() is None
        time.sleep(0.01)
    # As a terminal does it: to every process of the group.
    os.killpg(cut.pid, signal.SIGINT)
    out, errors = cut.communicate(timeout=60)
    assert cut.returncode == 130
    assert "stopped, 0 of 4 runs are finished, all that was trained is saved; go on with" in errors
    assert "go on with python scripts/compare.py tiny.toml\n" in errors
    assert "Traceback" not in errors
    stopped = int(next((first / "checkpoints").iterdir()).name)
    assert 0 < stopped < 80

    status, out, _ = command(main, "tiny.toml", "--jobs", "2", "--only", "default")
    assert status == 0
    # Data were looked for once, not by every run.
    assert out.count("data: aaren/hopper/medium-v0 (source bundled)") == 1
    for seed in (0, 1):
        assert f"of 2: hopper-medium/default/seed-{seed}: normalised score" in out
    assert f"after update {stopped}" in (first / "log.txt").read_text()
    updates = [json.loads(line)["update"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert updates[-1] == 80
    table = json.loads((tmp_path / "runs/tiny/table.json").read_text())
    scores = []
    for seed in (0, 1):
        run = first.with_name(f"seed-{seed}")
        config = run_config.load(run / "config.toml")
        assert (config.env, config.training.seed, config.training.updates) == ("hopper-medium", seed, 80)
        # "auto" was settled before the runs, which do not ask the network again.
        assert config.source == "bundled"
        assert "cannot be reached" not in (run / "log.txt").read_text()
        agent = DecisionAgent.load(run / "last")
        assert agent.card.updates == 80
        result = json.loads((run / "result.json").read_text())
        assert result["parameters"] == sum(weight.numel() for weight in agent.model.parameters())
        scores.append(result["normalized_score"])
        row = table["rows"][seed]
        for name in ("normalized_score", "ci95", "source", "environment", "updates", "parameters", "acting"):
            assert row[name] == result[name]
        assert row["command"] == "python scripts/compare.py tiny.toml --only default"
    assert table["iqm"] == {"default": pytest.approx(sum(scores) / 2)}
    assert table["intervals"]["default"] == pytest.approx([min(scores), max(scores)])
    markdown = (tmp_path / "runs/tiny/table.md").read_text()
    assert markdown in out
    for part in ("2 of 2", "Hopper-v5", "source bundled", "80 updates", "seeds 0, 1", "target return ", "mujoco"):
        assert part in markdown
    assert (tmp_path / "runs/tiny/table.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    status, out, errors = command(main, "tiny.toml", "--seeds", "0")
    assert status == 2
    assert "1 of 2 runs are finished and stand" in out
    assert (
        "1 of 2 runs failed:\nhopper-medium/bad/seed-0 failed with exit status 2: error: the training is not finite"
        in errors
    )
    assert "No run is finished yet of: bad." in out


def test_finished_runs_are_not_run_again(command, folder):
    before = {path: path.stat().st_mtime_ns for path in results(folder)}
    status, out, _ = command(main, "tiny.toml")
    assert status == 0
    assert "4 of 4 runs are finished" in out
    assert {path: path.stat().st_mtime_ns for path in results(folder)} == before


def test_result_of_an_evaluation_by_hand_ends_no_run(command, folder):
    edit(results(folder)[0], train_seconds=None)
    status, out, _ = command(main, "tiny.toml", "--table")
    assert status == 0
    assert "| default | " in out
    assert "1 of 2" in out
    assert "Left out of the IQM, since not every agent shown has finished them: hopper-medium seed 0." in out


def test_evaluating_an_agent_by_hand_leaves_its_run_finished(command, folder):
    by_hand = {"checkpoint": "last", "normalized_score": -1.0}
    file = write_result(results(folder)[0].parent, by_hand)
    assert json.loads(file.read_text()) == by_hand
    status, _, _ = command(main, "tiny.toml", "--table")
    assert status == 0
    rows = json.loads((folder / "runs" / "tiny" / "table.json").read_text())["rows"]
    assert len(rows) == 4
    assert -1.0 not in {row["normalized_score"] for row in rows}


def test_runs_on_other_data_of_the_same_name_are_not_compared(command, folder):
    edit(results(folder)[1], data_sha256="0" * 64)
    status, _, errors = command(main, "tiny.toml", "--table")
    assert status == 2
    assert "they differ in data or evaluation" in errors


@pytest.mark.parametrize("only_table", [[], ["--table"]])
def test_folder_of_another_configuration_is_refused(command, folder, only_table):
    training = {**TABLE["settings"]["training"], "updates": 300}
    write(folder, settings=changed(training=training, return_scale=5.0))
    before = [path.read_bytes() for path in results(folder)]
    status, _, errors = command(main, "tiny.toml", *only_table)
    assert status == 2
    assert errors.startswith("error: runs/tiny/hopper-medium/default/seed-0 holds a run of another configuration: ")
    assert "training.updates is 80 there and 300 in tiny.toml" in errors
    assert "return_scale is" in errors
    assert "pass another --out" in errors
    assert [path.read_bytes() for path in results(folder)] == before


def test_sources_are_not_mixed(command, folder):
    edit(results(folder)[1], source="minari")
    for more in ([], ["--table"]):
        status, _, errors = command(main, "tiny.toml", *more)
        assert status == 2
        assert (
            "from bundled: hopper-medium/default/seed-0, hopper-medium/wide/seed-0, hopper-medium/wide/seed-1" in errors
        )
        assert "from minari: hopper-medium/default/seed-1" in errors
    # Without that run there is nothing to refuse.
    assert command(main, "tiny.toml", "--table", "--only", "wide")[0] == 0


def test_mixed_sources_are_refused_before_anything_runs(command, folder):
    write(folder, settings=changed(source="bundled"), agents={**TABLE["agents"], "new": {"source": "minari"}})
    assert command(main, "tiny.toml")[0] == 2
    assert not (folder / "runs/tiny/hopper-medium/new").exists()


def test_data_without_a_reference_are_refused_with_the_reason(command, tmp_path):
    write(tmp_path, settings=changed(horizon=900))
    status, _, errors = command(main, "tiny.toml")
    assert status == 2
    assert "hopper-medium has no reference returns for Hopper-v5, limit 900 steps (D4RL v2 has Hopper-v5, " in errors
    assert "and this is Hopper-v5, limit 900 steps), so its scores cannot" in errors


def test_environments_are_not_mixed(command, folder):
    edit(results(folder)[1], environment="Hopper-v4")
    status, _, errors = command(main, "tiny.toml", "--table")
    assert status == 2
    assert "in Hopper-v4, limit 1000, " in errors
    assert ": hopper-medium/default/seed-1" in errors


@pytest.mark.parametrize("name", ["parameters", "acting"])
def test_result_that_lacks_something(command, folder, name):
    edit(results(folder)[0], **{name: None})
    status, _, errors = command(main, "tiny.toml", "--table")
    assert status == 2
    assert f"seed-0/result.json does not say {name!r}" in errors


def test_statistics_over_datasets_and_seeds(command, finish, tmp_path):
    agents, datasets, seeds = ["default", "wide"], ["hopper-medium", "walker2d-medium"], [0, 1, 2]
    write(tmp_path, datasets=datasets, seeds=seeds)
    rng = np.random.default_rng(0)
    scores = {(d, a, s): float(rng.normal(50, 10)) for d in datasets for a in agents for s in seeds}
    finish(scores)
    status, out, _ = command(main, "tiny.toml", "--table")
    assert status == 0
    table = json.loads((tmp_path / "runs/tiny/table.json").read_text())
    for agent in agents:
        own = [[scores[d, agent, s] for s in seeds] for d in datasets]
        assert table["iqm"][agent] == pytest.approx(interquartile_mean(own))
        assert table["intervals"][agent][0] < table["iqm"][agent] < table["intervals"][agent][1]
        assert table["best"]["iqm"][agent] == pytest.approx(interquartile_mean(own) + 1)
        low, mean, high = min(own[1]), np.mean(own[1]), max(own[1])
        assert f"{mean:.1f} ({low:.1f} to {high:.1f})" in out
    assert table["above"]["default"]["wide"] == pytest.approx(1 - table["above"]["wide"]["default"])
    assert "best in training" in out
    assert len(table["protocol"]["compared"]) == 6
    assert table["protocol"]["left_out"] == []
    # One seed shows no spread.
    status, out, _ = command(main, "tiny.toml", "--table", "--seeds", "1")
    assert status == 0
    assert json.loads((tmp_path / "runs/tiny/table.json").read_text())["intervals"] == {"default": None, "wide": None}
    assert "without an interval" in out


def test_differences_from_one_agent(command, finish, tmp_path):
    agents = {"default": {}, "low": {}, "level": {}, "high": {}}
    write(tmp_path, agents=agents)
    # Of two seeds a bootstrap's interquartile mean is either or, half the time, their mean; agents are drawn apart.
    given = {"default": (10.0, 20.0), "low": (5.0, 5.0), "level": (12.0, 18.0), "high": (30.0, 30.0)}
    finish({("hopper-medium", agent, seed): given[agent][seed] for agent in agents for seed in (0, 1)})
    status, out, _ = command(main, "tiny.toml", "--table", "--against", "default")
    assert status == 0
    against = json.loads((tmp_path / "runs/tiny/table.json").read_text())["against"]
    assert against == {
        "agent": "default",
        "others": {
            "low": {"difference": 10.0, "interval": [5.0, 15.0], "verdict": "above"},
            "level": {"difference": 0.0, "interval": [-8.0, 8.0], "verdict": "no difference shown"},
            "high": {"difference": -15.0, "interval": [-20.0, -10.0], "verdict": "below"},
        },
    }
    for line in (
        "| other | difference | default is |",
        "| low | +10.0 [+5.0, +15.0] | above |",
        "| level | +0.0 [-8.0, +8.0] | no difference shown |",
        "| high | -15.0 [-20.0, -10.0] | below |",
    ):
        assert f"{line}\n" in out
    # One seed shows no spread, and so no difference.
    assert command(main, "tiny.toml", "--table", "--against", "high", "--seeds", "1")[0] == 0
    others = json.loads((tmp_path / "runs/tiny/table.json").read_text())["against"]["others"]
    assert others["default"] == {"difference": 10.0, "interval": None, "verdict": None}


def test_returns_stand_beside_the_scores(command, folder):
    for file, mean in zip(results(folder), (0.25, 0.75, 1600.4, 12.3), strict=True):
        edit(file, mean=mean)
    status, out, _ = command(main, "tiny.toml", "--table", "--returns")
    assert status == 0
    assert "| default | 0.5 (0.25 to 0.75) |\n| wide | 806 (12.3 to 1600) |" in out
    assert "| 10.5 (10.0 to 11.0) | 2 of 2 | 10.5 [10.0, 11.0] |" in out
    table = json.loads((folder / "runs/tiny/table.json").read_text())
    assert [row["mean"] for row in table["rows"]] == [0.25, 1600.4, 0.75, 12.3]
    assert "tiny.toml --only wide --returns`" in out


def test_datasets_without_scores_show_returns_alone(command, finish, tmp_path):
    write(tmp_path, datasets=["hopper-medium", "walker2d-medium"])
    finish({(d, a, s): 10.0 for d in ("hopper-medium", "walker2d-medium") for a in TABLE["agents"] for s in (0, 1)})
    for file in tmp_path.glob("runs/tiny/walker2d-medium/*/*/result.json"):
        unscored = {
            "normalized_score": None,
            "ci95": None,
            "reference": None,
            "mean": 7.0,
            "best": {"normalized_score": None},
        }
        file.write_text(json.dumps({**json.loads(file.read_text()), **unscored}))
    status, _, errors = command(main, "tiny.toml", "--table")
    assert status == 2
    assert "leave walker2d-medium out, or pass --returns" in errors
    status, out, _ = command(main, "tiny.toml", "--table", "--returns")
    assert status == 0
    assert "| agent | parameters | hopper-medium | runs | IQM |" in out
    assert "and not in an IQM: walker2d-medium." in out
    assert "| 7 (7 to 7) |" in out
    protocol = json.loads((tmp_path / "runs/tiny/table.json").read_text())["protocol"]
    assert (protocol["compared"], protocol["left_out"]) == ([["hopper-medium", 0], ["hopper-medium", 1]], [])
    # Nothing at all has a score.
    status, out, _ = command(main, "tiny.toml", "--table", "--returns", "--datasets", "walker2d-medium")
    assert status == 0
    assert "IQM |" not in out
    assert "Mean return of the agent after the last update" in out


def test_data_without_a_reference_run_for_their_returns(command, tmp_path):
    training = {**TABLE["settings"]["training"], "updates": 2, "evaluate_every": 2}
    write(tmp_path, seeds=[0], settings=changed(horizon=20, training=training), agents={"default": {}})
    status, out, _ = command(main, "tiny.toml", "--returns")
    assert status == 0
    assert "hopper-medium/default/seed-0: return " in out
    assert "and not in an IQM: hopper-medium." in out


def test_nothing_is_held_against_an_agent_without_a_finished_run(command, finish, tmp_path):
    write(tmp_path)
    finish({("hopper-medium", "default", 0): 10.0})
    status, _, errors = command(main, "tiny.toml", "--table", "--against", "wide")
    assert status == 2
    assert "no run of wide is finished" in errors
    assert command(main, "tiny.toml", "--table", "--against", "default")[0] == 0
    table = json.loads((tmp_path / "runs/tiny/table.json").read_text())
    assert table["against"] == {"agent": "default", "others": {}}


def test_agents_are_compared_on_the_runs_that_all_have(command, finish, tmp_path):
    write(tmp_path, datasets=["hopper-medium", "walker2d-medium"], agents={**TABLE["agents"], "late": {}})
    scores = {("hopper-medium", "default", 0): 10.0, ("hopper-medium", "wide", 0): 20.0}
    alone = {("hopper-medium", "default", 1): 90.0, ("walker2d-medium", "default", 0): 95.0}
    finish(scores | alone)
    status, out, _ = command(main, "tiny.toml", "--table")
    assert status == 0
    table = json.loads((tmp_path / "runs/tiny/table.json").read_text())
    assert table["iqm"] == {"default": 10.0, "wide": 20.0}
    assert table["protocol"]["compared"] == [["hopper-medium", 0]]
    assert "3 of 4" in out
    assert "1 of 4" in out
    assert table["protocol"]["left_out"] == [["walker2d-medium", 0], ["hopper-medium", 1], ["walker2d-medium", 1]]
    assert "walker2d-medium seed 0, hopper-medium seed 1, walker2d-medium seed 1" in out
    assert "No run is finished yet of: late." in out


def test_no_run_in_common_means_no_mean(command, finish, tmp_path):
    write(tmp_path)
    finish({("hopper-medium", "default", 0): 10.0, ("hopper-medium", "wide", 1): 20.0})
    status, out, _ = command(main, "tiny.toml", "--table")
    assert status == 0
    assert "No IQM: the agents shown have no dataset and seed in common." in out
    assert json.loads((tmp_path / "runs/tiny/table.json").read_text())["iqm"] == {}


def test_agents_that_are_asked_for_no_return_are_in_the_table(command, folder):
    for result in results(folder)[:2]:
        edit(result, target=None)
    status, out, _ = command(main, "tiny.toml", "--table")
    assert status == 0
    (targets,) = re.findall(r"target return (.*?) \(hopper-medium\)", out)
    assert "none" in targets.split(" or ")


@pytest.mark.parametrize(
    ("updates", "said"), [([80], "80"), ([80, 7917], "80 or 7917"), ([3000, 977, 8134, 5], "5 to 8,134")]
)
def test_numbers_of_updates_in_words(updates, said):
    assert table._amounts(updates) == said


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, ""),
        ({"jobs": 3, "against": "default"}, " --against default --jobs 3"),
        ({"on": "ray", "cpus": 2.0, "gpus": 0.25, "returns": True}, " --returns --on ray --cpus 2.0 --gpus 0.25"),
    ],
)
def test_command_to_go_on_with_has_all_options(options, flags):
    with pytest.raises(Interrupted) as caught, compare._resumable(compare.Request(Path("a.toml"), **options)):
        raise Interrupted("stopped")
    assert str(caught.value) == f"stopped; go on with python scripts/compare.py a.toml{flags}"


def test_table_of_nothing(command, tmp_path):
    write(tmp_path)
    status, _, errors = command(main, "tiny.toml", "--table")
    assert status == 2
    assert "no run under runs/tiny is finished; run without --table first" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "defualt"], "unknown agent 'defualt'; did you mean 'default'?"),
        (["--datasets", "hoper-medium"], "unknown dataset 'hoper-medium'; did you mean 'hopper-medium'?"),
        (["--seeds", "7"], "seed 7 is not among its seeds [0, 1]"),
        (["--jobs", "0"], "--jobs 0; expected at least 1"),
        (["--against", "defualt"], "--against: unknown agent 'defualt'; did you mean 'default'?"),
        (["--against", "wide", "--only", "default"], "--against: unknown agent 'wide'; known: 'default'"),
    ],
)
def test_argument_that_does_not_fit(command, tmp_path, arguments, said):
    write(tmp_path)
    status, out, errors = command(main, "tiny.toml", *arguments)
    assert (status, out) == (2, "")
    assert said in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": ["hoper-medium"]}, "unknown dataset 'hoper-medium'; did you mean 'hopper-medium'"),
        ({"datasets": []}, "datasets is []; expected a list of names, at least one"),
        ({"datasets": ["a/b-c", "a-b/c"]}, "expected one folder for each"),
        ({"seeds": [0, True]}, "expected a list of whole numbers"),
        ({"seeds": [0, 0]}, "expected each once"),
        ({"seeds": [-1]}, "expected none below 0"),
        ({"sead": [1]}, "unknown key 'sead'; did you mean 'seeds'"),
        ({"agents": {}}, "expected a table [agents.NAME]"),
        ({"agents": {"../up": {}}}, "cannot be the name of a folder"),
        ({"agents": {"a": {"training": {"update": 3}}}}, "agent a: unknown setting 'update'; did you mean 'updates'"),
        ({"agents": {"a": {"model": {"mixer": "arren"}}}}, "unknown mixer 'arren'; did you mean 'aaren'"),
        ({"agents": {"a": {"model": "softmax"}}}, "expected two tables or two values"),
        ({"agents": {"a": {"preset": "quik"}}}, "unknown preset 'quik'; did you mean 'quick'?"),
        ({"agents": {"a": {"env": "hopper-medium"}}}, "agent a: env is set by datasets; leave it out"),
        ({"settings": {"imports": ["os"]}}, "imports is set by --import; leave it out"),
        ({"agents": {"a": {"training": {"seed": 3}}}}, "training.seed is set by seeds; leave it out"),
        ({"settings": {"episodes": "many"}}, "agent default: episodes is 'many'"),
    ],
)
def test_file_that_does_not_fit(tmp_path, changes, said):
    with pytest.raises(InvalidInput) as caught:
        matrix.load(write(tmp_path, **changes))
    assert said in str(caught.value)


def test_file_that_is_not_there_or_not_toml(tmp_path):
    with pytest.raises(InvalidInput, match=r"none\.toml cannot be read"):
        matrix.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("datasets = [")
    with pytest.raises(InvalidInput, match=r"expected a TOML file with datasets, seeds, settings, agents"):
        matrix.load(tmp_path / "bad.toml")


def test_agent_is_merged_over_settings_and_those_over_a_preset(tmp_path):
    settings = {"preset": "quick", "training": {"updates": 7, "batch_size": 3}}
    agents = {"plain": {}, "own": {"training": {"updates": 9}, "model": {"mixer": "softmax"}}}
    found = matrix.load(write(tmp_path, settings=settings, agents=agents)).agents
    quick = run_config.load(run_config.presets()["quick"])
    assert found["plain"].training == dataclasses.replace(quick.training, updates=7, batch_size=3)
    assert found["plain"].model == quick.model
    assert found["own"].training == dataclasses.replace(quick.training, updates=9, batch_size=3)
    assert found["own"].model == dataclasses.replace(quick.model, mixer="softmax")


def test_runs_come_seed_by_seed_and_can_be_chosen(tmp_path):
    whole = matrix.load(write(tmp_path, datasets=["hopper-medium", "mujoco/hopper/medium-v0"]))
    runs = whole.runs(tmp_path / "out")
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4
    assert runs[3].folder == tmp_path / "out" / "mujoco-hopper-medium-v0" / "wide" / "seed-0"
    (one,) = whole.select(["wide"], ["hopper-medium"], [1]).runs(tmp_path)
    assert (one.name, one.config.training.seed) == ("hopper-medium/wide/seed-1", 1)
    assert one.config.run == one.folder == tmp_path / "hopper-medium" / "wide" / "seed-1"
