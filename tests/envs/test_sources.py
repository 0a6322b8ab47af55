import importlib.util
import shutil
import time

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box as SpaceBox
from aaren_rl.envs import collect, sources
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.dataset import Reading
from aaren_rl.envs.download import d4rl_folder, ogbench_folder
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.readers.minari import local_folder
from aaren_rl.errors import DataError, InvalidInput

# A test that finds the data on this machine asks no host; one that does not is refused at once.
pytestmark = [
    pytest.mark.usefixtures("no_network"),
    # Minari misses authors, code links and so on.
    pytest.mark.filterwarnings("ignore::UserWarning:minari"),
]

NAME = "hopper-medium"
HOPPER = ((11,), (3,))


def episode_arrays(sizes, length=6, seed=0):
    rng = np.random.default_rng(seed)
    (observations,), (actions,) = sizes
    return rng.normal(size=(length + 1, observations)), rng.uniform(-1, 1, (length, actions)), rng.random(length)


def put_d4rl(name="hopper_medium-v2.hdf5", sizes=HOPPER, folder=None, scale=1.0):
    folder = folder or d4rl_folder()
    folder.mkdir(parents=True, exist_ok=True)
    observations, actions, rewards = episode_arrays(sizes)
    flags = np.zeros(6, dtype=bool)
    with h5py.File(folder / name, "w") as file:
        file["observations"], file["actions"], file["rewards"] = observations[:-1], scale * actions, rewards
        file["terminals"], file["timeouts"] = flags, np.eye(6, dtype=bool)[5]
    return folder / name


def put_minari(name="mujoco/hopper/medium-v0", env_id="Hopper-v5", sizes=HOPPER):
    observations, actions, rewards = episode_arrays(sizes)
    ends = np.eye(6, dtype=bool)[5]
    buffer = EpisodeBuffer(
        observations=observations,
        actions=actions,
        rewards=list(rewards),
        terminations=[False] * 6,
        truncations=list(ends),
        infos={},
    )
    env = gym.make(env_id) if env_id else None
    spaces = {"observation_space": gym.spaces.Box(-9, 9, sizes[0]), "action_space": gym.spaces.Box(-1, 1, sizes[1])}
    minari.create_dataset_from_buffers(name, [buffer], env=env, **({} if env else spaces))
    if env:
        env.close()
    return local_folder(name)


def put_bundled(name=NAME):
    return collect.collect(find(name), 30, progress=False)


def load(name, source="auto", env_id=None, clip_actions=False, **reading):
    """Loads as with the options of a command line; the dataset, and what was said."""
    said = []
    kwargs, horizon = reading.pop("kwargs", {}), reading.pop("horizon", None)
    choice = EnvironmentChoice(env_id, kwargs, horizon)
    read = Reading(choice, clip_actions, **reading)
    dataset = sources.load(name, source, read, said.append)
    return dataset, "\n".join(said)


def test_auto_prefers_minari_then_d4rl_then_bundled():
    folder, file = put_minari(), put_d4rl()
    put_bundled()
    dataset, said = load(NAME)
    assert (dataset.source, dataset.id) == ("minari", "mujoco/hopper/medium-v0")
    assert dataset.environment == EnvironmentSpec("Hopper-v5", {}, 1000)
    assert "source minari" in said
    assert "cannot be reached" not in said
    shutil.rmtree(folder)
    dataset, said = load(NAME)
    assert (dataset.source, dataset.id) == ("d4rl", "hopper_medium-v2.hdf5")
    assert dataset.environment == EnvironmentSpec("Hopper-v4")
    assert "cannot be reached" not in said
    file.unlink()
    dataset, said = load(NAME)
    assert (dataset.source, dataset.id) == ("bundled", "aaren/hopper/medium-v0")
    assert dataset.environment == EnvironmentSpec("Hopper-v5", {}, 1000)
    # Both hosts were asked before.
    assert said.count("cannot be reached") == 2
    assert dataset.reference.name == "D4RL v2"
    assert dataset.return_scale == 1000.0
    best, tenth, median = np.quantile(dataset.trajectories.returns, [1.0, 0.9, 0.5])
    assert dataset.target_returns[1:] == tuple(dict.fromkeys((best, tenth, median)))
    # Of an odd number of episodes one is the median.
    typical = np.sort(dataset.trajectories.returns)[len(dataset.trajectories.returns) // 2]
    if len(dataset.trajectories.returns) % 2:
        assert dataset.target_returns[0] == pytest.approx(best + 0.35 * typical, rel=1e-3)
    assert f"target: {dataset.target_returns[0]:g}, the best return in the data" in said
    # Of the best episodes alone what is typical is not asked for twice.
    kept, said = load(NAME, keep_best=0.5)
    assert kept.target_returns[0] == best
    assert "times the median" not in said
    np.testing.assert_array_equal(dataset.action_space.bounds(), [[-1, -1, -1], [1, 1, 1]])
    assert dataset.observation_space == SpaceBox.unbounded((11,), "float64")


def test_source_that_is_asked_for_is_the_one_taken():
    put_minari()
    put_d4rl()
    put_bundled()
    for source in ("minari", "d4rl", "bundled"):
        assert load(NAME, source)[0].source == source


@pytest.mark.parametrize("source", ["minari", "d4rl"])
def test_source_that_is_asked_for_is_not_replaced_by_another(source):
    put_bundled()
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"no data for hopper-medium.*cannot be reached"):
        load(NAME, source)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(("name", "source"), [("hopper-simple", "d4rl"), ("hopper-medium-replay", "minari")])
def test_source_that_has_no_such_set(name, source):
    with pytest.raises(InvalidInput, match=f"{name} does not come from {source}"):
        load(name, source)


def test_ant_without_data_says_that_nothing_is_bundled():
    with pytest.raises(DataError, match="no data for ant-medium: no behaviour is bundled for ant-medium"):
        load("ant-medium", "bundled")
    with pytest.raises(DataError, match=r"cannot be reached.*cannot be reached.*no behaviour is bundled"):
        load("ant-medium")


def test_scripted_expert_needs_no_network(monkeypatch):
    # Few steps, since the roll-out is not what is tested.
    monkeypatch.setattr(collect.collect, "__defaults__", (400, 0, False, False, print, None, None))
    dataset, said = load("t-maze-expert")
    assert "cannot be reached" not in said
    assert "rolling out" in said
    assert (dataset.source, dataset.id) == ("bundled", "aaren/t-maze/expert-v0")
    assert dataset.environment == EnvironmentSpec("aaren/PassiveTMaze-v0", {"shortest": 1, "longest": 150})
    assert (dataset.return_scale, dataset.target_returns) == (1.0, (1.0,))
    assert (dataset.reference.name, dataset.reference.random, dataset.reference.expert) == ("by construction", 0.5, 1.0)
    assert dataset.action_space.bounds() == (-1, 1)
    assert "rolling out" not in load("t-maze-expert")[1]
    for source in ("minari", "d4rl"):
        with pytest.raises(InvalidInput, match=f"t-maze-expert does not come from {source}"):
            load("t-maze-expert", source)


def test_d4rl_file_by_path(tmp_path):
    known = put_d4rl("walker2d_medium_replay-v2.hdf5", ((17,), (6,)), tmp_path)
    dataset, _ = load(str(known))
    assert (dataset.source, dataset.id) == ("d4rl", known.name)
    assert dataset.environment == EnvironmentSpec("Walker2d-v4")
    unknown = put_d4rl("mine.hdf5", folder=tmp_path)
    dataset, said = load(str(unknown))
    assert dataset.environment is None
    assert "environment: none (the data name none; name one with --env-id" in said
    dataset, _ = load(str(unknown), env_id="Hopper-v5")
    assert dataset.environment == EnvironmentSpec("Hopper-v5")
    assert dataset.reference.expert == 3234.3


def test_environment_that_is_given_goes_before_that_of_the_file(tmp_path):
    assert load(str(put_d4rl(folder=tmp_path)), env_id="Hopper-v5")[0].environment.id == "Hopper-v5"


def test_d4rl_data_whose_environment_died_are_trained_on_without_one():
    put_d4rl("maze2d-umaze-sparse-v1.hdf5", ((4,), (2,)))
    for name in ("maze2d-umaze", "maze2d-umaze-v1", str(d4rl_folder() / "maze2d-umaze-sparse-v1.hdf5")):
        dataset, said = load(name)
        assert (dataset.source, dataset.environment) == ("d4rl", None)
        assert dataset.reference_reason == "none: nothing is rolled out"
        assert "environment: none" in said
        assert ("data: D4RL's maze2d runs with Gym and mujoco-py alone" in said) == ("/" not in name)


def test_a_name_with_a_version_takes_no_other_data():
    put_minari()
    put_bundled()
    with pytest.raises(
        DataError,
        match=r"no behaviour is bundled for hopper-medium-v2 \(one is for hopper-medium, which is not the same",
    ):
        load("hopper-medium-v2")
    put_d4rl()
    assert load("hopper-medium-v2")[0].id == "hopper_medium-v2.hdf5"


def put_ogbench(name="cube-single-play-v0.npz"):
    rng = np.random.default_rng(0)
    ogbench_folder().mkdir(parents=True)
    terminals = np.eye(6, dtype=np.float32)[5]
    arrays = {"observations": rng.normal(size=(6, 28)), "actions": rng.uniform(-1, 1, (6, 5)), "terminals": terminals}
    np.savez(ogbench_folder() / name, **{key: np.float32(value) for key, value in arrays.items()})


@pytest.mark.parametrize("name", ["cube-single-play", "cube-single-play-v0"])
def test_ogbench_by_name(name):
    put_ogbench()
    dataset, said = load(name, env_id="none")
    assert (dataset.source, dataset.trajectories.steps) == ("ogbench", 5)
    assert "cannot be reached" not in said
    with pytest.raises(InvalidInput, match="does not come from d4rl"):
        load(name, "d4rl")


def test_an_environment_of_a_missing_package_is_named_with_its_install():
    if importlib.util.find_spec("ogbench"):
        pytest.skip("ogbench is installed")
    put_ogbench()
    with pytest.raises(
        InvalidInput, match=r"cube-single-v0 is of the package ogbench.*pip install 'aaren-rl\[ogbench\]'"
    ):
        load("cube-single-play")


def test_minari_folder_by_path_and_dataset_by_id():
    folder = put_minari("tests/hopper-v0")
    for name in (str(folder), "tests/hopper-v0"):
        dataset, _ = load(name)
        assert (dataset.source, dataset.id) == ("minari", "tests/hopper-v0")
        assert dataset.environment == EnvironmentSpec("Hopper-v5", {}, 1000)


def test_dataset_that_names_no_environment_has_its_recorded_spaces():
    put_minari("tests/hopper-v0", env_id=None)
    dataset, said = load("tests/hopper-v0")
    assert "environment: none" in said
    assert dataset.observation_space == SpaceBox.bounded(np.full(11, -9), np.full(11, 9))
    assert (dataset.environment, dataset.reference, dataset.collected_in) == (None, None, None)
    assert load("tests/hopper-v0", env_id="Hopper-v5")[0].environment.id == "Hopper-v5"


def test_targets_without_a_table_come_from_the_data():
    put_minari("tests/reacher-v0", "Reacher-v5", ((10,), (2,)))
    dataset, _ = load("tests/reacher-v0")
    assert dataset.reference is None
    assert dataset.return_scale == np.abs(dataset.trajectories.returns).max()
    best, tenth, median = np.quantile(dataset.trajectories.returns, [1.0, 0.9, 0.5])
    assert dataset.target_returns == tuple(dict.fromkeys((best, tenth, median)))
    np.testing.assert_array_equal(dataset.action_space.bounds(), [[-1, -1], [1, 1]])


def test_unknown_names():
    with pytest.raises(InvalidInput, match="unknown dataset 'hopper-mediun'; did you mean 'hopper-medium'"):
        load("hopper-mediun")
    with pytest.raises(DataError, match=r"nowhere\.hdf5 does not exist"):
        load("data/nowhere.hdf5")
    with pytest.raises(
        DataError, match=r"no local dataset .*'mujoco/hoper/medium-v0'; did you mean 'mujoco/hopper/medium-v0'"
    ):
        load("mujoco/hoper/medium-v0")


def test_dataset_of_the_hub_that_cannot_be_reached_is_not_called_unknown():
    with pytest.raises(DataError, match=r"cannot be reached.*; D4RL/pen/human-v2 is on Minari's hub") as caught:
        load("D4RL/pen/human-v2")
    assert "unknown" not in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_what_cannot_be_made_is_not_announced_and_leaves_no_folders(monkeypatch, tmp_path):
    def missing(spec):
        raise InvalidInput("its package is missing")

    monkeypatch.setattr(collect, "describe", missing)
    said = []
    with pytest.raises(InvalidInput, match="its package is missing"):
        sources.load("cartpole-mixed", say=said.append)
    assert not any("rolling out" in line for line in said)
    assert list((tmp_path / "minari").iterdir()) == []


def test_who_is_rolled_out_is_named(monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(collect, "roll_out", stop)
    names = {
        "cartpole-mixed": "scripted expert",
        "t-maze-expert": "scripted expert",
        "hopper-medium": "bundled behaviours",
    }
    for name, who in names.items():
        said = []
        with pytest.raises(KeyboardInterrupt):
            sources.load(name, "bundled", say=said.append)
        assert any(line.startswith(f"data: rolling out the {who} of {name}, once, for ") for line in said)


def test_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(DataError, match="not a Minari dataset"):
        load(str(tmp_path))


def test_unknown_environment_gives_a_near_match():
    put_d4rl()
    with pytest.raises(InvalidInput, match=r"did you mean .*'Hopper-v4'"):
        load(NAME, "d4rl", env_id="Hoper-v4")


@pytest.mark.parametrize("sizes", [((17,), (3,)), ((11,), (6,))])
def test_sizes_other_than_the_environments(sizes):
    put_d4rl(sizes=sizes)
    wrong = "observations" if sizes[0] != (11,) else "actions"
    size = sizes[0][0] if wrong == "observations" else sizes[1][0]
    with pytest.raises(DataError, match=rf"does not fit Hopper-v4: its {wrong} of shape \({size},\), the environm"):
        load(NAME, "d4rl")


def test_bounds_that_the_environment_lacks_come_from_the_data():
    class HalfBounded(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Box(np.array([-2, -np.inf, -np.inf]), np.array([np.inf, 3, np.inf]), dtype=np.float64)

    gym.register("tests/HalfBounded-v0", HalfBounded)
    try:
        dataset, _ = load(str(put_d4rl("mine.hdf5", ((2,), (3,)))), env_id="tests/HalfBounded-v0", horizon=6)
    finally:
        del gym.registry["tests/HalfBounded-v0"]
    actions = dataset.trajectories.actions
    low, high = dataset.action_space.bounds()
    np.testing.assert_array_equal(low, [-2, *actions.min(0)[1:]])
    np.testing.assert_array_equal(high, [actions[:, 0].max(), 3, actions[:, 2].max()])
    assert dataset.observation_space == SpaceBox.bounded([-1, -1], [1, 1])


def test_data_bring_their_final_observations():
    put_minari()
    put_d4rl()
    put_bundled()
    for source in ("minari", "bundled"):
        trajectories = load(NAME, source)[0].trajectories
        assert trajectories.final_observations.shape == (trajectories.episodes, 11)
    assert load(NAME, "d4rl")[0].trajectories.final_observations is None


def test_matrices_do_not_fit_an_environment_of_vectors():
    file = put_d4rl()
    with h5py.File(file, "a") as opened:
        observations = opened["observations"][:]
        del opened["observations"]
        opened["observations"] = observations[:, :, None]
    with pytest.raises(DataError, match=r"observations of shape \(11, 1\), the environment \(11,\)"):
        load(NAME, "d4rl")


def test_actions_outside_the_space():
    put_d4rl(scale=3.0)
    with pytest.raises(DataError, match=r"hopper_medium-v2.hdf5 has actions from .*outside the action space"):
        load(NAME, "d4rl")


def test_damaged_local_data_are_not_passed_over(tmp_path):
    put_bundled()
    file = put_d4rl()
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"hopper_medium-v2\.hdf5.*fetch it again"):
        load(NAME)


def test_the_return_scale_that_is_asked_for_is_the_one_that_is_judged():
    put_bundled()
    dataset, said = load(NAME, "bundled", return_scale=1.0)
    assert dataset.return_scale == 1.0
    assert "have a return-to-go beyond 100 times the return scale of 1" in said
    assert "return-to-go beyond" not in load(NAME, "bundled")[1]
