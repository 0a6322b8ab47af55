"""Runs on data that are kept on disk."""

import h5py
import numpy as np
import pytest

import aaren_rl
from aaren_rl.data import converted
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.scripts.train import main
from aaren_rl.training.log import read_metrics

SMALL = {"updates": 4, "width": 16, "blocks": 1, "batch_size": 4, "log_every": 1, "device": "cpu", "progress": False}
SMALL |= {"environment": "none", "checkpoint_every": 2, "evaluate_every": 2}


@pytest.fixture
def data(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(600, 4)), rng.uniform(-1, 1, (600, 2))
        file["rewards"], file["terminals"] = rng.normal(size=600), np.zeros(600, bool)
        file["timeouts"] = np.arange(600) % 30 == 29
    return path


def losses(folder):
    points = read_metrics(folder)
    return [(point["update"], name, value) for point in points for name, value in point.items() if "loss" in name]


def test_a_run_learns_the_same_from_disk(data, tmp_path):
    for keep in ("memory", "disk"):
        aaren_rl.fit(data, folder=tmp_path / keep, keep=keep, **SMALL)
    assert losses(tmp_path / "disk") == losses(tmp_path / "memory")
    assert len(losses(tmp_path / "disk")) >= 4
    assert run_config.load(tmp_path / "disk" / "config.toml").data == "disk"
    (copied,) = (tmp_path / "converted").iterdir()
    # A folder that was converted is data of one's own too.
    aaren_rl.fit(converted.open_folder(copied), folder=tmp_path / "own", **SMALL)
    assert losses(tmp_path / "own") == losses(tmp_path / "memory")


def test_a_resumed_run_goes_on_where_its_data_are(data, tmp_path):
    aaren_rl.fit(data, folder=tmp_path / "whole", keep="disk", **SMALL)
    aaren_rl.fit(data, folder=tmp_path / "run", keep="disk", **{**SMALL, "updates": 2})
    aaren_rl.fit(data, folder=tmp_path / "run", resume=True, updates=4, progress=False)
    assert losses(tmp_path / "run")[-1] == losses(tmp_path / "whole")[-1]
    assert run_config.load(tmp_path / "run" / "config.toml").data == "disk"


def test_the_command_says_where_the_data_lie(command, data, tiny):
    arguments = [*tiny[4:], "--env", data, "--env-id", "none", "--check-episodes", 0]
    for choice, folder, said in (
        ("auto", "one", "data: in memory"),
        ("disk", "two", "data: converts a into"),
        ("disk", "three", "data: reads the converted copy in"),
    ):
        status, out, err = command(main, *arguments, "--run", folder, "--data", choice, "--data-folder", "kept")
        assert (status, said in out + err) == (0, True), out + err


def test_trajectories_of_your_own_stay_where_they_are(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [Episode(rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=5))]
    with pytest.raises(InvalidInput, match="keep is for data by name"):
        aaren_rl.fit(Trajectories.from_episodes(episodes), folder=tmp_path / "run", keep="disk", **SMALL)
