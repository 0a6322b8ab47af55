"""Data on disk against the same data in memory: arrays, batches and losses, bit for bit."""

import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_same, on_disk, rows_of
from tiny_training import make_data, make_learner

from aaren_rl.data import converted
from aaren_rl.data.converted import Counts
from aaren_rl.data.hindsight import GoalRewards, Hindsight, Relabelling, achieved_after, own_outcome
from aaren_rl.data.oddities import describe_oddities
from aaren_rl.data.sampler import Sampler
from aaren_rl.data.spaces import IMAGE, Box, DictSpace, space_of_values
from aaren_rl.data.storage import Storage
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs.fitting import _outside
from aaren_rl.envs.goals import Goals, relabelled
from aaren_rl.errors import DataError

LENGTHS = (5, 1, 17, 3, 40, 8)
CONTEXTS = [1, 6, "2+5", "episode", "packed", "carry:7"]
GOALS = DictSpace(tuple((name, Box.unbounded((2,))) for name in ("achieved_goal", "desired_goal", "observation")))
RELABELLINGS = {
    "none": None,
    "distance": Relabelling(Hindsight(), GoalRewards(distance=1.0)),
    "computed": Relabelling(Hindsight(0.7, 0.3, 0.3, 0.4), GoalRewards(lambda one, two: -np.abs(one - two).sum(-1))),
    "by step": Relabelling(Hindsight(), GoalRewards()),
}


def made(kind, seed=0):
    """Trajectories of vectors, of a Dict with a picture, or of goals."""
    rng, steps, episodes = np.random.default_rng(seed), sum(LENGTHS), len(LENGTHS)

    def observations(count):
        if kind == "pictures":
            picture = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
            return {"view": picture, "speed": rng.normal(size=(count, 2)).astype(np.float32)}
        return rng.integers(0, 4, (count, 6)).astype(np.float32)

    values, final = observations(steps), observations(episodes)
    space = {"pictures": space_of_values(values), "goals": GOALS, "vectors": None}[kind]
    if space is not None and kind == "pictures":
        values, final = space.pack(values, batch=1), space.pack(final, batch=1)
    terminated = np.arange(episodes) % 2 == 0
    actions, rewards = rng.normal(size=(steps, 2)), rng.normal(size=steps)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Trajectories(values, actions, rewards, offsets, terminated, ~terminated, final, space)


def assert_same_segments(one, other):
    for name, ours, theirs in zip(one._fields, one, other, strict=True):
        for key, part in theirs.items() if isinstance(theirs, dict) else [("", theirs)]:
            mine = ours[key] if isinstance(theirs, dict) else ours
            assert (part is None) == (mine is None), name
            if part is not None:
                assert_same(f"{name} {key}", mine, part)


@pytest.mark.parametrize("kind", ["vectors", "pictures", "goals"])
def test_a_copy_on_disk_is_the_data(kind, tmp_path):
    data = made(kind)
    copied = on_disk(data, tmp_path / "copy")
    assert copied.sha256 == data.sha256
    assert copied.storage.on_disk
    np.testing.assert_array_equal(copied.returns_to_go, data.returns_to_go)
    for ours, theirs in zip(copied.observation_statistics(), data.observation_statistics(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Nothing is left beside the files that are listed.
    listed = {entry["file"] for entry in converted.read_about(tmp_path / "copy")["files"]}
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {*listed, converted.ABOUT}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    ("kind", "relabelling"), [("vectors", "none"), ("pictures", "none"), *(("goals", name) for name in RELABELLINGS)]
)
def test_batches_from_disk_are_those_from_memory(kind, context, relabelling, tmp_path):
    data = made(kind)
    both = []
    for one in (data, on_disk(data, tmp_path / "copy")):
        weighting = "uniform" if context == "episode" else "length"
        options = {"seed": 3, "next_observations": True, "relabelling": RELABELLINGS[relabelling]}
        sampler = Sampler(one, np.arange(1, 6), 4, context, weighting, **options)
        both.append([*(sampler.sample() for _ in range(6)), *sampler.over(one, np.arange(2)).sweep(40)])
    for ours, theirs in zip(*both, strict=True):
        assert_same_segments(ours, theirs)


@pytest.mark.parametrize(
    ("context", "move"),
    [
        (4, lambda sampler: sampler.generator.manual_seed(8)),
        ("carry:4", lambda sampler: sampler.cursor.add_(2)),
        ("carry:4", lambda sampler: sampler.carried_goal.fill_(3)),
    ],
    ids=["generator", "cursor", "goal"],
)
def test_a_batch_read_ahead_counts_only_where_it_follows(context, move, tmp_path):
    data = made("goals")
    options = {"relabelling": RELABELLINGS["distance"]}
    ours, theirs, unmoved = (
        Sampler(one, np.arange(6), 3, context, **options) for one in (on_disk(data, tmp_path / "copy"), data, data)
    )
    for sampler in (ours, theirs, unmoved):
        sampler.sample()
    for sampler in (ours, theirs):
        move(sampler)
    moved = theirs.sample()
    assert_same_segments(ours.sample(), moved)
    with pytest.raises(AssertionError):
        assert_same_segments(unmoved.sample(), moved)
    for _ in range(2):
        assert_same_segments(ours.sample(), theirs.sample())


@pytest.mark.parametrize("context", [5, "episode", "packed", "carry:5"])
def test_losses_and_resumed_losses_are_those_from_memory(context, tmp_path):
    data = make_data()
    disk = on_disk(data, tmp_path / "copy")
    losses = {}
    for name, one in (("memory", data), ("disk", disk)):
        learner = make_learner(one, context=context)
        losses[name] = [learner.update()["loss"].item() for _ in range(4)] + [learner.validate()[0]["loss"]]
        if name == "disk":
            state = learner.state_dict()
            losses["goes on"] = [learner.update()["loss"].item() for _ in range(3)]
    assert losses["disk"] == losses["memory"]
    # From disk to memory too: the state says nothing of where the data lie.
    for one in (disk, data):
        resumed = make_learner(one, context=context)
        resumed.load_state_dict({name: part.clone() for name, part in state.items()})
        resumed.updates = 4
        assert [resumed.update()["loss"].item() for _ in range(3)] == losses["goes on"]
        assert resumed.data == learner.data


@pytest.mark.parametrize("kind", ["vectors", "pictures", "goals"])
def test_what_is_made_of_data_on_disk_lies_there(kind, tmp_path):
    data = made(kind)
    copied = on_disk(data, tmp_path / "copy")
    chosen = np.array([4, 0, 2])
    assert copied.select(chosen).sha256 == data.select(chosen).sha256
    joined = Trajectories.join([copied, data])
    assert joined.sha256 == Trajectories.join([data, data]).sha256
    for made_of in (copied.select(chosen), joined):
        assert made_of.storage == Storage(tmp_path / "copy")
        assert isinstance(made_of.rewards.base, np.memmap) or isinstance(made_of.rewards, np.memmap)
    if kind == "goals":
        rewards = GoalRewards(distance=1.0)
        np.testing.assert_array_equal(achieved_after(copied), achieved_after(data))
        for ours, theirs in zip(own_outcome(copied, rewards), own_outcome(data, rewards), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_passes_in_small_blocks_find_the_same(monkeypatch, tmp_path):
    data = made("goals")
    expected = own_outcome(data, GoalRewards(distance=1.0), ends_as_goals=True), data.select(np.array([4, 2])).sha256
    monkeypatch.setattr("aaren_rl.data.storage.BLOCK_STEPS", 4)
    copied = on_disk(data, tmp_path / "copy")
    assert copied.sha256 == data.sha256
    np.testing.assert_array_equal(copied.returns_to_go, data.returns_to_go)
    found = own_outcome(copied, GoalRewards(distance=1.0), ends_as_goals=True), copied.select(np.array([4, 2])).sha256
    for ours, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found[1] == expected[1]


def test_looks_at_data_in_small_blocks_see_the_same(monkeypatch, tmp_path):
    """Statistics, oddities, bounds and rewards of goals."""
    data = made("goals")
    zero, one = np.zeros(6, np.float32), np.ones(6, np.float32)
    bounds = Box.bounded(-np.ones(2), np.ones(2))

    def look(given):
        paid = relabelled("made-up", given, None, Goals(Hindsight(), 1.0), False, lambda line: None)
        return {
            "clipped": describe_oddities(given, 1e-3, (zero, 1e-3 * one)),
            "alike": describe_oddities(given, None, (zero, 1e4 * one)),
            "outside": _outside(given.actions, bounds).tolist(),
            "rewards": paid.trajectories.rewards.tolist(),
            "returns": paid.returns.tolist(),
        }

    expected, statistics = look(data), data.observation_statistics()
    assert [len(expected[name]) for name in ("clipped", "alike")] == [3, 2]
    monkeypatch.setattr("aaren_rl.data.storage.BLOCK_STEPS", 4)
    for given in (data, on_disk(data, tmp_path / "copy")):
        assert look(given) == expected
        for ours, theirs in zip(given.observation_statistics(), statistics, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("lengths", [(40,) * 10, (400,)], ids=["short episodes", "one long episode"])
def test_large_rows_are_chosen_in_small_blocks(lengths, monkeypatch, tmp_path):
    steps, episodes = sum(lengths), len(lengths)
    picture = np.random.default_rng(0).integers(0, 256, (steps, 64, 64, 3), np.uint8)
    ended = np.ones(episodes, bool)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    data = Trajectories(picture, np.zeros((steps, 1)), np.zeros(steps), offsets, ended, ~ended)
    copied = on_disk(data, tmp_path / "copy")
    # Five pictures, of 0.06 MB in all.
    monkeypatch.setattr("aaren_rl.data.storage.BLOCK_NUMBERS", 5 * 64 * 64 * 3)
    tracemalloc.start()
    chosen = copied.select(np.arange(episodes)[::-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000, peak
    back = [picture[slice(*offsets[episode : episode + 2])] for episode in range(episodes)[::-1]]
    np.testing.assert_array_equal(chosen.observations[IMAGE], np.concatenate(back))


def truncate(folder):
    file = folder / "observations-0.npy"
    file.write_bytes(file.read_bytes()[:-4])


def change(folder):
    file = folder / "rewards-2.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def spoil(folder):
    np.save(folder / "rewards-2.npy", np.full(sum(LENGTHS), np.nan, np.float32))


def rewrite(**changes):
    def apply(folder):
        about = json.loads((folder / converted.ABOUT).read_text())
        (folder / converted.ABOUT).write_text(json.dumps(about | changes))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "observations-0.npy has 1900 bytes in place of 1904"),
        (change, "SHA-256 differs"),
        (spoil, "holds a NaN at step 0"),
        (lambda folder: (folder / "actions-1.npy").unlink(), "actions-1.npy is missing"),
        (lambda folder: (folder / converted.ABOUT).unlink(), "it has no trajectories.json"),
        (lambda folder: (folder / converted.ABOUT).write_text("{"), "trajectories.json cannot be read"),
        (rewrite(version=2), "not of version 1"),
        (rewrite(files=3), "it cannot be read"),
        (rewrite(spaces=["?"]), "it cannot be read"),
    ],
)
def test_a_damaged_copy_is_refused_by_name(damage, said, tmp_path):
    on_disk(made("vectors"), tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(DataError, match=f"copy is no whole copy of data.*{said}.*delete the folder"):
        converted.open_folder(tmp_path / "copy")


def test_rows_that_are_not_as_many_as_said_are_refused(tmp_path):
    data = made("vectors")
    with pytest.raises(DataError, match="the data hold 74 rows of observations-0; they say 75.*fetch it again"):
        converted.write(tmp_path, rows_of(data), Counts(75, 6), (None, None), {})
    assert not (tmp_path / converted.ABOUT).exists()


def test_a_full_disk_is_an_error_and_no_crash(tmp_path):
    copied = on_disk(made("vectors"), tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(DataError, match="arrays of all steps cannot be written into .*copy"):
        copied.select(np.arange(2))
    # In another folder they can.
    assert replace(copied, storage=Storage(tmp_path)).select(np.arange(2)).episodes == 2
