import dataclasses
import json
import re

import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.checkpoint import load_agent, save_agent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.evaluation import success_interval
from aaren_rl.scripts.evaluate import main


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def baseline_result(tmp_path, name):
    (folder,) = (tmp_path / "runs").glob(f"{name}-*")
    return result_of(folder)


def test_agent_gets_the_figures_of_its_training_run_again(command, trained, run_folder):
    before = result_of(run_folder)
    status, out, _ = command(main, run_folder / "last", "--episodes", "2")
    assert status == 0
    after = result_of(run_folder)
    for key in ("returns", "mean", "ci95", "normalized_score", "seeds", "checkpoint", "environment", "source"):
        assert after[key] == before[key], key
    assert "normalised score" in out
    assert str(run_folder / "result.json") in out


def test_options_are_followed_and_written_down(command, run_folder):
    status, _, _ = command(main, run_folder / "last", "--episodes", "3", "--seed", "5", "--target", "1800")
    assert status == 0
    result = result_of(run_folder)
    assert (result["episodes"], result["seeds"], result["target"]) == (3, [5, 6, 7], 1800.0)
    assert len(result["returns"]) == 3


@pytest.mark.parametrize("acting", ["window:4", "reset:4"])
def test_an_agent_acts_as_asked_and_the_result_says_so(command, run_folder, acting):
    command(main, run_folder / "last", "--episodes", "2")
    streamed = result_of(run_folder)
    assert command(main, run_folder / "last", "--episodes", "2", "--acting", acting)[0] == 0
    assert (streamed["acting"], result_of(run_folder)["acting"]) == ("stream", acting)
    assert result_of(run_folder)["returns"] != streamed["returns"]
    assert result_of(run_folder)["parameters"] == streamed["parameters"] > 0


def test_sweep_takes_quantiles_of_the_data_and_draws_returns(command, run_folder):
    status, out, _ = command(main, run_folder / "last", "--episodes", "2", "--targets", "sweep")
    assert status == 0
    card = json.loads((run_folder / "last" / "agent.json").read_text())
    results = json.loads((run_folder / "targets-last-stream.json").read_text())["results"]
    assert [figures["target"] for figures in results] == sorted({*card["data_returns"][::2], *card["target_returns"]})
    assert all(len(figures["returns"]) == 2 for figures in results)
    assert (run_folder / "targets-last-stream.png").read_bytes().startswith(b"\x89PNG")
    assert out.count("\n| ") == len(results)
    # A single target in a sweep is that target by itself.
    command(main, run_folder / "last", "--episodes", "2", "--target", "1800")
    assert command(main, run_folder / "last", "--episodes", "2", "--targets", "1800")[0] == 0
    (figures,) = json.loads((run_folder / "targets-last-stream.json").read_text())["results"]
    assert figures["returns"] == result_of(run_folder)["returns"]


def test_a_horizon_beyond_the_environments_own(command, run_folder):
    status, _, _ = command(main, run_folder / "last", "--episodes", "2", "--horizon", "4", "--renew", "2")
    assert status == 0
    result = result_of(run_folder)
    assert result["lengths"] == [4, 4]
    assert (result["environment_kwargs"], result["max_episode_steps"], result["renew"]) == ({}, 4, 2)
    assert result["normalized_score"] is result["reference"] is None
    assert result["mean_per_step"] == pytest.approx(result["mean"] / 4)
    assert command(main, run_folder / "last", "--renew", "0")[0] == 2


def test_earlier_results_are_kept(command, run_folder):
    before = (run_folder / "result.json").read_text()
    for episodes in (1, 2):
        command(main, run_folder / "best", "--episodes", episodes)
    assert (result_of(run_folder)["checkpoint"], result_of(run_folder)["episodes"]) == ("best", 2)
    assert (run_folder / "result-1.json").read_text() == before
    assert json.loads((run_folder / "result-2.json").read_text())["episodes"] == 1


def test_random_baseline(command, tmp_path):
    status, out, _ = command(main, "random", "--env", "hopper-medium", "--episodes", "20")
    assert status == 0
    result = baseline_result(tmp_path, "hopper-medium-random")
    # D4RL's random policy stands for a score of 0; v5 gives nothing for an episode that ends at once.
    assert -2 < result["normalized_score"] < 3
    assert (result["target"], result["checkpoint"], result["environment"]) == (None, "random", "Hopper-v5")
    assert "random" in out


def test_behaviour_baseline(command, tmp_path):
    status, _, _ = command(main, "behaviour", "--env", "hopper-medium", "--episodes", "4")
    assert status == 0
    result = baseline_result(tmp_path, "hopper-medium-behaviour")
    assert 20 < result["normalized_score"] < 80
    assert result["dataset"] == "aaren/hopper/medium-v0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random"], "pass --env"),
        (["random", "--env", "hoper-medium"], "did you mean .*'hopper-medium'"),
        (["behaviour", "--env", "ant-medium"], "no behaviour is bundled for ant-medium"),
        (["random", "--env", "hopper-medium", "--targets", "sweep"], "a baseline has no --targets"),
        (["random", "--env", "hopper-medium", "--acting", "stream"], "a baseline has no --acting stream; leave it out"),
        (["random", "--env", "hopper-medium", "--target", "3600"], "a baseline has no --target 3600.0; leave it out"),
        (["randm"], "did you mean 'random'"),
        (["runs/none/last"], r"agent\.json is missing"),
    ],
)
def test_mistakes_end_with_status_two_and_what_to_do(command, tmp_path, arguments, message):
    status, _, errors = command(main, *arguments)
    assert status == 2
    assert errors.startswith("error: ")
    assert re.search(message, errors)
    assert list(tmp_path.iterdir()) == []


def test_environment_of_other_sizes(command, run_folder):
    before = (run_folder / "result.json").read_bytes()
    status, _, errors = command(main, run_folder / "last", "--env-id", "HalfCheetah-v5")
    assert status == 2
    for part in ("(17,)", "(11,)", "aaren/hopper/medium-v0", "Hopper-v5"):
        assert part in errors
    assert (run_folder / "result.json").read_bytes() == before


def test_environment_that_is_unknown(command, run_folder):
    status, _, errors = command(main, run_folder / "last", "--env-id", "Hoper-v5")
    assert status == 2
    assert "did you mean" in errors


def test_altered_weights_are_refused(command, run_folder):
    path = run_folder / "last" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    status, _, errors = command(main, run_folder / "last")
    assert status == 2
    assert "model.safetensors is not the file that was saved" in errors


def test_missing_weights_are_named(command, run_folder):
    (run_folder / "last" / "model.safetensors").unlink()
    status, _, errors = command(main, run_folder / "last")
    assert status == 2
    assert "model.safetensors is missing" in errors


def assert_video_or_advice(done, folder):
    if done.returncode == 0:
        # An mp4 begins with its file type box.
        assert (folder / "video.mp4").read_bytes()[4:8] == b"ftyp"
        assert "video.mp4" in done.stdout
    else:
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "MUJOCO_GL" in done.stderr
        assert "libosmesa6" in done.stderr


@pytest.mark.slow
def test_video_is_recorded_or_the_error_says_what_to_install(script, run_folder):
    done = script("evaluate", run_folder / "last", "--episodes", "1", "--video", MUJOCO_GL="egl")
    assert_video_or_advice(done, run_folder)
    if done.returncode == 0:
        assert result_of(run_folder)["episodes"] == 1


def test_renderer_that_is_not_installed_is_named(script, run_folder):
    done = script("evaluate", run_folder / "last", "--episodes", "1", "--video", MUJOCO_GL="osmesa")
    assert_video_or_advice(done, run_folder)


class Reaching(gym.Wrapper):
    """A hopper that falls at an instruction, or says that it is where it should be."""

    def __init__(self, fails=False):
        super().__init__(gym.make("Hopper-v5", max_episode_steps=3))
        self.fails = fails

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.fails:
            raise RuntimeError("the simulator\nis gone")
        return observation, reward, terminated, truncated, info | {"is_success": 1.0}


@pytest.fixture
def reaching():
    for name, fails in (("Reaching", False), ("Failing", True)):
        gym.register(f"tests/{name}-v0", Reaching, kwargs={"fails": fails})
    yield
    for name in ("Reaching", "Failing"):
        del gym.registry[f"tests/{name}-v0"]


def test_success_stands_beside_the_return(command, run_folder, reaching):
    status, out, _ = command(main, run_folder / "last", "--episodes", "2", "--env-id", "tests/Reaching-v0")
    assert status == 0
    low, high = success_interval(2, 2)
    assert f"over 2 episodes, success 100% [{100 * low:.0f}, {100 * high:.0f}]" in out
    assert result_of(run_folder)["success_rate"] == 1.0
    assert ", success " not in command(main, run_folder / "last", "--episodes", "2")[1]


def test_an_environment_that_fails_is_one_line(command, run_folder, reaching):
    status, _, err = command(main, run_folder / "last", "--episodes", "2", "--env-id", "tests/Failing-v0")
    assert status == 2
    told = "environment tests/Failing-v0 failed at step 1 of episode 1 of 1 in row 0 (seed 0)"
    (line,) = [line for line in err.splitlines() if "simulator" in line]
    assert f"error: {told}: RuntimeError: the simulator is gone" in line
    assert "Traceback" not in err


def test_evaluation_repeats_under_its_seed(command, run_folder):
    returns = []
    for seed in (3, 3, 4):
        command(main, run_folder / "last", "--episodes", "2", "--seed", seed)
        returns.append(result_of(run_folder)["returns"])
    assert returns[0] == returns[1]
    assert not np.array_equal(returns[0], returns[2])


def test_a_file_that_the_agent_names_is_not_read(command, run_folder, tmp_path):
    (tmp_path / "evil.xml").write_text("<mujoco/>")
    model, card = load_agent(run_folder / "last")
    environment = EnvironmentSpec("Hopper-v5", {"xml_file": str(tmp_path / "evil.xml")})
    save_agent(tmp_path / "agent", model, dataclasses.replace(card, environment=environment))
    status, _, errors = command(main, tmp_path / "agent", "--episodes", "1")
    assert status == 2
    assert "the argument xml_file, which names a file" in errors
    assert "pass --env-kwargs xml_file=FILE" in errors
    # Named by the user, it is read, and found to be no hopper.
    words = ["--episodes", "1", "--env-kwargs", f"xml_file={tmp_path}/evil.xml"]
    status, _, errors = command(main, tmp_path / "agent", *words)
    assert status == 2
    assert "cannot be made" in errors
