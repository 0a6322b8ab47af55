import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aaren_rl.agents import DecisionAgent
from aaren_rl.experiments import config as run_config
from aaren_rl.scripts.train import main

TRAIN = Path(__file__).parents[2] / "scripts" / "train.py"


def weights(agent):
    return load_file(agent / "model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_run_leaves_agents_result_curve_events_and_configuration(trained):
    _, folder = trained
    assert (folder / "learning-curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    config = run_config.load(folder / "config.toml")
    assert (config.env, config.source) == ("hopper-medium", "bundled")
    assert (config.training.updates, config.model.width, config.episodes) == (6, 16, 2)
    agent = DecisionAgent.load(folder / "last")
    assert (agent.card.updates, agent.card.environment.id, agent.card.source) == (6, "Hopper-v5", "bundled")
    # One evaluation came out best, if only by a tie.
    assert DecisionAgent.load(folder / "best").card.updates in (3, 6)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("evaluation/return")] == [3, 6]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_result_says_how_it_was_measured(trained):
    result = json.loads((trained[1] / "result.json").read_text())
    low, high = result["ci95"]
    assert low <= result["normalized_score"] <= high
    assert result["normalized_score"] == pytest.approx(100 * (result["mean"] + 20.272305) / (3234.3 + 20.272305))
    assert result["mean"] == pytest.approx(np.mean(result["returns"]), abs=0.01)
    assert result["std"] == pytest.approx(np.std(result["returns"]), abs=0.01)
    expected = {
        "episodes": 2,
        "seeds": [0, 1],
        "target": json.loads((trained[1] / "last" / "agent.json").read_text())["target_returns"][0],
        "environment": "Hopper-v5",
        "reference": "D4RL v2",
        "source": "bundled",
        "dataset": "aaren/hopper/medium-v0",
        "checkpoint": "last",
        "updates": 6,
    }
    assert {key: result[key] for key in expected} == expected
    assert result["versions"]["torch"] == torch.__version__
    assert result["train_seconds"] > 0


def test_best_agent_has_its_own_figures_unless_it_is_the_last(trained):
    _, folder = trained
    result = json.loads((folder / "result.json").read_text())
    best = DecisionAgent.load(folder / "best").card.updates
    assert ("best" in result) == (best != 6)
    if "best" in result:
        assert (result["best"]["checkpoint"], result["best"]["updates"]) == ("best", best)


def test_output_names_what_was_written_and_the_score(trained):
    out = trained[0].stdout
    for part in ("run/last", "run/learning-curve.png", "run/result.json", "normalised score", "source bundled"):
        assert part in out
    assert "Traceback" not in trained[0].stderr


def test_same_seed_gives_the_same_weights_in_another_process(trained, command, tiny, tmp_path):
    status, _, _ = command(main, *tiny, "--run", "again")
    assert status == 0
    assert_same_weights(weights(trained[1] / "last"), weights(tmp_path / "again" / "last"))


def test_run_that_was_interrupted_ends_as_if_it_had_not_been(surroundings, command, tiny, tmp_path):
    longer = [*tiny, "--updates", "120", "--evaluate-every", "60", "--checkpoint-every", "1000"]
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *longer, "--run", "cut"],
        cwd=tmp_path,
        env={**os.environ, **surroundings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "checkpoint is saved" in errors
    assert "Traceback" not in errors
    stopped = int(max(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()))
    assert 0 < stopped < 120
    assert not (tmp_path / "cut" / "last").exists()

    status, out, _ = command(main, "--resume", tmp_path / "cut")
    assert status == 0
    assert f"after update {stopped}" in out
    status, _, _ = command(main, *longer, "--run", "whole")
    assert status == 0
    assert_same_weights(weights(tmp_path / "cut" / "last"), weights(tmp_path / "whole" / "last"))
    curves = []
    for run in ("cut", "whole"):
        points = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        curves.append([(point["update"], point["train/loss"]) for point in points if "train/loss" in point])
    assert [update for update, _ in curves[0]] == list(range(1, 121))
    assert curves[0] == curves[1]
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("cut", "whole")]
    assert results[0]["returns"] == results[1]["returns"]


def test_typo_in_the_dataset_is_one_line_with_near_matches(script, tmp_path):
    done = script("train", "--env", "hoper-medium")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown dataset 'hoper-medium'; did you mean")
    assert "'hopper-medium'" in line
    assert list(tmp_path.iterdir()) == []


def test_missing_file(command, tmp_path):
    status, _, errors = command(main, "--env", "data/mine.hdf5")
    assert status == 2
    assert errors.startswith("error: data/mine.hdf5 does not exist; expected a name of the catalogue, a Minari id, or ")
    assert "D4RL" in errors
    assert not (tmp_path / "runs").exists()


def test_folder_of_another_run_is_not_overwritten(command, tiny, run_folder):
    before = (run_folder / "result.json").read_bytes()
    status, _, errors = command(main, *tiny, "--run", run_folder)
    assert status == 2
    assert f"--resume {run_folder}" in errors
    assert (run_folder / "result.json").read_bytes() == before


def test_resuming_what_is_no_run(command, tmp_path):
    status, _, errors = command(main, "--resume", tmp_path)
    assert status == 2
    assert "config.toml is missing" in errors


def test_resuming_a_finished_run_changes_no_weights(command, run_folder):
    before = weights(run_folder / "last")
    status, out, _ = command(main, "--resume", run_folder)
    assert status == 0
    assert "after update 6" in out
    assert_same_weights(before, weights(run_folder / "last"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(command, tiny, tmp_path):
    status, _, errors = command(main, *tiny, "--device", "cuda")
    assert status == 2
    assert errors == "error: --device cuda was asked for, but torch sees no GPU; pass --device cpu or auto\n"
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_auto_takes_the_bundled_data(command, tiny, tmp_path):
    began = time.perf_counter()
    status, out, _ = command(main, *tiny, "--source", "auto", "--check-episodes", "0", "--run", "auto")
    assert status == 0
    assert time.perf_counter() - began < 60
    assert out.count("cannot be reached") == 2
    result = json.loads((tmp_path / "auto" / "result.json").read_text())
    assert result["source"] == "bundled"
    # Nothing was evaluated in training, so no agent is called best.
    assert not (tmp_path / "auto" / "best").exists()
    # A resume must take the same data, even where others have come since.
    assert run_config.load(tmp_path / "auto" / "config.toml").source == "bundled"


@pytest.mark.parametrize("option", [["--heads", "3"], ["--return-scale", "0"], ["--held-out", "2"]])
def test_setting_that_does_not_fit_ends_with_status_two(command, tiny, option):
    status, _, errors = command(main, *tiny, *option)
    assert status == 2
    assert errors.startswith("error: ")


def test_mended_command_line_can_be_run_again(command, tiny):
    assert command(main, *tiny, "--run", "same", "--heads", "3")[0] == 2
    assert command(main, *tiny, "--run", "same")[0] == 0


def test_no_episodes_to_evaluate_is_known_before_training(command, tiny, tmp_path):
    status, _, errors = command(main, *tiny, "--episodes", "0", "--run", "none")
    assert status == 2
    assert "episodes" in errors


def test_several_seeds_leave_a_run_each_and_a_summary(command, tiny, tmp_path, trained):
    status, out, _ = command(main, *tiny, "--seeds", "2", "--run", tmp_path / "both")
    assert status == 0
    summary = json.loads((tmp_path / "both" / "result.json").read_text())
    own = [json.loads((tmp_path / "both" / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert summary["seeds"] == [0, 1]
    assert summary["means"] == [result["mean"] for result in own]
    assert summary["normalized_score"] == pytest.approx(np.mean([result["normalized_score"] for result in own]))
    assert "2 seeds, one after another" in out
    # The first of them is the run that this seed gives alone.
    assert_same_weights(weights(tmp_path / "both" / "seed-0" / "last"), weights(trained[1] / "last"))
    other = weights(tmp_path / "both" / "seed-1" / "last")
    assert not np.array_equal(other["head.linear.weight"], weights(trained[1] / "last")["head.linear.weight"])
    # Resuming finished runs changes nothing.
    status, out, _ = command(main, "--resume", tmp_path / "both")
    assert status == 0
    assert out.count("is finished, its result stands") == 2
    assert_same_weights(weights(tmp_path / "both" / "seed-1" / "last"), other)
    assert summary["max_episode_steps"] == own[0]["max_episode_steps"] == 1000
    assert (summary["environment_kwargs"], summary["wrappers"]) == ({}, [])
    assert summary["data_sha256"] == own[0]["data_sha256"]
    # Under another protocol the agents stand, their results do not.
    status, out, _ = command(main, "--resume", tmp_path / "both", "--horizon", "7")
    assert status == 0
    assert "its result stands" not in out
    for folder in (tmp_path / "both", tmp_path / "both" / "seed-0", tmp_path / "both" / "seed-1"):
        result = json.loads((folder / "result.json").read_text())
        assert (result["max_episode_steps"], result["normalized_score"]) == (7, None)
    assert_same_weights(weights(tmp_path / "both" / "seed-1" / "last"), other)
    # And no other run takes their folder.
    for more in (["--seeds", "2"], []):
        status, _, err = command(main, *tiny, *more, "--run", tmp_path / "both", "--learning-rate", "0.5")
        assert status == 2
        assert "holds a run already" in err
    assert run_config.load(tmp_path / "both" / "config.toml").training.learning_rate != 0.5
