"""The files in recorded/d3rlpy were written by `ReplayBuffer.dump` of d3rlpy 2.8.1, and hold two episodes each.

The npz beside each holds the arrays that were dumped. The layout of version 1 is that of d3rlpy's `load_v1`.
"""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from aaren_rl.envs.readers.d3rlpy import parse
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.errors import DataError

RECORDED = Path(__file__).parent / "recorded" / "d3rlpy"


@pytest.mark.parametrize("name", ["vectors", "pixels", "tuple"])
def test_dump_is_read_as_d3rlpy_had_it(name):
    with np.load(RECORDED / f"d3rlpy_{name}.npz") as expected:
        episodes = parse(RECORDED / f"d3rlpy_{name}.h5", lambda line: None).episodes
        assert len(episodes) == 2
        for number, episode in enumerate(episodes):
            parts = episode.observations if name == "tuple" else (episode.observations,)
            for place, values in enumerate(parts):
                np.testing.assert_array_equal(values, expected[f"{number}/observations/{place}"])
            np.testing.assert_array_equal(episode.actions.ravel(), expected[f"{number}/actions"].ravel())
            np.testing.assert_array_equal(episode.rewards, expected[f"{number}/rewards"][:, 0])
            assert episode.terminated == bool(expected[f"{number}/terminated"])
            assert episode.truncated == (not episode.terminated)


def test_pixels_stay_bytes_and_choices_are_discrete():
    said = []
    found = recording(parse(RECORDED / "d3rlpy_pixels.h5", said.append), "data")
    (images,) = found.trajectories.observations.values()
    assert (images.dtype, images.shape) == (np.uint8, (7, 1, 6, 6))
    assert found.trajectories.action_space.counts == (3,)
    assert found.trajectories.actions.shape == (7,)
    assert "choices: 0 to 2, as far as the data show" in said[0]


def first_version(path, **changes):
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(6, 2)),
        "actions": rng.normal(size=(6, 1)),
        "rewards": np.arange(6.0),
        "terminals": np.array([0, 0, 1, 0, 0, 0]),
        "episode_terminals": np.array([0, 0, 1, 0, 1, 0]),
        "discrete_action": False,
        "version": "1.1",
        **changes,
    }
    with h5py.File(path, "w") as file:
        for key, values in data.items():
            if values is not None:
                file[key] = values
    return path


def test_first_version_ends_at_episode_terminals(tmp_path):
    said = []
    episodes = parse(first_version(tmp_path / "a.h5"), said.append).episodes
    assert [episode.rewards.tolist() for episode in episodes] == [[0, 1, 2], [3, 4]]
    assert [episode.terminated for episode in episodes] == [True, False]
    assert said == ["data: a.h5: left out the last 1 steps, which belong to no whole episode"]


def test_first_version_without_episode_terminals_ends_at_terminals(tmp_path):
    episodes = parse(first_version(tmp_path / "a.h5", episode_terminals=None), lambda line: None).episodes
    assert [len(episode.rewards) for episode in episodes] == [3]


def changed(path, name, values):
    shutil.copy(RECORDED / "d3rlpy_vectors.h5", path)
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values
    return path


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("observations_1", None, "lacks observations_1, of one of its episodes"),
        ("actions_1", None, "lacks 'actions_1'"),
        ("rewards_1", np.zeros(3), "rewards_1 hold 3 for 4 steps"),
        ("observations_1", np.zeros((3, 2)), "observations_1 hold 3 for 4 steps"),
        ("observations_1", np.zeros((4, 3), np.float32), r"observations of episode 1 are float32 of shape \(3,\)"),
        ("observations_1", np.full((4, 2), np.inf), "observations_1 hold inf at step 0"),
        ("columns", [b"observations"], r"lacks the columns \['actions', 'rewards', 'terminated'\]"),
        ("num_episodes", 0, "holds 0 episodes"),
        ("num_episodes", 3, "lacks 'actions_2'"),
        ("rewards_1", [b"x"] * 4, "rewards_1 have the dtype"),
    ],
)
def test_bad_file_is_one_line_that_names_key_and_episode(tmp_path, name, values, message):
    with pytest.raises(DataError, match=rf"a\.h5.*{message}"):
        parse(changed(tmp_path / "a.h5", name, values), lambda line: None)
