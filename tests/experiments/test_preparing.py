"""The data of a comparison: one source, one place, and one converted copy for all its runs."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
import tomli_w

from aaren_rl.errors import DataError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison import matrix, preparing, processes
from aaren_rl.experiments.comparison.preparing import Origin
from aaren_rl.experiments.comparison.processes import Processes
from aaren_rl.scripts.compare import main

TABLE = {
    "datasets": ["hopper-medium"],
    "seeds": [0],
    "settings": {
        "source": "bundled",
        "device": "cpu",
        "episodes": 1,
        "check_episodes": 0,
        "model": {"width": 16, "blocks": 1},
        "training": {"updates": 2, "batch_size": 4},
    },
    "agents": {"default": {}, "wide": {"model": {"width": 24}}},
}


def write(folder, **settings):
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps({**TABLE, "settings": {**TABLE["settings"], **settings}}))
    return file


def prepared(folder, known=None, jobs=1, **settings):
    runs = matrix.load(write(folder, **settings)).runs(folder / "out")
    return preparing.prepare(runs, known or {}, folder / "out", Processes(jobs), print)


def test_data_are_converted_once_for_all_agents(surroundings, monkeypatch, tmp_path, capsys):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    runs = prepared(tmp_path, data="disk")
    assert {run.config.data_folder for run in runs} == {tmp_path / "out" / "converted"}
    assert capsys.readouterr().out.count("data: converts") == 1
    assert len(list(tmp_path.glob("**/trajectories.json"))) == 1


@pytest.mark.slow
def test_agents_share_one_converted_copy(command, tmp_path):
    write(tmp_path, data="disk")
    status, _, errors = command(main, "tiny.toml", "--jobs", "2")
    assert status == 0, errors
    assert len(list(tmp_path.glob("**/trajectories.json"))) == 1
    assert len(list((tmp_path / "runs/tiny/converted").iterdir())) == 1
    for run in tmp_path.glob("runs/tiny/hopper-medium/*/seed-0"):
        assert "data: reads the converted copy in" in (run / "log.txt").read_text()
        saved = run_config.load(run / "config.toml")
        assert (saved.data, saved.data_folder) == ("disk", tmp_path / "runs/tiny/converted")


def test_the_place_is_chosen_once_for_all_runs_at_a_time(surroundings, monkeypatch, tmp_path, capsys):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    runs = prepared(tmp_path)
    assert {run.config.data for run in runs} == {"memory"}
    assert capsys.readouterr().out.count("data: in memory") == 1
    # A share of the memory for each of so many runs is less than the data.
    runs = prepared(tmp_path, jobs=10**7)
    assert {run.config.data for run in runs} == {"disk"}
    assert "of 10000000 processes" in capsys.readouterr().out
    # Runs that have begun decide for the others.
    runs = prepared(tmp_path, {"hopper-medium": Origin("bundled", "disk")})
    assert {run.config.data for run in runs} == {"disk"}


def test_a_device_that_only_workers_have_is_not_looked_for(surroundings, monkeypatch, tmp_path):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [run.config.device for run in prepared(tmp_path, device="cuda")] == ["cuda", "cuda"]


def test_a_run_goes_on_where_its_data_were(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[1], folder)
    config = run_config.load(folder / "config.toml")
    asked = dataclasses.replace(config, run=folder, data="memory", data_folder=tmp_path / "other")
    for saved, expected in (
        (("disk", tmp_path / "one"), ("disk", tmp_path / "one")),
        (("auto", None), ("memory", tmp_path / "other")),
    ):
        run_config.save(dataclasses.replace(config, data=saved[0], data_folder=saved[1]), folder / "config.toml")
        found = processes._to_go_on(asked)
        assert (found.resume, found.data, found.data_folder) == (folder, *expected)
    fresh = dataclasses.replace(asked, run=tmp_path / "fresh")
    assert processes._to_go_on(fresh) == fresh


def test_search_and_reported_runs_have_one_source():
    one, other = {"a": Origin("bundled", "disk")}, {"a": Origin("minari", "disk"), "b": Origin("minari", "memory")}
    with pytest.raises(DataError, match="the search had a from bundled, and .* have it from minari"):
        preparing.joined(one, other)
    assert preparing.joined(one, {"b": other["b"]}) == {**one, "b": other["b"]}


def test_data_without_a_reference_are_refused_in_the_words_given(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(60, 4)), rng.uniform(-1, 1, (60, 2))
        file["rewards"], file["terminals"] = rng.normal(size=60), np.zeros(60, bool)
        file["timeouts"] = np.arange(60) % 30 == 29
    table = {**TABLE, "datasets": [str(path)], "settings": {"env_id": "none", "device": "cpu"}}
    runs = matrix.from_table(table, tmp_path / "tiny.toml").runs(tmp_path / "out")
    with pytest.raises(InvalidInput, match=r"a\.hdf5 has no reference returns without an environment .*, leave it"):
        preparing.prepare(runs, {}, tmp_path / "out", Processes(1), print, unscored="leave it")
