"""The folder recorded/lerobot was written by lerobot 0.4.4 (`LeRobotDataset.create`, version 3.0, images as PNG).

`expected.npz` holds the frames that were added. Version 2.1 keeps one table an episode and its tasks as JSON lines; its
layout is taken from lerobot's `convert_dataset_v21_to_v30.py`.
"""

import builtins
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aaren_rl.envs.readers.lerobot import parse
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.errors import DataError, InvalidInput

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RECORDED = Path(__file__).parent / "recorded" / "lerobot"
TABLE = "data/chunk-000/file-000.parquet"
VIDEO = {"dtype": "video", "shape": [6, 8, 3]}


@pytest.fixture
def folder(tmp_path):
    copy = Path(shutil.copytree(RECORDED, tmp_path / "tiny"))
    (copy / "expected.npz").unlink()
    return copy


def edited(folder, change):
    content = json.loads((folder / "meta/info.json").read_text())
    change(content)
    (folder / "meta/info.json").write_text(json.dumps(content))


def retabled(folder, change):
    pq.write_table(change(pq.read_table(folder / TABLE)), folder / TABLE)


def as_version_2(folder):
    """The same data as version 2.1 keeps them."""
    table = pq.read_table(folder / TABLE)
    (folder / TABLE).unlink()
    for number in (0, 1):
        kept = pa.compute.equal(table["episode_index"], number)
        pq.write_table(table.filter(kept), folder / f"data/chunk-000/episode_{number:06d}.parquet")
    (folder / "meta/tasks.parquet").unlink()
    lines = [json.dumps({"task_index": number, "task": f"do {number}"}) for number in (0, 1)]
    (folder / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    edited(folder, lambda content: content.update(codebase_version="v2.1"))


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_every_value_is_as_it_was_added(folder, version):
    if version == "v2.1":
        as_version_2(folder)
    said = []
    episodes = parse(folder, said.append).episodes
    with np.load(RECORDED / "expected.npz") as expected:
        assert len(episodes) == 2
        for number, episode in enumerate(episodes):
            for key in ("state", "grid", "images.top"):
                values = expected[f"{number}/observation.{key}"]
                np.testing.assert_array_equal(episode.observations[key], values)
                assert episode.observations[key].dtype == values.dtype
            np.testing.assert_array_equal(episode.actions, expected[f"{number}/action"])
            np.testing.assert_array_equal(episode.rewards, expected[f"{number}/next.reward"][:, 0])
            assert episode.terminated == bool(expected[f"{number}/next.done"][-1, 0])
            assert episode.observations["task"] == [f"do {number}"] * len(episode.rewards)
    assert said == ["data: tiny: 2 tasks; their texts are the part 'task' of the observations"]


def test_images_and_texts_are_packed(folder):
    found = recording(parse(folder, lambda line: None), "data")
    assert found.trajectories.observations["images.top"].dtype == np.uint8
    assert found.trajectories.final_observations is None
    texts = next(part.space for part in found.trajectories.observation_space.parts() if part.path == "task")
    assert texts.vocabulary == ("0", "1", "do")


def test_one_state_alone_is_a_vector_and_one_task_no_part(folder):
    def change(content):
        for key in ("observation.grid", "observation.images.top", "next.reward", "next.done", "task_index"):
            del content["features"][key]

    edited(folder, change)
    said = []
    found = recording(parse(folder, said.append), "data").trajectories
    assert found.observations.shape == (found.steps, 3)
    assert found.truncated.all()
    assert said == ["data: tiny: no 'next.reward'; every reward counts as 0"]


def test_videos_without_the_package_are_refused_or_left_out(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lerobot" else builtins.object())
    edited(folder, lambda content: content["features"].update({"observation.images.top": VIDEO}))
    with pytest.raises(InvalidInput, match=r"images\.top as videos.*pip install lerobot.*--without-videos"):
        parse(folder, lambda line: None)
    said = []
    assert "images.top" not in parse(folder, said.append, videos=False).episodes[0].observations
    assert said[0] == "data: tiny: left out the videos observation.images.top, as asked"


def test_missing_pyarrow_is_named(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"install pyarrow .*pip install 'aaren-rl\[lerobot\]'"):
        parse(folder, lambda line: None)


@pytest.mark.parametrize("version", ["v1.6", "v4.0", None, 3])
def test_other_versions_are_named(folder, version):
    edited(folder, lambda content: content.update(codebase_version=version))
    with pytest.raises(InvalidInput, match=rf"of LeRobot's version {version!r}; expected one of v2.0, v2.1, v3.0"):
        parse(folder, lambda line: None)


def listed(name, feature):
    return lambda folder: edited(folder, lambda content: content["features"].update({name: feature}))


def unlisted(*names):
    return lambda folder: edited(folder, lambda content: [content["features"].pop(name) for name in names])


def filled(name, value):
    def change(table):
        values = table[name].to_pylist()
        values[4] = value
        return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))

    return lambda folder: retabled(folder, change)


def ragged(folder):
    """As many numbers as there should be, in lists of other lengths."""

    def change(table):
        values = table["observation.state"].to_pylist()
        values[0], values[1] = [*values[0], 9.0], values[1][:2]
        column = pa.array(values, pa.list_(pa.float32()))
        return table.set_column(table.column_names.index("observation.state"), "observation.state", column)

    retabled(folder, change)


def turned(folder):
    shape = json.loads((folder / "meta/info.json").read_text())["features"]["observation.grid"]["shape"]
    assert shape != shape[::-1]
    edited(folder, lambda content: content["features"]["observation.grid"].update(shape=shape[::-1]))


def cut(folder):
    (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-20])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unlisted("action"), "has no feature 'action'"),
        (
            unlisted("observation.state", "observation.grid", "observation.images.top"),
            "no feature under",
        ),
        (listed("observation.more", {"dtype": "float32", "shape": [2]}), r"lacks the columns \['observation.more'\]"),
        (listed("action", {"dtype": "float32", "shape": [3]}), r"action of episode 0 hold lists of the shape \(2,\)"),
        (listed("action", {"dtype": "float32", "shape": "x"}), "action of episode 0 has the shape 'x'"),
        (filled("next.done", None), "next.done hold 1 nulls; expected a value for every step"),
        (filled("next.reward", None), "next.reward hold 1 nulls"),
        (filled("observation.state", None), "observation.state of episode 1 hold 1 nulls"),
        (ragged, r"observation.state of episode 0 hold lists of 2 to 4 values; expected the shape \(3,\) for each"),
        (turned, r"observation.grid of episode 0 hold lists of the shape .* expected the shape"),
        (filled("action", [float("nan"), 0]), "action of episode 1 hold nan at step 1"),
        (filled("observation.images.top", {"bytes": b"GIF89a", "path": ""}), "images.top of episode 1 hold no image"),
        (filled("observation.images.top", {"bytes": None, "path": "/etc/a.png"}), "lack the image of step 1"),
        (filled("frame_index", 7), "episode 1 lacks frames"),
        (lambda folder: retabled(folder, lambda table: table.slice(0, 3)), "1 episodes of 3 frames; .* 2 of 7"),
        (lambda folder: (folder / TABLE).unlink(), "has no tables"),
        (lambda folder: (folder / "meta/tasks.parquet").unlink(), "several tasks, whose texts are missing"),
        (lambda folder: (folder / "meta/info.json").write_text("{"), "info.json cannot be read"),
        (cut, r"file-000\.parquet cannot be read as Parquet.*cut off"),
    ],
)
def test_bad_folder_is_one_line_that_names_the_column(folder, change, message):
    change(folder)
    with pytest.raises(DataError, match=message):
        parse(folder, lambda line: None)
