"""The layout of the files, and the three forms, are those of `ogbench.utils.load_dataset` (OGBench 1.2.2)."""

import numpy as np
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs.readers.ogbench import environment_of, parse
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.errors import DataError


def trajectories(lengths=(4, 3), observation=(3,), dtype=np.float32, actions=(2,)):
    """As in a file: T + 1 rows for T steps, the last one marked."""
    rng = np.random.default_rng(0)
    rows = sum(lengths) + len(lengths)
    values = rng.integers(0, 255, (rows, *observation)) if dtype == np.uint8 else rng.normal(size=(rows, *observation))
    terminals = np.zeros(rows, np.float32)
    terminals[np.cumsum(np.add(lengths, 1)) - 1] = 1
    return {
        "observations": values.astype(dtype),
        "actions": rng.uniform(-1, 1, (rows, *actions)).astype(np.float32),
        "terminals": terminals,
        "qpos": rng.normal(size=(rows, 5)),
    }


def regular(data):
    """As the loader's regular form."""
    kept = data["terminals"] == 0
    ends = np.append(data["terminals"][1:], 1)[kept]
    after = np.flatnonzero(kept) + 1
    return {
        "observations": data["observations"][kept],
        "next_observations": data["observations"][after],
        "actions": data["actions"][kept],
        "terminals": ends.astype(np.float32),
    }


def compact(data):
    """As the loader's compact form."""
    ends = np.minimum(data["terminals"] + np.append(data["terminals"][1:], 1), 1)
    return {**data, "valids": 1 - data["terminals"], "terminals": ends}


def save(path, data):
    np.savez(path, **data)
    return path


@pytest.mark.parametrize("form", [dict, regular, compact])
def test_three_forms_hold_the_same_steps(tmp_path, form):
    data, said = trajectories(), []
    episodes = parse(save(tmp_path / "a.npz", form(data)), said.append).episodes
    start = 0
    for episode, length in zip(episodes, (4, 3), strict=True):
        np.testing.assert_array_equal(episode.observations, data["observations"][start : start + length + 1])
        np.testing.assert_array_equal(episode.actions, data["actions"][start : start + length])
        np.testing.assert_array_equal(episode.rewards, np.zeros(length))
        assert (episode.terminated, episode.truncated) == (False, True)
        start += length + 1
    assert said == ["data: a.npz: no rewards in the file, as in all of OGBench's; every reward counts as 0"]


def test_trajectories_have_the_final_observations(tmp_path):
    data = trajectories()
    found = recording(parse(save(tmp_path / "a.npz", data), lambda line: None), "data").trajectories
    np.testing.assert_array_equal(found.final_observations, data["observations"][[4, 8]])
    assert (found.episodes, found.steps) == (2, 7)


def test_relabelled_data_bring_rewards_and_ends(tmp_path):
    data = regular(trajectories())
    data |= {"rewards": np.arange(7, dtype=np.float32), "masks": np.array([1, 1, 1, 0, 1, 1, 1], np.float32)}
    said = []
    episodes = parse(save(tmp_path / "a.npz", data), said.append).episodes
    assert [episode.rewards.tolist() for episode in episodes] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [episode.terminated for episode in episodes] == [True, False]
    assert said == []


def test_images_stay_bytes_and_choices_whole_numbers(tmp_path):
    data = trajectories(observation=(8, 8, 3), dtype=np.uint8)
    data["actions"] = np.arange(len(data["terminals"]), dtype=np.int32) % 4
    said = []
    found = recording(parse(save(tmp_path / "powderworld.npz", data), said.append), "data")
    (images,) = found.trajectories.observations.values()
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, data["observations"][data["terminals"] == 0])
    assert found.trajectories.action_space.counts == (4,)
    assert "actions are whole numbers, so they are choices: 0 to 3" in said[-1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cube-single-play-v0", "cube-single-v0"),
        ("antmaze-large-navigate-v0-val", "antmaze-large-v0"),
        ("visual-puzzle-4x4-noisy-v0", "visual-puzzle-4x4-v0"),
        ("humanoidmaze-giant-stitch-v0", "humanoidmaze-giant-v0"),
        ("powderworld-easy-play-v0", "powderworld-easy-v0"),
        ("mine", None),
        ("cube-single-v0", None),
    ],
)
def test_name_of_a_file_is_that_of_its_environment(tmp_path, name, expected):
    assert environment_of(tmp_path / f"{name}.npz") == (expected and EnvironmentSpec(expected))


def without(key):
    def change(data):
        del data[key]

    return change


def put(key, value, place=...):
    def change(data):
        data[key] = data[key].copy()
        data[key][place] = value

    return change


def cut(key):
    def change(data):
        data[key] = data[key][:-1]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("actions"), r"a\.npz lacks \['actions'\].*observations.*qpos"),
        (cut("actions"), r"a\.npz: actions hold 8 for 9 steps"),
        (put("observations", np.nan, (6, 1)), r"a\.npz: observations of the trajectory from row 5 hold nan at step 1"),
        (put("terminals", 0.5, 2), r"a\.npz: terminals hold 0\.5 at row 2"),
        (put("terminals", 0, -1), r"a\.npz: its last row is not marked as an end"),
        (put("terminals", 1), "holds no trajectory of at least one step"),
        (lambda data: data.update(actions=np.array(["a"] * 9)), "actions have the dtype <U1; expected numbers"),
        (
            lambda data: data.update(actions=np.array([{}] * 9)),
            "'actions' holds Python objects",
        ),
    ],
)
def test_bad_file_is_one_line_that_names_it(tmp_path, change, message):
    data = trajectories()
    change(data)
    with pytest.raises(DataError, match=message) as error:
        parse(save(tmp_path / "a.npz", data), lambda line: None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [10, 0.5, 0.9, -1])
def test_cut_file_is_named_as_cut(tmp_path, kept):
    whole = save(tmp_path / "whole.npz", trajectories((50, 50))).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"cut\.npz \(\d+ bytes\).*cut off"):
        parse(tmp_path / "cut.npz", lambda line: None)


def test_final_observations_of_another_dtype_are_refused(tmp_path):
    data = regular(trajectories())
    data["next_observations"] = data["next_observations"].astype(np.float64)
    with pytest.raises(DataError, match=r"next_observations are float64 .*expected float32"):
        parse(save(tmp_path / "a.npz", data), lambda line: None)


@pytest.mark.parametrize("key", ["timeouts", "rewards"])
def test_arrays_of_d4rl_are_no_trajectories_of_ogbench(tmp_path, key):
    data = trajectories()
    with pytest.raises(DataError, match=r"cube\.npz holds D4RL's arrays"):
        parse(save(tmp_path / "cube.npz", data | {key: np.zeros(9)}), lambda line: None)
