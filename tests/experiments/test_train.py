"""Runs as their users see them: where they may go on, and what a failing environment or a signal costs."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv

import aaren_rl
from aaren_rl.checkpoint import load_agent
from aaren_rl.envs.dataset import of_trajectories
from aaren_rl.envs.evaluation import write_result
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import train as training_of_runs
from aaren_rl.experiments.config import RunConfig
from aaren_rl.experiments.report import EvaluationFailed
from aaren_rl.experiments.train import train
from aaren_rl.scripts.train import main
from aaren_rl.training.config import TrainingConfig
from aaren_rl.training.lock import Locked, locked
from aaren_rl.training.log import read_metrics
from aaren_rl.training.processes import ALONE, Processes
from aaren_rl.training.run import Interrupted

SMALL = {"updates": 12, "width": 16, "blocks": 1, "batch_size": 4, "log_every": 4, "warmup": 2, "progress": False}
SMALL |= {"evaluate_every": 6, "checkpoint_every": 6, "check_episodes": 2, "episodes": 2, "device": "cpu"}


class Failing(gym.Env):
    """Fails in the ways that simulators do, as often as it is told."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    fails = ""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        if Failing.fails == "reset":
            raise RuntimeError("the simulator did not start")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.step_number += 1
        value = np.full(3, self.step_number, np.float32)
        if Failing.fails == "crash" and self.step_number == 4:
            raise ValueError("mj_step: unstable\nsimulation")
        if Failing.fails == "nan" and self.step_number == 4:
            value[1] = np.nan
        if Failing.fails == "signal" and self.step_number == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return value, 1.0, False, False, {}


@pytest.fixture(autouse=True)
def _failing():
    gym.register("Failing-v0", Failing, max_episode_steps=8)
    yield
    Failing.fails = ""
    gym.registry.pop("Failing-v0")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)

    def episode(steps):
        observations = rng.normal(size=(steps + 1, 3))
        return aaren_rl.Episode(observations, np.tanh(observations[:-1, :1]), rng.normal(size=steps), terminated=True)

    return aaren_rl.Trajectories.from_episodes(episode(steps) for steps in (9, 4, 12, 7, 5))


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def weights(folder):
    return {name: tensor.numpy() for name, tensor in load_agent(folder)[0].state_dict().items()}


def assert_same_agents(ours, theirs):
    ours, theirs = weights(ours), weights(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


FAILURES = {"crash": "unstable", "nan": "the observation is nan", "reset": "did not start"}


@pytest.mark.parametrize("fails", FAILURES)
def test_a_failing_environment_costs_its_evaluations_only(data, tmp_path, fails):
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "whole", **SMALL)
    Failing.fails = fails
    with pytest.raises(EvaluationFailed) as caught:
        aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", **SMALL)
    message = str(caught.value)
    for part in (
        "the final evaluation failed",
        FAILURES[fails],
        "the training is saved",
        str(tmp_path / "run" / "last"),
    ):
        assert part in message
    assert "\n" not in message
    assert_same_agents(tmp_path / "run" / "last", tmp_path / "whole" / "last")
    result = result_of(tmp_path / "run")
    assert FAILURES[fails] in result["failure"]
    assert [failed["update"] for failed in result["failed_evaluations"]] == [6, 12]
    assert (result["updates"], result["episodes"]) == (12, 0)
    assert not {"mean", "returns", "normalized_score"} & result.keys()
    assert (tmp_path / "run" / "learning-curve.png").exists()
    # With the environment mended, a resume makes up for the last evaluations, and trains nothing again.
    Failing.fails = ""
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", resume=True, progress=False)
    result = result_of(tmp_path / "run")
    assert result["returns"] == result_of(tmp_path / "whole")["returns"]
    assert [failed["update"] for failed in result["failed_evaluations"]] == [6]
    assert "failure" not in result
    assert_same_agents(tmp_path / "run" / "last", tmp_path / "whole" / "last")


def test_a_failure_in_training_is_said_and_counted(data, tmp_path, capsys):
    def mend(update, metrics):
        Failing.fails = "crash" if update < 12 else ""

    settings = {**SMALL, "progress": True}
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", callbacks=[mend], **settings)
    out = capsys.readouterr().out
    assert "warning: the evaluation after update 6 failed and is left out, training goes on: " in out
    assert "failed:     evaluations in training after updates 6" in out
    (failed,) = result_of(tmp_path / "run")["failed_evaluations"]
    assert failed["update"] == 6
    assert "unstable" in failed["message"]


def test_a_run_whose_evaluations_all_come_off_says_that_none_failed(data, tmp_path):
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", **SMALL)
    assert result_of(tmp_path / "run")["failed_evaluations"] == []


def test_the_command_line_ends_with_the_error_and_leaves_the_agents(tmp_path, command, monkeypatch):
    make_file(tmp_path / "swing.hdf5")
    monkeypatch.setattr(PendulumEnv, "step", lambda self, action: 1 / 0)
    status, out, errors = command(main, "--env", "swing.hdf5", *ARGUMENTS, "--run", "run")
    assert status == 2
    last_line = errors.strip().splitlines()[-1]
    assert last_line.startswith("error: the final evaluation failed: ")
    assert "division by zero" in last_line
    assert "Traceback" not in errors
    assert "result:     run/result.json" in out
    assert load_agent(tmp_path / "run" / "last")[1].updates == 4


def test_seeds_beside_one_whose_evaluation_failed_are_trained(tmp_path, command, monkeypatch):
    make_file(tmp_path / "swing.hdf5")
    step, steps = PendulumEnv.step, []

    def fail_once(self, action):
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("the simulator crashed")
        return step(self, action)

    monkeypatch.setattr(PendulumEnv, "step", fail_once)
    status, _, errors = command(main, "--env", "swing.hdf5", *ARGUMENTS, "--seeds", "2", "--run", "run")
    assert status == 2
    assert "the final evaluation failed: seed 0: " in errors
    summary = result_of(tmp_path / "run")
    assert "the simulator crashed" in summary["failure"]
    assert "means" not in summary
    assert "mean" in result_of(tmp_path / "run" / "seed-1")
    # Only the seed without a result is evaluated again.
    status, out, _ = command(main, "--resume", "run")
    assert status == 0
    assert out.count("is finished, its result stands") == 1
    assert len(result_of(tmp_path / "run")["means"]) == 2


def test_a_signal_in_an_evaluation_ends_it_soon_and_a_resume_makes_up_for_it(data, tmp_path):
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "whole", **SMALL)
    Failing.fails = "signal"
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped after update 6, its checkpoint is saved"):
        aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", **SMALL)
    assert time.monotonic() - began < 50
    Failing.fails = ""
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", resume=True, progress=False)
    assert_same_agents(tmp_path / "run" / "last", tmp_path / "whole" / "last")
    assert result_of(tmp_path / "run")["failed_evaluations"] == []
    updates = [
        [point["update"] for point in read_metrics(tmp_path / name) if "evaluation/return" in point]
        for name in ("run", "whole")
    ]
    assert updates == [[6, 12], [6, 12]]


def test_a_signal_in_the_final_evaluation_says_that_training_is_saved(data, tmp_path):
    def at_the_end(update, metrics):
        Failing.fails = "signal" if update == 12 and "evaluation/return" in metrics else ""

    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped in the final evaluation, the training is saved; evaluate its agent"):
        aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", callbacks=[at_the_end], **SMALL)
    assert time.monotonic() - began < 50
    assert load_agent(tmp_path / "run" / "last")[1].updates == 12
    Failing.fails = ""
    aaren_rl.fit(data, environment="Failing-v0", folder=tmp_path / "run", resume=True, progress=False)
    assert len(result_of(tmp_path / "run")["returns"]) == 2


ARGUMENTS = ["--env-id", "Pendulum-v1", "--batch-size", "4", "--width", "8", "--blocks", "1", "--warmup", "1"]
ARGUMENTS += ["--check-episodes", "0", "--episodes", "1", "--device", "cpu", "--updates", "4"]


def make_file(path):
    """A D4RL file of a pendulum."""
    rng, steps = np.random.default_rng(0), 400
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(steps, 3)).astype(np.float32)
        file["actions"] = rng.uniform(-2, 2, (steps, 1)).astype(np.float32)
        file["rewards"] = -rng.random(steps).astype(np.float32)
        file["terminals"] = np.zeros(steps, bool)
        file["timeouts"] = np.arange(steps) % 40 == 39


@pytest.mark.parametrize("kind", ["relative file", "file at home", "relative folder", "link"])
def test_a_run_goes_on_from_another_directory(surroundings, tmp_path, monkeypatch, kind):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_file(tmp_path / "data" / "swing.hdf5")
    env, arguments = "data/swing.hdf5", ARGUMENTS
    if kind == "file at home":
        env = "~/data/swing.hdf5"
    if kind == "link":
        (tmp_path / "link").symlink_to(tmp_path / "data")
        env = "link/swing.hdf5"
    if kind == "relative folder":
        (recorded,) = (
            path for path in (tmp_path / surroundings["MINARI_DATASETS_PATH"]).rglob("data") if path.is_dir()
        )
        shutil.copytree(recorded.parent, tmp_path / "recorded")
        env, arguments = "recorded", ["--env-id", "Hopper-v5", *ARGUMENTS[2:]]
    train(run_config.parse(["--env", env, "--run", str(tmp_path / "run"), *arguments]), progress=False)
    assert os.path.isabs(run_config.load(tmp_path / "run" / "config.toml").env)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(run_config.parse(["--resume", str(tmp_path / "run"), "--updates", "6"]), progress=False)
    assert load_agent(tmp_path / "run" / "last")[1].updates == 6


@pytest.mark.parametrize("seeds", ["1", "2"])
def test_a_run_goes_on_after_it_was_moved(tmp_path, monkeypatch, seeds):
    monkeypatch.chdir(tmp_path)
    make_file(tmp_path / "data" / "swing.hdf5")
    arguments = ["--env", "data/swing.hdf5", "--seeds", seeds, *ARGUMENTS]
    train(run_config.parse([*arguments, "--run", "run"]), progress=False)
    (tmp_path / "archive").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "archive" / "moved")
    train(run_config.parse(["--resume", "archive/moved", "--updates", "6"]), progress=False)
    assert not (tmp_path / "run").exists()
    last = "last" if seeds == "1" else "seed-1/last"
    assert load_agent(tmp_path / "archive" / "moved" / last)[1].updates == 6


def test_names_of_the_catalogue_and_minari_ids_stay_as_they_are(trained):
    assert run_config.load(trained[1] / "config.toml").env == "hopper-medium"


@pytest.fixture
def saved(tmp_path):
    """The file of a configuration."""
    config = RunConfig(env="hopper-medium", training=TrainingConfig(updates=7))
    run_config.save(config, tmp_path / "config.toml")
    return tmp_path / "config.toml"


def test_a_configuration_that_was_cut_anywhere_is_noticed(saved):
    content = saved.read_text()
    lines = content.splitlines(keepends=True)
    cuts = ["".join(lines[:number]) for number in range(len(lines))] + [
        content[:at] for at in range(5, len(content), 97)
    ]
    for part in (*cuts, content.rstrip()[:-1]):
        saved.write_text(part)
        with pytest.raises(
            CheckpointError, match=r"config\.toml cannot be read: .*mend it, and if it is whole end it with"
        ):
            run_config.load(saved)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"updates = [", b"", b"a = " + b"[" * 9999])
def test_a_configuration_that_is_no_toml_says_what_to_do(saved, content):
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="mend it"):
        run_config.load(saved)


@pytest.mark.parametrize("way", ["as it is", "says so"])
def test_an_edited_configuration_counts_and_is_recognised(saved, way):
    assert not run_config.was_edited(saved)
    content = saved.read_text().replace("updates = 7", "updates = 9")
    if way == "says so":
        content = content.partition("# sha256:")[0] + "# sha256: edited\n"
    saved.write_text(content)
    assert run_config.load(saved).training.updates == 9
    assert run_config.was_edited(saved)


def test_resuming_with_an_edited_configuration_says_so_once(data, tmp_path):
    aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    file = tmp_path / "run" / "config.toml"
    file.write_text(file.read_text().replace("updates = 12", "updates = 15"))
    said = []
    for _ in range(2):
        lines = []
        config = dataclasses.replace(run_config.load(file), resume=tmp_path / "run")
        train(config, of_trajectories(data), say=lines.append, progress=False)
        said.append([line for line in lines if "was edited since the run wrote it" in line])
    assert [len(lines) for lines in said] == [1, 0]
    assert load_agent(tmp_path / "run" / "last")[1].updates == 15


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_of_runs.time, "strftime", lambda *_: "20260101-000000")
    folders, start = [], threading.Barrier(6)

    def claim():
        start.wait()
        with training_of_runs._claimed(RunConfig(), lambda line: None) as folder:
            folders.append(folder)
            (folder / "mine").touch(exist_ok=False)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 6
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(path.name for path in folders)


WRITE = """
import sys
from pathlib import Path
from aaren_rl.envs.evaluation import write_result
for number in range(20):
    write_result(Path(sys.argv[1]), {"by": sys.argv[2], "number": number})
"""


def test_results_of_processes_that_write_at_once_are_all_kept(tmp_path):
    write_result(tmp_path, {"by": "before", "number": 0})
    processes = [
        # Elsewhere, so that the installed package is imported.
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), name], cwd=tmp_path.parent)
        for name in "abc"
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    found = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    expected = [("before", 0), *((name, number) for name in "abc" for number in range(20))]
    assert sorted((each["by"], each["number"]) for each in found) == sorted(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["result.json", *(f"result-{number}.json" for number in range(1, 61))]
    )


def test_a_folder_in_training_is_refused_before_data_are_fetched(data, tmp_path, monkeypatch):
    aaren_rl.fit(data, folder=tmp_path / "run", **SMALL)
    monkeypatch.setattr(training_of_runs.sources, "load", None)
    refusals = []

    def enter():
        for arguments in ({"resume": True, "progress": False}, SMALL):
            with pytest.raises((Locked, InvalidInput)) as caught:
                aaren_rl.fit("hopper-medium", folder=tmp_path / "run", **arguments)
            refusals.append(str(caught.value))

    with locked(tmp_path / "run"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refusals) == 2
    assert all("is in training already" in refusal for refusal in refusals)


def test_an_error_before_training_leaves_no_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="carries a state of constant size"):
        aaren_rl.fit(data, mixer="softmax", context="carry:5", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_folder_that_is_not_there_makes_none(data, tmp_path):
    config = RunConfig(resume=tmp_path / "none")
    with pytest.raises(CheckpointError, match="none is missing; expected the folder of a run"):
        train(config, of_trajectories(data))
    assert list(tmp_path.iterdir()) == []


def test_what_torchrun_cannot_start_is_refused(monkeypatch):
    with pytest.raises(InvalidInput, match="--seeds 2 with 2 processes, which train one agent together"):
        training_of_runs._refuse_launch(RunConfig(seeds=2), Processes(0, 2))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(InvalidInput, match="which then has to find its run again; pass --run FOLDER"):
        training_of_runs._refuse_launch(RunConfig(), ALONE)


def test_only_the_same_launch_resumes_by_itself(monkeypatch, tmp_path):
    (tmp_path / "checkpoints" / "000000003").mkdir(parents=True)
    (tmp_path / training_of_runs.LAUNCH).write_text("job-1")
    config = RunConfig(run=tmp_path)
    assert training_of_runs._restarted(config).resume is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-2")
    assert training_of_runs._restarted(config).resume is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    assert training_of_runs._restarted(config).resume == tmp_path
