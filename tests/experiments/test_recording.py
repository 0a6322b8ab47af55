import shutil
from pathlib import Path

import minari
import numpy as np
import pytest

import aaren_rl
from aaren_rl.agents import DecisionAgent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.environments import make
from aaren_rl.envs.sources import load
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments.recording import Recording, to_minari
from aaren_rl.scripts.collect import main


@pytest.fixture
def namespace(surroundings):
    """Name of a namespace whose datasets are gone after the test."""
    yield "mine"
    shutil.rmtree(Path(surroundings["MINARI_DATASETS_PATH"]) / "mine", ignore_errors=True)


def test_an_agents_episodes_become_a_dataset(command, run_folder, namespace):
    arguments = [
        "--agent",
        run_folder / "last",
        "--dataset-id",
        f"{namespace}/hopper-v0",
        "--episodes",
        "3",
        "--seed",
        "5",
    ]
    status, out, errors = command(main, *arguments)
    assert status == 0, errors
    assert "data: mine/hopper-v0: 3 episodes" in out
    dataset = minari.load_dataset("mine/hopper-v0")
    assert dataset.total_episodes == 3
    assert dataset.spec.env_spec.id == "Hopper-v5"
    # The same by hand: row i is seeded with 500,000 + seed + i.
    agent, env = DecisionAgent.load(run_folder / "last"), make(EnvironmentSpec("Hopper-v5"))
    for number, episode in enumerate(dataset.iterate_episodes()):
        observation, _ = env.reset(seed=500_005 + number)
        agent.reset()
        for t, action in enumerate(episode.actions):
            np.testing.assert_allclose(episode.observations[t], observation, atol=1e-3)
            acted = agent.act(observation, episode.rewards[t - 1] if t else None)
            np.testing.assert_allclose(action, acted, atol=1e-3)
            observation, _, terminated, truncated, _ = env.step(action)
        assert (terminated, truncated) == (episode.terminations[-1], episode.truncations[-1])
    status, _, errors = command(main, *arguments)
    assert status == 2
    assert "mine/hopper-v0 exists already" in errors
    assert command(main, *arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--agent", "x"], "needs a name; pass --dataset-id, as mine/hopper-v0"),
        (["--agent", "x", "--dataset-id", "mine/h-v0", "--steps", "9"], "leave out --steps"),
        (["--agent", "x", "--dataset-id", "mine/h-v0", "--episodes", "0"], "0 episodes; expected at least 1"),
        ([], "nothing to collect; give names of the catalogue, --expert NAME --env-id ID, or --agent"),
        (["hopper-medium", "--agent", "x", "--dataset-id", "mine/h-v0"], "leave out names"),
        (["hopper-medium", "--target", "9"], "--target and --temperature go with --agent"),
        (["--agent", "x", "--dataset-id", "mine"], "is no id of a Minari dataset"),
        (["--agent", "nowhere", "--dataset-id", "mine/h-v0"], "nowhere"),
    ],
)
def test_options_that_do_not_fit_are_refused(command, arguments, said):
    status, _, errors = command(main, *arguments)
    assert status == 2
    assert said in errors


def test_no_episodes_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="0 episodes; expected at least 1"):
        Recording(tmp_path, "mine/h-v0", 0)


def episodes_of(final, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for steps in (4, 2, 3):
        seen = steps + final
        made.append(
            aaren_rl.Episode(
                {"place": rng.normal(size=(seen, 2)), "picture": rng.integers(0, 255, (seen, 9, 9, 3), dtype=np.uint8)},
                rng.integers(0, 3, size=steps),
                rng.normal(size=steps),
                terminated=steps == 4,
                truncated=steps != 4,
            )
        )
    return aaren_rl.Trajectories.from_episodes(made)


@pytest.mark.parametrize("final", [True, False])
def test_trajectories_come_back_from_minari(surroundings, namespace, monkeypatch, capsys, final):
    monkeypatch.setenv("MINARI_DATASETS_PATH", surroundings["MINARI_DATASETS_PATH"])
    trajectories = episodes_of(final)
    folder = to_minari(trajectories, f"{namespace}/own-v0")
    assert folder.is_dir()
    assert ("the last one stands in its place" in capsys.readouterr().out) == (not final)
    back = load(f"{namespace}/own-v0", say=lambda line: None).trajectories
    assert back.lengths.tolist() == [4, 2, 3]
    np.testing.assert_array_equal(back.terminated, trajectories.terminated)
    np.testing.assert_allclose(back.rewards, trajectories.rewards, rtol=1e-6)
    np.testing.assert_array_equal(back.actions, trajectories.actions)
    for key, part in trajectories.observations.items():
        np.testing.assert_allclose(back.observations[key], part, rtol=1e-6)
    with pytest.raises(DataError, match="exists already at .*; pass overwrite=True"):
        to_minari(trajectories, f"{namespace}/own-v0")
    to_minari(trajectories, f"{namespace}/own-v0", overwrite=True)


def test_an_environment_is_recorded(surroundings, namespace, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", surroundings["MINARI_DATASETS_PATH"])
    rng = np.random.default_rng(0)
    made = [aaren_rl.Episode(rng.normal(size=(6, 11)), rng.uniform(-1, 1, (5, 3)), np.ones(5), terminated=True)] * 3
    to_minari(aaren_rl.Trajectories.from_episodes(made), f"{namespace}/hopper-v0", EnvironmentSpec("Hopper-v5"))
    assert minari.load_dataset(f"{namespace}/hopper-v0").spec.env_spec.id == "Hopper-v5"
