import shutil
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest

from aaren_rl.data.trajectories import Episode
from aaren_rl.envs import minari_writer, sources
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.readers import detect
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.envs.readers.npz import write_npz
from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments import converting
from aaren_rl.experiments.converting import convert
from aaren_rl.scripts.convert import main

# Minari misses authors, code links and so on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

RECORDED = Path(__file__).parents[1] / "envs" / "readers" / "recorded"


@pytest.fixture(autouse=True)
def own_data_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))


def d4rl(path, timeouts=True):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(12, 3)), rng.uniform(-1, 1, (12, 1))
        file["rewards"], file["terminals"] = rng.normal(size=12), np.zeros(12)
        if timeouts:
            file["timeouts"] = np.arange(12) % 6 == 5
    return path


def ogbench(path):
    rng = np.random.default_rng(0)
    data = {"observations": rng.normal(size=(10, 3)), "actions": rng.normal(size=(10, 2))}
    np.savez(path, **data, terminals=np.arange(10) % 5 == 4)
    return path


def robomimic(path):
    with h5py.File(path, "w") as file:
        for number in (0, 1):
            file[f"data/demo_{number}/obs/state"] = np.random.default_rng(number).normal(size=(5, 3))
            file[f"data/demo_{number}/obs/camera"] = np.zeros((5, 40, 40, 3), np.uint8)
            file[f"data/demo_{number}/actions"] = np.zeros((5, 2))
            file[f"data/demo_{number}/rewards"] = np.eye(5)[4]
        file["mask/one"] = np.array([b"demo_1"])
    return path


def cart_pole(path, observation=(4,), actions=2):
    rng = np.random.default_rng(0)
    episodes = [
        Episode(rng.normal(size=(5, *observation)).astype(np.float32), np.arange(4) % actions, np.ones(4), True)
        for _ in range(3)
    ]
    space = gym.spaces.Box(-np.inf, np.inf, observation)
    write_npz(path, episodes, space, gym.spaces.Discrete(actions))
    return path


SOURCES = {
    "d4rl": lambda folder: d4rl(folder / "a.hdf5"),
    "ogbench": lambda folder: ogbench(folder / "b.npz"),
    "robomimic": lambda folder: robomimic(folder / "c.hdf5"),
    "npz": lambda folder: cart_pole(folder / "d.npz"),
    "d3rlpy": lambda folder: RECORDED / "d3rlpy" / "d3rlpy_tuple.h5",
    "rlds": lambda folder: RECORDED / "rlds" / "1.0.0",
    "lerobot": lambda folder: RECORDED / "lerobot",
}


def same(given, expected):
    if isinstance(expected, dict):
        return sorted(given) == sorted(expected) and all(same(given[key], expected[key]) for key in expected)
    if isinstance(expected, tuple):
        return all(same(one, other) for one, other in zip(given, expected, strict=True))
    return list(given) == expected if isinstance(expected, list) else np.array_equal(given, expected)


def test_all_formats_are_tried():
    assert set(SOURCES) == set(detect.READERS)


@pytest.mark.parametrize("name", SOURCES)
def test_minari_reads_the_same_values_from_every_format(tmp_path, name, capsys):
    if name == "lerobot":
        pytest.importorskip("pyarrow")
    path = SOURCES[name](tmp_path)
    convert(str(path), "tests/new-v0", show_progress=False)
    parsed = detect.READERS[name](path, lambda line: None)
    dataset = minari.load_dataset("tests/new-v0")
    assert dataset.total_episodes == len(parsed.episodes)
    for given, expected in zip(dataset.iterate_episodes(), parsed.episodes, strict=True):
        assert same(given.actions, expected.actions)
        assert same(given.rewards, expected.rewards)
        observations = given.observations
        if len(given.rewards) == len(next(iter(leaves(expected.observations)))):
            assert "stands in its place" in dataset.storage.metadata["description"]
            observations = cut(observations)
        assert same(observations, expected.observations)
        assert (given.terminations[-1], given.truncations[-1]) == (expected.terminated, expected.truncated)


def leaves(values):
    if isinstance(values, dict | tuple):
        for part in values.values() if isinstance(values, dict) else values:
            yield from leaves(part)
    else:
        yield values


def cut(values):
    if isinstance(values, dict):
        return {key: cut(part) for key, part in values.items()}
    return tuple(map(cut, values)) if isinstance(values, tuple) else values[:-1]


@pytest.mark.parametrize("name", ["d4rl", "robomimic", "npz", "rlds"])
def test_data_load_the_same_before_and_after(tmp_path, name):
    path = SOURCES[name](tmp_path)
    convert(str(path), "tests/new-v0", show_progress=False)
    before, after = (sources.load(data, say=lambda line: None).trajectories for data in (path, "tests/new-v0"))
    assert same(after.observations, before.observations)
    assert same(after.actions, before.actions)
    assert same(after.returns, before.returns)


def test_environment_is_recorded_with_its_spaces(tmp_path, capsys):
    convert(str(cart_pole(tmp_path / "a.npz")), "tests/new-v0", EnvironmentChoice("CartPole-v1"), show_progress=False)
    dataset = minari.load_dataset("tests/new-v0")
    assert dataset.spec.env_spec.id == "CartPole-v1"
    assert dataset.action_space == gym.spaces.Discrete(2)
    assert sources.load("tests/new-v0", say=lambda line: None).environment.id == "CartPole-v1"
    assert "environment: CartPole-v1" in capsys.readouterr().out


def test_environment_of_the_data_that_cannot_be_made_is_said_and_not_recorded(tmp_path, monkeypatch, capsys):
    def unknown(spec):
        raise InvalidInput(f"{spec} is of a package that is not installed")

    monkeypatch.setattr(converting, "describe", unknown)
    path = str(ogbench(tmp_path / "cube-single-play-v0.npz"))
    convert(path, "tests/new-v0", show_progress=False)
    assert "warning: the data name cube-single-v0, which is not recorded" in capsys.readouterr().out
    assert minari.load_dataset("tests/new-v0").spec.env_spec is None
    convert(path, "tests/new-v0", EnvironmentChoice("none"), overwrite=True, show_progress=False)
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="not installed"):
        convert(path, "tests/other-v0", EnvironmentChoice("cube-single-v0"), show_progress=False)


@pytest.mark.parametrize(
    ("observation", "actions", "message"),
    [((3,), 2, r"does not fit CartPole-v1: observations have shape \(3,\)"), ((4,), 3, "actions of episode 0")],
)
def test_environment_that_does_not_fit_is_refused(tmp_path, observation, actions, message):
    path = cart_pole(tmp_path / "a.npz", observation, actions)
    with pytest.raises(DataError, match=message):
        convert(str(path), "tests/new-v0", EnvironmentChoice("CartPole-v1"), show_progress=False)
    assert not local_folder("tests/new-v0").exists()


def test_part_of_the_data(tmp_path):
    path = str(robomimic(tmp_path / "a.hdf5"))
    convert(path, "tests/new-v0", part="one", show_progress=False)
    assert minari.load_dataset("tests/new-v0").total_episodes == 1
    with pytest.raises(InvalidInput, match="is of the format d4rl, which has no parts; leave out --part one"):
        convert(str(d4rl(tmp_path / "b.hdf5")), "tests/other-v0", part="one", show_progress=False)
    with pytest.raises(InvalidInput, match="which has no videos; leave out --without-videos"):
        convert(path, "tests/other-v0", videos=False, show_progress=False)


def test_dataset_that_exists_is_only_replaced_on_request(tmp_path):
    path = d4rl(tmp_path / "a.hdf5")
    folder = convert(str(path), "tests/new-v0", show_progress=False)
    with pytest.raises(DataError, match=r"tests/new-v0 exists already at .*; pass --overwrite"):
        convert(str(path), "tests/new-v0", show_progress=False)
    other = cart_pole(tmp_path / "b.npz")
    assert convert(str(other), "tests/new-v0", overwrite=True, show_progress=False) == folder
    assert minari.load_dataset("tests/new-v0").total_episodes == 3
    assert not list(folder.parent.glob(".*"))


def test_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    path = d4rl(tmp_path / "a.hdf5")
    folder = convert(str(path), "tests/new-v0", show_progress=False)

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(minari_writer, "write_file", fail)
    with pytest.raises(DataError, match=r"could not be written: No space left"):
        convert(str(path), "tests/new-v0", overwrite=True, show_progress=False)
    assert minari.load_dataset("tests/new-v0").total_episodes == 2
    assert not list(folder.parent.glob(".*"))


def test_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(DataError, match=r"has 0\.0 MiB of free space"):
        convert(str(d4rl(tmp_path / "a.hdf5")), "tests/new-v0", show_progress=False)
    assert not local_folder("tests/new-v0").exists()


def test_minari_dataset_has_nothing_to_convert(tmp_path):
    folder = convert(str(d4rl(tmp_path / "a.hdf5")), "tests/new-v0", show_progress=False)
    for name in (str(folder), "tests/new-v0"):
        with pytest.raises(InvalidInput, match="is a Minari dataset already, at"):
            convert(name, "tests/other-v0", show_progress=False)


@pytest.mark.parametrize(
    "name", ["new", "x/new-v0", "../new-v0", "/new-v0", "a/../../new-v0", "new-v0 ", "x" * 500 + "-v0"]
)
def test_id_that_is_none(tmp_path, name):
    with pytest.raises(InvalidInput, match="is no id of a Minari dataset; expected NAME-vN.* two letters or more"):
        convert(str(d4rl(tmp_path / "a.hdf5")), name, show_progress=False)


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    d4rl(tmp_path / "a.hdf5", timeouts=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])
        try:
            main()
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    status, _, error = run("a.hdf5", "tests/new-v0")
    assert status == 2
    assert "pass --horizon" in error
    status, out, error = run("a.hdf5", "tests/new-v0", "--horizon", "4", "--env-id", "none")
    assert status == 0, error
    assert f"tests/new-v0: {local_folder('tests/new-v0')}" in out
    assert "a (d4rl), 3 episodes, 12 steps" in out
    assert "tests/new-v0" in error  # the progress bar
    status, _, error = run("nothing.png", "tests/new-v0", "--overwrite")
    assert status == 2
    assert "nothing.png does not exist" in error


def plain_npz(path, observations, actions):
    rewards, ends = np.zeros(len(actions)), np.eye(len(actions), dtype=int)[-1]
    np.savez(path, observations=observations, actions=actions, rewards=rewards, terminated=ends, truncated=0 * ends)
    return str(path)


def test_actions_outside_the_bounds_of_the_environment_are_refused(tmp_path):
    path = plain_npz(tmp_path / "a.npz", np.zeros((3, 3), np.float32), np.array([[5.0], [0], [-2]]))
    with pytest.raises(DataError, match=r"actions of episode 0 are from \[-2.\] to \[5.\], .* --env-id none"):
        convert(path, "tests/new-v0", EnvironmentChoice("Pendulum-v1"), show_progress=False)
    assert not local_folder("tests/new-v0").exists()
    convert(path, "tests/new-v0", EnvironmentChoice("none"), show_progress=False)
    inside = plain_npz(tmp_path / "b.npz", np.zeros((3, 3), np.float32), np.array([[2.0], [0], [-2]]))
    convert(inside, "tests/new-v0", EnvironmentChoice("Pendulum-v1"), overwrite=True, show_progress=False)


def test_numbers_without_recorded_spaces_fit_an_environment_of_choices(tmp_path):
    choice = EnvironmentChoice("FrozenLake-v1")
    path = plain_npz(tmp_path / "a.npz", np.array([0, 4, 8]), np.array([0, 1, 2]))
    convert(path, "tests/new-v0", choice, show_progress=False)
    dataset = minari.load_dataset("tests/new-v0")
    assert dataset.observation_space == gym.spaces.Discrete(16)
    assert next(dataset.iterate_episodes()).observations.tolist() == [0, 4, 8, 8]
    other = plain_npz(tmp_path / "b.npz", np.array([0, 4, 16]), np.array([0, 1, 2]))
    with pytest.raises(DataError, match="does not fit FrozenLake-v1: observations of episode 0"):
        convert(other, "tests/new-v0", choice, overwrite=True, show_progress=False)


def test_last_steps_of_rlds_are_kept_on_request(tmp_path):
    path = str(SOURCES["rlds"](tmp_path))
    folders = [convert(path, f"tests/{kept}-v0", last_steps=kept, show_progress=False) for kept in (False, True)]
    assert all(folder.exists() for folder in folders)
    without, whole = (minari.load_dataset(f"tests/{kept}-v0").total_steps for kept in (False, True))
    assert whole == without + 2
    with pytest.raises(InvalidInput, match="is of the format d4rl, whose last steps are all kept"):
        convert(str(d4rl(tmp_path / "b.hdf5")), "tests/other-v0", last_steps=True, show_progress=False)
