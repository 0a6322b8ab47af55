"""The layout of the files is that of robomimic 0.3's `dataset_states_to_obs.py` and `convert_d4rl.py`."""

import json

import h5py
import numpy as np
import pytest

from aaren_rl.envs.readers.parsed import recording
from aaren_rl.envs.readers.robomimic import parse
from aaren_rl.errors import DataError, InvalidInput

STEPS = (5, 3, 4)


def write(path, change=lambda file: None, flat=False):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, steps in enumerate(STEPS):
            # Written in the order of the names, in which demo_10 comes before demo_2.
            demo = data.create_group(f"demo_{5 * number}")
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["states"] = rng.normal(size=(steps, 12))
            demo["rewards"] = np.eye(steps)[-1]
            demo["dones"] = np.eye(steps, dtype=np.int64)[-1]
            walk = rng.normal(size=(steps + 1, 3))
            parts = {"flat": walk} if flat else {"eef_pos": walk, "agentview_image": images(steps)}
            for key, values in parts.items():
                demo.create_dataset(f"obs/{key}", data=values[:-1], compression="gzip")
                demo.create_dataset(f"next_obs/{key}", data=values[1:], compression="gzip")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco/>"
        data.attrs["total"] = sum(STEPS)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}})
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
        change(file)
    return path


def images(steps):
    return np.random.default_rng(steps).integers(0, 255, (steps + 1, 6, 8, 3)).astype(np.uint8)


def test_demonstrations_in_the_order_of_their_numbers(tmp_path):
    path, said = write(tmp_path / "a.hdf5"), []
    episodes = parse(path, said.append).episodes
    assert [len(episode.rewards) for episode in episodes] == list(STEPS)
    with h5py.File(path) as file:
        for number, episode in enumerate(episodes):
            demo = file[f"data/demo_{5 * number}"]
            np.testing.assert_array_equal(episode.actions, demo["actions"])
            np.testing.assert_array_equal(episode.rewards, demo["rewards"])
            for key in ("eef_pos", "agentview_image"):
                expected = np.concatenate([demo[f"obs/{key}"], demo[f"next_obs/{key}"][-1:]])
                np.testing.assert_array_equal(episode.observations[key], expected)
            assert episode.terminated
    assert said == [
        "data: a.hdf5: all 3 demonstrations are read; its parts are train",
        "data: a.hdf5: recorded in 'Lift'; name an environment of Gymnasium's with --env-id to act in one",
    ]


def test_cameras_are_images_beside_the_numbers(tmp_path):
    found = recording(parse(write(tmp_path / "a.hdf5"), lambda line: None), "data")
    assert found.trajectories.observation_space.images().keys() == {"agentview_image"}
    observations = found.trajectories.observations
    assert observations["numbers"].shape == (12, 3)
    np.testing.assert_array_equal(observations["agentview_image"][:5], images(5)[:-1])
    assert observations["agentview_image"].dtype == np.uint8


def test_part_is_a_mask(tmp_path):
    said = []
    assert len(parse(write(tmp_path / "a.hdf5"), said.append, "train").episodes) == 2
    assert not any("parts are" in line for line in said)
    with pytest.raises(InvalidInput, match=r"a\.hdf5 has no part 'test'; expected one of train"):
        parse(tmp_path / "a.hdf5", said.append, "test")


def test_flat_observations_are_a_vector(tmp_path):
    found = recording(parse(write(tmp_path / "a.hdf5", flat=True), lambda line: None), "data")
    assert found.trajectories.observations.shape == (12, 3)
    assert found.trajectories.final_observations.shape == (3, 3)


def test_missing_next_observations_and_rewards(tmp_path):
    def change(file):
        for demo in file["data"].values():
            for key in ("next_obs", "rewards", "dones"):
                del demo[key]

    said = []
    found = recording(parse(write(tmp_path / "a.hdf5", change), said.append), "data").trajectories
    assert found.final_observations is None
    assert not found.rewards.any()
    assert found.truncated.all()
    assert "data: a.hdf5: 3 of 3 demonstrations have no rewards, which count as 0" in said


@pytest.mark.parametrize("text", ["no json", "[]", '{"env_name": "\\u001b[2J"}', "[" * 100_000])
def test_environment_text_of_any_kind_is_only_shown(tmp_path, text):
    def change(file):
        del file["data"].attrs["env_args"]
        file["data"].attrs.create("env_args", text[:60_000])

    said = []
    parse(write(tmp_path / "a.hdf5", change), said.append)
    assert not any("\x1b" in line for line in said)


def replaced(name, values):
    def change(file):
        del file[name]
        if values is not None:
            file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("data", None), r"a\.hdf5 has no group 'data'"),
        (replaced("data/demo_5/actions", None), r"a\.hdf5: data/demo_5 has no actions"),
        (
            replaced("data/demo_5/obs", None),
            r"data/demo_5 has no obs; .* states.*dataset_states_to_obs",
        ),
        (replaced("data/demo_5/rewards", np.zeros(2)), r"data/demo_5/rewards hold 2 for 3 steps"),
        (replaced("data/demo_5/obs/eef_pos", np.zeros((4, 3))), r"data/demo_5/obs/eef_pos hold 4 for 3 steps"),
        (replaced("data/demo_5/next_obs/eef_pos", None), r"data/demo_5/next_obs has no 'eef_pos', which obs has"),
        (replaced("data/demo_5/next_obs/eef_pos", np.zeros((3, 2))), r"next_obs/eef_pos has the shape \(3, 2\)"),
        (replaced("data/demo_5/next_obs/eef_pos", np.zeros((3, 3), np.float32)), "eef_pos are float32 .*float64"),
        (replaced("data/demo_5/obs/eef_pos", np.full((3, 3), np.nan)), r"data/demo_5/obs/eef_pos hold nan at step 0"),
        (replaced("data/demo_5/actions", np.array([b"x"] * 3)), r"data/demo_5/actions have the dtype"),
        (replaced("mask/train", np.array([b"demo_7"])), "lists 'demo_7', which is not among"),
    ],
)
def test_bad_file_is_one_line_that_names_the_demonstration(tmp_path, change, message):
    part = "train" if "demo_7" in message else None
    with pytest.raises(DataError, match=message) as error:
        parse(write(tmp_path / "a.hdf5", change), lambda line: None, part)
    assert "a.hdf5" in str(error.value)


def test_images_of_another_size_name_the_demonstration(tmp_path):
    def change(file):
        for key in ("obs", "next_obs"):
            del file[f"data/demo_5/{key}/agentview_image"]
            file[f"data/demo_5/{key}/agentview_image"] = np.zeros((3, 6, 9, 3), np.uint8)

    with pytest.raises(DataError, match=r"_image of episode 1 are uint8 of shape \(6, 9, 3\) per step; episode 0"):
        parse(write(tmp_path / "a.hdf5", change), lambda line: None)


def test_cut_file(tmp_path):
    whole = write(tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").write_bytes(whole[:-500])
    with pytest.raises(DataError, match=r"a\.hdf5 .*cut off"):
        parse(tmp_path / "a.hdf5", lambda line: None)
