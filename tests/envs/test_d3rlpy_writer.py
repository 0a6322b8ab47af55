"""Files of d3rlpy's that d3rlpy did not write; `tests/agents/test_d3rlpy.py` has d3rlpy load them."""

import gymnasium as gym
import h5py
import numpy as np
import pytest

from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.d3rlpy_writer import to_d3rlpy
from aaren_rl.envs.sources import load
from aaren_rl.errors import DataError


def data_of(observations, actions, **spaces):
    episodes = [
        Episode(observations, actions, np.arange(4.0), terminated=True),
        Episode(observations, actions, np.ones(4), truncated=True),
    ]
    return Trajectories.from_episodes(episodes, **spaces)


@pytest.mark.parametrize("actions", [np.linspace(-1, 1, 8).reshape(4, 2), np.array([0, 2, 1, 0])])
def test_files_are_read_as_they_were(tmp_path, actions):
    expected = data_of(np.random.default_rng(0).normal(size=(5, 3)), actions)
    to_d3rlpy(expected, tmp_path / "data.h5")
    found = load(str(tmp_path / "data.h5"), say=lambda line: None).trajectories
    assert found.lengths.tolist() == [4, 4]
    assert found.terminated.tolist() == [True, False]
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.final_observations is None


def test_keys_are_those_that_d3rlpy_writes(tmp_path):
    to_d3rlpy(data_of(np.zeros((4, 3)), np.full((4, 2), 0.5)), tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5") as file:
        shapes = {key: part.shape for key, part in file.items()}
        assert file["version"][()] == b"2.1"
    assert shapes == {
        **{"columns": (4,), "num_episodes": (), "version": ()},
        **{f"observations_{n}": (4, 3) for n in range(2)},
        **{f"actions_{n}": (4, 2) for n in range(2)},
        **{f"rewards_{n}": (4, 1) for n in range(2)},
        **{f"terminated_{n}": () for n in range(2)},
    }


def test_what_d3rlpy_cannot_hold_is_refused(tmp_path):
    vectors, choices = np.zeros((4, 3)), np.array([1, 2, 1, 1])
    path = tmp_path / "data.h5"
    with pytest.raises(DataError, match="the observations are of .*; d3rlpy holds vectors, images, and Tuples"):
        to_d3rlpy(data_of({"a": vectors, "b": vectors}, choices), path)
    with pytest.raises(DataError, match="the actions are of .*; d3rlpy holds vectors and single choices"):
        to_d3rlpy(data_of(vectors, np.ones((4, 2), int), action_space=gym.spaces.MultiDiscrete([2, 2])), path)
    with pytest.raises(DataError, match="the choices begin with 1; d3rlpy counts them from 0"):
        to_d3rlpy(data_of(vectors, choices, action_space=gym.spaces.Discrete(2, start=1)), path)
    assert not path.exists()


def test_a_file_is_replaced_only_if_asked(tmp_path):
    path, data = tmp_path / "data.h5", data_of(np.zeros((4, 3)), np.full((4, 2), 0.5))
    to_d3rlpy(data, path)
    with pytest.raises(DataError, match=r"data\.h5 exists already; pass overwrite=True"):
        to_d3rlpy(data, path)
    to_d3rlpy(data, path, overwrite=True)


def test_what_d3rlpy_would_read_otherwise_is_said(tmp_path):
    whole = data_of(np.zeros((4, 3)), np.ones((4, 2)))
    with pytest.warns(RuntimeWarning, match="the first episode's actions are whole numbers.*action_size=2"):
        to_d3rlpy(whole, tmp_path / "whole.h5")
    short = Trajectories.from_episodes([Episode(np.zeros((1, 3)), np.full((1, 2), 0.5), np.ones(1))])
    with pytest.warns(RuntimeWarning, match="leaves out 1 of 3 episodes: they are truncated after one step"):
        to_d3rlpy(Trajectories.join([short, data_of(np.zeros((4, 3)), np.full((4, 2), 0.5))]), tmp_path / "short.h5")
    with pytest.raises(DataError, match="all episodes are truncated after one step"):
        to_d3rlpy(short, tmp_path / "none.h5")
