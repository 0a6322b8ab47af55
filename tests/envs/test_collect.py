import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import baselines, collect
from aaren_rl.envs.behaviours import RandomBehaviour
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.minari_reader import read_folder
from aaren_rl.errors import DataError, InvalidInput

COLLECT = Path(__file__).parents[2] / "scripts" / "collect.py"
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


def make_set(name, steps, seed=0, **more):
    entry = find(name)
    folder = collect.collect(entry, steps, seed, progress=False, **more)
    return folder, list(minari.load_dataset(entry.bundled_id).iterate_episodes())


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "minari"


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(("name", "steps"), [("hopper-medium", 1_500), ("hopper-random", 600)])
def test_dataset_is_whole_and_plain_minari_reads_it(name, steps):
    entry = find(name)
    folder, episodes = make_set(name, steps)
    dataset = minari.load_dataset(entry.bundled_id)
    lengths = [len(episode.rewards) for episode in episodes]
    assert dataset.total_steps == sum(lengths) >= steps
    # The last episode was needed.
    assert sum(lengths) - lengths[-1] < steps
    for episode, length in zip(episodes, lengths, strict=True):
        assert episode.observations.shape == (length + 1, 11)
        assert episode.actions.shape == (length, 3)
        assert np.isfinite(episode.rewards).all()
        assert np.abs(episode.actions).max() <= 1
        ends = episode.terminations | episode.truncations
        assert ends[-1]
        assert not ends[:-1].any()
        assert not episode.truncations[-1] or length == 1000
    read = read_folder(folder)
    trajectories, environment, dataset_id = read.trajectories, read.collected_in, read.id
    assert (trajectories.steps, trajectories.episodes) == (sum(lengths), len(lengths))
    assert (environment, dataset_id) == (EnvironmentSpec("Hopper-v5", {}, 1000), entry.bundled_id)


def test_same_seed_same_bits_other_seed_other_data():
    _, first = make_set("hopper-medium", 700)
    _, again = make_set("hopper-medium", 700, overwrite=True)
    _, other = make_set("hopper-medium", 700, seed=1, overwrite=True)
    assert_same(first, again)
    assert not np.array_equal(first[0].observations[0], other[0].observations[0])
    assert not np.array_equal(first[0].actions[0], other[0].actions[0])


def test_seed_of_one_set_is_not_that_of_another():
    _, medium = make_set("hopper-medium", 100)
    _, expert = make_set("hopper-expert", 100)
    assert not np.array_equal(medium[0].observations[0], expert[0].observations[0])


def test_episodes_do_not_depend_on_the_number_of_threads(monkeypatch):
    spec, policies = EnvironmentSpec("Hopper-v5"), baselines.behaviour_policies(find("hopper-medium-expert"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone = collect.roll_out(spec, policies, 200, (3,))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    threaded = collect.roll_out(spec, policies, 200, (3,))
    for one, other in zip(alone, threaded, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)


def test_recorded_actions_lead_through_the_recorded_episode():
    _, episodes = make_set("hopper-random", 60)
    env = minari.load_dataset(find("hopper-random").bundled_id).recover_environment()
    assert env.spec.id == "Hopper-v5"
    episode = episodes[0]
    env.reset(seed=0)
    physics = env.unwrapped
    # Hopper's state is its observation and the place along the track, which no reward depends on but by difference;
    # velocities are clipped in the observation, far beyond what random actions reach in the first steps.
    first = episode.observations[0].astype(np.float64)
    physics.set_state(np.concatenate([[0.0], first[:5]]), first[5:])
    for t in range(3):
        observation, reward, terminated, truncated, _ = env.step(episode.actions[t])
        np.testing.assert_allclose(observation, episode.observations[t + 1], atol=1e-3)
        assert reward == pytest.approx(episode.rewards[t], abs=1e-3)
        assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
    env.close()


def test_medium_replay_takes_equal_shares_of_all_its_snapshots():
    entry = find("hopper-medium-replay")
    policies = baselines.behaviour_policies(entry)
    counts = np.zeros(len(policies), dtype=int)

    class Counting:
        def __init__(self, number):
            self.number = number

        def __call__(self, episodes, rng):
            counts[self.number] += len(episodes)
            return policies[self.number](episodes, rng)

    steps = 20 * len(policies)
    episodes = collect.roll_out(entry.environments["bundled"], [Counting(i) for i in range(len(policies))], steps, (0,))
    assert len(policies) == 14
    assert (counts >= 20).all()
    assert len(episodes) >= 14
    assert sum(len(episode.rewards) for episode in episodes) == counts.sum()


def test_short_episodes_are_not_favoured():
    # Several slots, and episodes of very different lengths: what is kept are the first by number, not the first done.
    class Lasting(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 1 if self.np_random.random() < 0.5 else 400
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            self.left -= 1
            return np.zeros(1, dtype=np.float32), 0.0, self.left == 0, False, {}

    gym.register("tests/Lasting-v0", Lasting)
    try:
        policy = RandomBehaviour(np.array([-1.0]), np.array([1.0]))
        episodes = collect.roll_out(EnvironmentSpec("tests/Lasting-v0"), [policy], 32_000, (0,))
    finally:
        del gym.registry["tests/Lasting-v0"]
    long = sum(len(episode.rewards) == 400 for episode in episodes)
    # Half of some 160 episodes; four standard deviations.
    assert abs(long / len(episodes) - 0.5) < 4 * 0.5 / np.sqrt(len(episodes))


def test_progress_adds_up_to_the_steps_asked_for():
    counted = []
    policies = baselines.behaviour_policies(find("hopper-random"))
    collect.roll_out(EnvironmentSpec("Hopper-v5"), policies, 300, (0,), counted.append)
    assert sum(counted) == 300


def test_interruption_passes_through(monkeypatch, root):
    def interrupt(steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect.roll_out(
            EnvironmentSpec("Hopper-v5"), baselines.behaviour_policies(find("hopper-medium")), 5_000, (0,), interrupt
        )
    monkeypatch.setattr(collect.tqdm, "update", lambda self, steps: interrupt(steps))
    with pytest.raises(KeyboardInterrupt):
        collect.collect(find("hopper-medium"), 5_000, progress=False)
    assert set(files(root)) <= {"namespace_metadata.json"}


def test_control_c_on_the_command_line_leaves_nothing(root):
    arguments = [sys.executable, str(COLLECT), "hopper-medium", "--steps", "3000000"]

    # A shell's background jobs ignore Ctrl-C, and so do their children unless told otherwise.
    def heed():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(arguments, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        # The bar appears when the roll-out begins.
        assert process.stderr.read(1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=120)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped" in errors
    assert "Traceback" not in errors
    assert set(files(root)) <= {"namespace_metadata.json"}


def test_what_exists_is_kept_unless_told_otherwise():
    folder, first = make_set("hopper-random", 60)
    with pytest.raises(DataError, match=r"aaren/hopper/random-v0 exists already .*--overwrite"):
        make_set("hopper-random", 60, seed=1)
    assert_same(first, list(minari.load_dataset("aaren/hopper/random-v0").iterate_episodes()))
    _, second = make_set("hopper-random", 60, seed=1, overwrite=True)
    assert not np.array_equal(first[0].observations[0], second[0].observations[0])
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["random-v0"]


@pytest.mark.parametrize("steps", [0, -5])
def test_no_steps_is_an_error(steps):
    with pytest.raises(InvalidInput, match=f"{steps} steps"):
        collect.collect(find("hopper-random"), steps)


def test_root_that_cannot_be_written_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="no Minari datasets can be kept here"):
        make_set("hopper-random", 30)


def test_nothing_is_left_in_the_working_directory():
    make_set("hopper-random", 60)
    assert list(Path().iterdir()) == []
