"""Data by name that are kept on disk: the choice, the conversion, and what becomes of it when it is broken off."""

import os
import resource
import shutil
import tempfile
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from aaren_rl.data import converted
from aaren_rl.envs import free_memory, keeping, sources
from aaren_rl.envs.dataset import Reading
from aaren_rl.envs.environment_choice import EnvironmentChoice
from aaren_rl.envs.keeping import Keeping
from aaren_rl.envs.readers import d4rl
from aaren_rl.envs.readers.hdf5 import require_memory
from aaren_rl.envs.readers.minari import local_folder, read_folder
from aaren_rl.envs.turns import one_at_a_time
from aaren_rl.errors import DataError, InvalidInput

# Minari misses authors, code links and so on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

PICTURES = Dict({"view": Box(0, 255, (8, 8, 3), np.uint8), "speed": Box(-9, 9, (2,), np.float32)})
VECTORS = Box(-9, 9, (3,), np.float32)
NONE = EnvironmentChoice.of_options("none", (), None, ())


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def create(space=VECTORS, form="hdf5", name="mine/tiny-v0", lengths=(5, 3, 8), spoiled=False):
    """A Minari dataset; its path."""
    rng, buffers = np.random.default_rng(0), []
    space.seed(0)
    for length in lengths:
        seen = [space.sample() for _ in range(length + 1)]
        seen = {key: np.stack([one[key] for one in seen]) for key in seen[0]} if isinstance(space, Dict) else seen
        ends = np.arange(length) == length - 1
        rewards = rng.normal(size=length)
        rewards[-1] = np.nan if spoiled and length == lengths[-1] else rewards[-1]
        values = {"observations": seen, "actions": list(rng.integers(0, 4, length)), "rewards": list(rewards)}
        buffers.append(EpisodeBuffer(**values, terminations=list(ends), truncations=[False] * length, infos={}))
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=Discrete(4), data_format=form
    )
    return local_folder(name)


def d4rl_file(path, steps=60, image=False):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        seen = rng.integers(0, 256, (steps, 8, 8, 3), np.uint8) if image else rng.normal(size=(steps, 4))
        file["observations"], file["next_observations"] = seen, np.roll(seen, -1, 0)
        file["actions"] = rng.integers(0, 3, steps) if image else rng.normal(size=(steps, 2))
        file["rewards"] = rng.normal(size=steps)
        file["terminals"], file["timeouts"] = np.zeros(steps, bool), np.arange(steps) % 7 == 6
    return path


def load(path, choice, folder=None, said=None, **options):
    lines = [] if said is None else said
    where = Keeping(choice, folder, **options)
    return sources.load(path, reading=Reading(NONE, keeping=where), say=lines.append)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: create(),
        lambda path: create(PICTURES),
        lambda path: create(form="arrow"),
        lambda path: d4rl_file(path / "a.hdf5"),
        lambda path: d4rl_file(path / "a.hdf5", image=True),
    ],
    ids=["Minari", "Minari with pictures", "Minari in Arrow", "D4RL", "D4RL with pictures"],
)
def test_data_on_disk_are_those_in_memory_and_converted_once(make, tmp_path, monkeypatch):
    monkeypatch.setattr("aaren_rl.envs.readers.d4rl._ROWS", 10)
    path, folder, said = make(tmp_path), tmp_path / "data", []
    kept, given = (load(path, choice, folder, said) for choice in ("disk", "memory"))
    assert kept.trajectories.sha256 == given.trajectories.sha256
    assert kept.trajectories.storage.on_disk
    assert kept.scaling().return_range == given.scaling().return_range
    assert any(line.startswith("data: converts ") for line in said)
    (copied,) = folder.iterdir()
    times = {file: file.stat().st_mtime_ns for file in copied.iterdir()}
    said.clear()
    again = load(path, "disk", folder, said)
    assert f"data: reads the converted copy in {copied}" in said
    assert again.trajectories.sha256 == given.trajectories.sha256
    assert times == {file: file.stat().st_mtime_ns for file in copied.iterdir()}


def test_other_data_of_the_name_are_converted_anew(tmp_path):
    path = d4rl_file(tmp_path / "a.hdf5")
    load(path, "disk", tmp_path / "data")
    d4rl_file(path, steps=80)
    assert load(path, "disk", tmp_path / "data").trajectories.steps == 77
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_filtered_data_have_a_copy_of_their_own(tmp_path):
    create()
    whole = minari.load_dataset("mine/tiny-v0")
    for dataset, steps in ((whole, 16), (whole.filter_episodes(lambda episode: len(episode.rewards) > 3), 13)):
        assert load(dataset, "disk", tmp_path / "data").trajectories.steps == steps
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_ctrl_c_leaves_nothing_half(tmp_path):
    path, folder = create(), tmp_path / "data"

    @contextmanager
    def broken_off(steps, name):
        assert (steps, name) == (16, "mine/tiny-v0")
        done = []

        def advance(count):
            done.append(count)
            if len(done) == 2:
                # What is there by then goes again.
                assert [file.name for (partial,) in [list(folder.glob(".*partial*"))] for file in partial.iterdir()]
                raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        load(path, "disk", folder, progress=broken_off)
    assert list(folder.iterdir()) == []
    assert load(path, "disk", folder).trajectories.steps == 16


def test_data_that_are_refused_leave_nothing(tmp_path):
    path = create(spoiled=True)
    with pytest.raises(DataError, match="rewards holds a NaN at step 15, in episode 2"):
        load(path, "disk", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_damaged_copy_is_an_error_that_says_what_to_do(tmp_path):
    path = create()
    load(path, "disk", tmp_path / "data")
    (copied,) = (tmp_path / "data").iterdir()
    os.truncate(copied / "observations-0.npy", 150)
    with pytest.raises(DataError, match=r"observations-0.npy has 150 bytes in place of \d+; delete the folder"):
        load(path, "disk", tmp_path / "data")
    os.rename(copied, copied.with_name("aside"))
    assert load(path, "disk", tmp_path / "data").trajectories.steps == 16


def test_a_damaged_source_is_named_and_not_the_copy(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(d4rl_file(path), "a") as file:
        values = file["observations"][:]
        del file["observations"]
        made = file.create_dataset("observations", data=values, compression="gzip", chunks=(10, 4))
        offset = made.id.get_chunk_info(5).byte_offset
    # The checksum of a chunk in the middle.
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(40))
    with h5py.File(path, "a") as file:
        # Else the next observations are compared, and the damage is found before anything is converted.
        del file["next_observations"]
    with pytest.raises(DataError, match=r"^a, in .*a\.hdf5, cannot be read: .*it may be cut off or damaged"):
        load(path, "disk", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@contextmanager
def as_another_user():
    """Without root's right to write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_copy_that_cannot_be_written_can_be_read():
    # pytest's folders are closed to other users.
    folder = Path(tempfile.mkdtemp())
    try:
        path, said = d4rl_file(folder / "a.hdf5"), []
        folder.chmod(0o755)
        expected = load(path, "disk", folder / "data")
        (copied,) = (folder / "data").iterdir()
        for closed in (copied, folder / "data"):
            closed.chmod(0o555)
        with as_another_user():
            kept = load(path, "disk", folder / "data", said)
            assert kept.trajectories.sha256 == expected.trajectories.sha256
            assert kept.trajectories.select(np.arange(2)).storage.folder == Path(tempfile.gettempdir())
            (line,) = [line for line in said if "cannot be written" in line]
            assert f"arrays made of the data lie in {tempfile.gettempdir()}" in line
            with pytest.raises(DataError, match="arrays of all steps cannot be written into .*; free some space there"):
                converted.open_folder(copied)
    finally:
        for closed in (folder / "data", *(folder / "data").iterdir()):
            closed.chmod(0o755)
        shutil.rmtree(folder)


def test_processes_that_read_a_copy_do_not_wait(tmp_path):
    path, said = d4rl_file(tmp_path / "a.hdf5"), []
    load(path, "disk", tmp_path / "data")
    (copied,) = (tmp_path / "data").iterdir()
    # Another one that holds the lock would be waited for for ever.
    with one_at_a_time(copied, said.append):
        assert load(path, "disk", tmp_path / "data", said).trajectories.steps == 56
    assert not [line for line in said if "waiting" in line]


def test_other_spaces_have_a_copy_of_their_own(tmp_path):
    streamed = []
    read_folder(create(), False, lambda given: streamed.append(given) or given.whole())
    where = Keeping("disk", tmp_path / "data")
    where.keep(streamed[0], lambda line: None)
    seen, acted = streamed[0].spaces
    where.keep(replace(streamed[0], spaces=(replace(seen, high=(8.0,) * 3), acted)), lambda line: None)
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_a_copy_of_other_data_is_not_taken(tmp_path):
    path = create()
    load(path, "disk", tmp_path / "data")
    (copied,) = (tmp_path / "data").iterdir()
    about = copied / converted.ABOUT
    about.write_text(about.read_text().replace('"made_from": {', '"made_from": {"more": 1, '))
    with pytest.raises(DataError, match="is a copy of other data"):
        load(path, "disk", tmp_path / "data")


def test_auto_says_which_and_why(tmp_path, monkeypatch):
    path, folder = create(), tmp_path / "data"
    for free, room, on_disk, why in (
        (1 << 30, None, False, "data: in memory, 0.0 MiB: at most 50% of the 1.0 GiB of memory that are free"),
        (500, None, True, "data: on disk, 0.0 MiB: more than 50% of the 0.0 MiB of memory that are free"),
        (1 << 30, 300, True, "data: on disk, 0.0 MiB: more than 50% of the 0.0 MiB of the GPU's memory that are free"),
    ):
        monkeypatch.setattr(keeping, "free_memory", lambda free=free: free)
        said = []
        assert load(path, "auto", folder, said, room=room).trajectories.storage.on_disk == on_disk
        assert why in said
    with pytest.raises(InvalidInput, match="unknown place of data 'tape'"):
        Keeping("tape")


def test_formats_that_are_read_whole_say_so(tmp_path):
    with h5py.File(d4rl_file(tmp_path / "a.hdf5")) as file:
        np.savez(tmp_path / "a.npz", **{key: file[key][:] for key in file})
    with pytest.raises(InvalidInput, match=r"a\.npz, an npz file, is read as a whole, so it cannot be kept on disk"):
        load(tmp_path / "a.npz", "disk", tmp_path / "data")
    said = []
    load(tmp_path / "a.npz", "auto", tmp_path / "data", said)
    assert any("in memory, since" in line and "is read as a whole" in line for line in said)


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("aaren_rl.envs.keeping.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="data has 0.0 MiB of free space.*--data-folder"):
        load(create(), "disk", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_cgroups_count_as_memory(tmp_path, monkeypatch):
    """Of both versions, with the files that can be dropped; the least of a cgroup and those above it."""
    inner = tmp_path / "memory" / "outer" / "inner"
    inner.mkdir(parents=True)
    figures = {
        "memory.limit_in_bytes": "5000",
        "memory.usage_in_bytes": "4000",
        "memory.stat": "total_inactive_file 700\nactive_file 9\ntotal_active_file 200",
    }
    for name, text in figures.items():
        (inner.parent / name).write_text(text)
    assert free_memory._left_in(inner.parent) == 1_900
    newer = {"memory.max": "max", "memory.current": "4000", "memory.stat": "inactive_file 10\nactive_file 3000"}
    for name, text in newer.items():
        (tmp_path / name).write_text(text)
    assert free_memory._left_in(tmp_path) > 1 << 40
    (tmp_path / "memory.max").write_text("4500\n")
    assert free_memory._left_in(tmp_path) == 3_510
    monkeypatch.setattr(free_memory, "cgroups", lambda: [inner, inner.parent, tmp_path])
    assert free_memory.free_memory() == 1_900
    # Cached files keep no data from being read.
    require_memory(1_900, "a")
    with pytest.raises(DataError, match="a needs"):
        require_memory(1_901, "a")
    monkeypatch.undo()
    assert 0 < free_memory.free_memory() <= os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    # This process has a cgroup wherever Linux has them.
    assert all(
        folder == free_memory.CGROUPS or free_memory.CGROUPS in folder.parents for folder in free_memory.cgroups()
    )


@pytest.mark.parametrize("timeouts", [True, False])
def test_a_conversion_of_narrow_rows_takes_few_bytes_a_step(timeouts, tmp_path, monkeypatch):
    monkeypatch.setattr("aaren_rl.data.storage.BLOCK_STEPS", 4_096)
    monkeypatch.setattr("aaren_rl.envs.readers.d4rl._FLAGS", 4_096)
    monkeypatch.setattr("aaren_rl.envs.readers.d4rl._ROWS", 1_024)
    path, steps = tmp_path / "a.hdf5", 400_000
    with h5py.File(path, "w") as file:
        seen = np.arange(steps, dtype=np.float32)[:, None]
        last = np.arange(steps) % 1_000 == 999
        file["observations"], file["next_observations"] = seen, np.where(last[:, None], -1, seen + 1)
        file["actions"], file["rewards"] = np.arange(steps)[:, None] % 3, np.ones(steps)
        file["terminals"] = np.zeros(steps)
        if timeouts:
            file["timeouts"] = last.astype(float)
    where = Keeping("disk", tmp_path / "data")
    tracemalloc.start()
    kept = d4rl.read_file(path, keep=lambda streamed: where.keep(streamed, lambda line: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (kept.episodes, kept.action_space.counts, kept.actions.shape) == (400, (3,), (steps,))
    # Flags; the blocks are the rest.
    assert peak < 6 * steps, peak / steps


@pytest.mark.parametrize("form", ["Minari", "D4RL"])
def test_a_conversion_takes_little_memory(form, tmp_path, monkeypatch):
    monkeypatch.setattr("aaren_rl.data.storage.BLOCK_STEPS", 50)
    monkeypatch.setattr("aaren_rl.envs.readers.d4rl._ROWS", 50)
    if form == "Minari":
        path = create(Box(-9, 9, (2_000,), np.float32), lengths=(10,) * 100)
    else:
        path = tmp_path / "a.hdf5"
        with h5py.File(path, "w") as file:
            file["observations"], file["actions"] = np.ones((1_000, 2_000), np.float32), np.eye(1_000, 2)
            file["rewards"], file["terminals"] = np.ones(1_000), np.zeros(1_000, bool)
            file["timeouts"] = np.arange(1_000) % 20 == 19
    where = Keeping("disk", tmp_path / "data")

    def keep(streamed):
        return where.keep(streamed, lambda line: None)

    tracemalloc.start()
    kept = read_folder(path, False, keep).trajectories if form == "Minari" else d4rl.read_file(path, keep=keep)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept.observations.nbytes == 8_000_000
    assert peak < 2_500_000, peak
