import contextlib
import tracemalloc

import h5py
import numpy as np
import pytest

from aaren_rl.data.spaces import DiscreteSpace
from aaren_rl.envs.readers import hdf5
from aaren_rl.envs.readers.d4rl import from_arrays, parse, read_file
from aaren_rl.errors import DataError, InvalidInput


def arrays(steps=60, ends=((9, "terminals"), (29, "timeouts"), (30, "terminals"), (49, "timeouts")), dtype=np.float32):
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(steps, 4)).astype(dtype),
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(dtype),
        "rewards": rng.normal(size=steps).astype(dtype),
        "terminals": np.zeros(steps, dtype=bool),
        "timeouts": np.zeros(steps, dtype=bool),
    }
    for step, kind in ends:
        data[kind][step] = True
    return data


def write(path, data):
    with h5py.File(path, "w") as file:
        for name, array in data.items():
            file.create_dataset(name, data=array)
        # D4RL's files hold more than is read.
        file["infos/qpos"] = np.zeros((3, 5))
        file["metadata/algorithm"] = "SAC"
    return path


def naive_split(data):
    """Episodes by one plain loop over the steps; of consecutive terminals only the last is an end."""
    episodes, current = [], []
    for i in range(len(data["rewards"])):
        current.append(i)
        if data["timeouts"][i] or (data["terminals"][i] and not data["terminals"][i + 1 : i + 2].any()):
            episodes.append((current, bool(data["terminals"][i]), bool(data["timeouts"][i])))
            current = []
    return episodes


def assert_same_as_naive(found, data):
    expected = naive_split(data)
    assert found.episodes == len(expected)
    for number, (steps, terminated, truncated) in enumerate(expected):
        here = slice(found.offsets[number], found.offsets[number + 1])
        np.testing.assert_array_equal(found.observations[here], data["observations"][steps].astype(np.float32))
        np.testing.assert_array_equal(found.actions[here], data["actions"][steps].astype(np.float32))
        np.testing.assert_array_equal(found.rewards[here], data["rewards"][steps].ravel().astype(np.float32))
        to_go = [sum(float(data["rewards"].ravel()[j]) for j in steps[i:]) for i in range(len(steps))]
        np.testing.assert_allclose(found.returns_to_go[here], to_go, rtol=1e-5, atol=1e-5)
        assert (found.terminated[number], found.truncated[number]) == (terminated, truncated)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_file_splits_as_a_naive_loop_does(tmp_path, dtype):
    data = arrays(dtype=dtype)
    found = read_file(write(tmp_path / "a.hdf5", data))
    assert_same_as_naive(found, data)
    assert found.steps == 50  # of 60: the tail is unfinished
    assert found.observations.dtype == found.actions.dtype == found.rewards.dtype == np.float32


def test_random_splits_agree_with_the_naive_loop():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        data = arrays(200, ends=())
        data["terminals"], data["timeouts"] = rng.random((2, 200)) < 0.05
        assert_same_as_naive(from_arrays(data), data)


def test_step_that_is_terminal_and_timeout_keeps_both():
    found = from_arrays(arrays(10, ends=((4, "terminals"), (4, "timeouts"))))
    assert found.terminated.tolist() == found.truncated.tolist() == [True]


def test_data_that_ends_with_an_episode_lose_nothing():
    assert from_arrays(arrays(10, ends=((9, "terminals"),))).steps == 10


def test_dict_of_get_dataset_gives_the_same_as_the_file(tmp_path):
    data = arrays()
    from_dict, from_file = from_arrays(data), read_file(write(tmp_path / "a.hdf5", data))
    for name in ("observations", "actions", "rewards", "offsets", "terminated", "truncated", "returns_to_go"):
        np.testing.assert_array_equal(getattr(from_dict, name), getattr(from_file, name))


def test_compressed_chunks_and_integer_flags_are_read(tmp_path):
    data = arrays()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, array in data.items():
            column = array[:, None] if name == "rewards" else array.astype(np.uint8) if array.dtype == bool else array
            file.create_dataset(name, data=column, chunks=True, compression="gzip")
    assert_same_as_naive(read_file(tmp_path / "a.hdf5"), data)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_missing_key_is_named(tmp_path, key):
    data = arrays()
    del data[key]
    with pytest.raises(DataError, match=rf"a\.hdf5 lacks \['{key}'\].*infos"):
        read_file(write(tmp_path / "a.hdf5", data))


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_located(tmp_path, key, value):
    data = arrays()
    data[key][29] = value
    with pytest.raises(DataError, match=rf"a\.hdf5 does .*: {key} .*step 29, in episode 1"):
        read_file(write(tmp_path / "a.hdf5", data))


def test_value_beyond_float32_counts_as_infinite(tmp_path):
    data = arrays(dtype=np.float64)
    data["rewards"][3] = 1e300
    with pytest.raises(DataError, match="step 3, in episode 0"):
        read_file(write(tmp_path / "a.hdf5", data))


@pytest.mark.parametrize("key", ["observations", "rewards", "timeouts"])
def test_differing_lengths_are_listed(tmp_path, key):
    data = arrays()
    data[key] = data[key][:-1]
    with pytest.raises(DataError, match=rf"differ in length.*'{key}': 59"):
        read_file(write(tmp_path / "a.hdf5", data))


def with_next(data):
    rng = np.random.default_rng(1)
    return {**data, "next_observations": rng.normal(size=data["observations"].shape).astype(data["observations"].dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunks", [None, True])
def test_final_observations_are_the_next_ones_at_the_ends(tmp_path, dtype, chunks):
    data = with_next(arrays(dtype=dtype))
    expected = data["next_observations"][[9, 29, 30, 49]].astype(np.float32)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, array in data.items():
            file.create_dataset(name, data=array, chunks=chunks)
    for found in (from_arrays(data), read_file(tmp_path / "a.hdf5")):
        np.testing.assert_array_equal(found.final_observations, expected)
        assert found.final_observations.dtype == np.float32
        assert_same_as_naive(found, data)


def test_data_without_next_observations_have_no_final_ones(tmp_path):
    assert from_arrays(arrays()).final_observations is None
    assert read_file(write(tmp_path / "a.hdf5", arrays())).final_observations is None


def test_final_observations_far_apart_are_all_found(tmp_path):
    rng = np.random.default_rng(0)
    ends = np.sort(rng.choice(30_000, 200, replace=False))
    data = with_next(arrays(30_000, ends=[(end, "timeouts") for end in ends]))
    found = read_file(write(tmp_path / "a.hdf5", data))
    np.testing.assert_array_equal(found.final_observations, data["next_observations"][ends])


def test_next_observations_are_never_in_memory_whole(tmp_path):
    steps = 300_000
    data = with_next(arrays(steps, ends=[(i, "timeouts") for i in range(999, steps, 1_000)]))
    path = write(tmp_path / "big.hdf5", data)
    peaks = []
    for keys in (set(data), set(data) - {"next_observations"}):
        with h5py.File(path, "r") as file:
            taken = {key: file[key] for key in keys}
            tracemalloc.start()
            from_arrays(taken)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[0] - peaks[1] < 0.1 * data["next_observations"].nbytes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((59, 4)), "differ in length.*'next_observations': 59"),
        (np.zeros((60, 3)), r"next_observations have shape \(60, 3\); expected \(60, 4\)"),
        (np.full((60, 4), np.nan), "final_observations holds a NaN in component 0, in episode 0"),
        (np.array(["a"] * 60, dtype="S1"), "lies under 'next_observations'"),
    ],
)
def test_next_observations_that_do_not_fit_are_refused(tmp_path, given, message):
    with pytest.raises(DataError, match=message):
        read_file(write(tmp_path / "a.hdf5", {**arrays(), "next_observations": given}))


def test_no_whole_episode(tmp_path):
    with pytest.raises(DataError, match="no whole episode.*20 steps"):
        read_file(write(tmp_path / "a.hdf5", arrays(20, ends=())))


def test_no_steps(tmp_path):
    with pytest.raises(DataError, match="empty; expected at least one step"):
        read_file(write(tmp_path / "a.hdf5", arrays(0, ends=())))


def test_observations_and_actions_keep_their_shape(tmp_path):
    data = with_next(arrays())
    for name, shape in (("observations", (60, 2, 2)), ("next_observations", (60, 2, 2)), ("actions", (60, 1, 2))):
        data[name] = data[name].reshape(shape)
    for found in (from_arrays(data), read_file(write(tmp_path / "a.hdf5", data))):
        assert_same_as_naive(found, data)
        np.testing.assert_array_equal(found.final_observations, data["next_observations"][[9, 29, 30, 49]])


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_file_that_was_cut_says_what_to_do(tmp_path, kept):
    whole = write(tmp_path / "whole.hdf5", arrays(2_000)).read_bytes()
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"cut\.hdf5.*fetch it again"):
        read_file(cut)


@pytest.mark.parametrize("key", ["observations", "rewards"])
@pytest.mark.parametrize("value", [3.0, [b"text"] * 60, "group"], ids=["scalar", "strings", "group"])
def test_key_that_holds_no_array_of_numbers(tmp_path, key, value):
    write(tmp_path / "a.hdf5", arrays())
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file[key]
        if value == "group":
            for step in range(60):
                file[f"{key}/{step}"] = 0.0
        else:
            file[key] = value
    with pytest.raises(DataError, match=key):
        read_file(tmp_path / "a.hdf5")


def test_altered_byte_is_noticed_or_harmless(tmp_path):
    path = write(tmp_path / "a.hdf5", arrays())
    whole = path.read_bytes()
    for position in range(0, len(whole), 11):
        content = bytearray(whole)
        content[position] ^= 0xFF
        path.write_bytes(bytes(content))
        with contextlib.suppress(DataError):
            read_file(path)


def test_text_under_an_hdf5_name(tmp_path):
    (tmp_path / "a.hdf5").write_text("<html>404</html>")
    with pytest.raises(DataError, match="it is a web page in place of the data"):
        read_file(tmp_path / "a.hdf5")


def test_path_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"b\.hdf5 does not exist"):
        read_file(tmp_path / "b.hdf5")
    with pytest.raises(DataError, match="expected an HDF5 file"):
        read_file(tmp_path)


def test_float64_file_is_never_held_in_float64(tmp_path):
    steps = 300_000
    data = arrays(steps, ends=[(i, "timeouts") for i in range(999, steps, 1_000)], dtype=np.float64)
    data["observations"] = np.zeros((steps, 17))
    path = write(tmp_path / "big.hdf5", data)
    assert path.stat().st_size > 48e6
    del data
    tracemalloc.start()
    found = read_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(getattr(found, name).nbytes for name in ("observations", "actions", "rewards", "returns_to_go"))
    assert peak < 1.5 * kept


def whole_rows(lengths, seed=0):
    """Observations of trajectories of some lengths, and the next ones, which lead on within a trajectory only."""
    rng = np.random.default_rng(seed)
    walks = [rng.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    return np.concatenate([walk[:-1] for walk in walks]), np.concatenate([walk[1:] for walk in walks])


def goal_data(lengths, near, with_next=True, with_timeouts=True):
    """AntMaze's form: the reward and the terminal are 1 at each step near the goal, and the trajectory goes on.

    Args:
        lengths: steps of each trajectory; the last of them is a timeout.
        near: steps near the goal, as (trajectory, first step, end).
        with_next: add next_observations.
        with_timeouts: add timeouts.
    """
    observations, following = whole_rows(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rewards = np.zeros(len(observations), dtype=np.float32)
    for trajectory, first, end in near:
        rewards[starts[trajectory] + first : starts[trajectory] + end] = 1
    timeouts = np.zeros(len(observations), dtype=bool)
    timeouts[starts[1:] - 1] = True
    data = {"observations": observations, "actions": observations[:, :2], "rewards": rewards, "terminals": rewards > 0}
    data |= {"next_observations": following} if with_next else {}
    return data | ({"timeouts": timeouts} if with_timeouts else {})


TO_THE_END = [(trajectory, 640, 700) for trajectory in range(0, 10, 2)]
"""Five of ten trajectories reach the goal for their last 60 steps."""


@pytest.mark.parametrize("with_next", [True, False])
@pytest.mark.parametrize("with_timeouts", [True, False])
def test_terminals_near_a_goal_leave_trajectories_whole(tmp_path, with_next, with_timeouts):
    data = goal_data([700] * 10, TO_THE_END, with_next, with_timeouts)
    said = []
    horizon = None if with_timeouts or with_next else 700
    for found in (
        from_arrays(data, horizon=horizon, say=said.append),
        read_file(write(tmp_path / "a.hdf5", data), horizon, said.append),
    ):
        assert found.lengths.tolist() == [700] * 10
        assert found.returns.tolist() == [60, 0] * 5
        assert found.terminated.tolist() == [True, False] * 5
    assert len(said) == 2
    assert all("295 terminals inside episodes are no ends" in line for line in said)


def test_goal_that_is_left_again_ends_nothing_where_the_data_go_on():
    near = [(0, 10, 20), (0, 30, 31), (1, 0, 5), (2, 49, 50)]
    found = from_arrays(goal_data([50] * 4, near))
    assert found.lengths.tolist() == [50] * 4
    assert found.terminated.tolist() == [False, False, True, False]
    assert found.truncated.all()


def test_run_of_terminals_without_further_word_is_one_end():
    found = from_arrays(goal_data([50] * 3, [(0, 10, 20), (1, 48, 50)], with_next=False))
    assert found.lengths.tolist() == [20, 30, 50, 50]
    assert found.terminated.tolist() == [True, False, True, False]


def test_one_step_episodes_stay_apart_where_the_data_do_not_go_on():
    observations, following = whole_rows([20, 1, 1, 1, 20])
    terminals = np.zeros(43, dtype=bool)
    terminals[[19, 20, 21, 22, 42]] = True
    data = {"observations": observations, "actions": observations, "rewards": np.ones(43), "terminals": terminals}
    data |= {"timeouts": np.zeros(43, dtype=bool), "next_observations": following}
    assert from_arrays(data, say=pytest.fail).lengths.tolist() == [20, 1, 1, 1, 20]


def test_next_observations_that_are_shifted_rows_say_nothing():
    data = arrays()
    data["next_observations"] = np.roll(data["observations"], -1, axis=0)
    assert from_arrays(data, say=pytest.fail).lengths.tolist() == [10, 20, 1, 19]
    del data["timeouts"]
    with pytest.raises(DataError, match="--horizon"):
        from_arrays(data)


def test_next_observations_in_other_units_say_nothing():
    data = goal_data([50] * 3, [(0, 30, 50)])
    data["next_observations"] = 2 * data["next_observations"]
    assert from_arrays(data).lengths.tolist() == [50] * 3
    del data["timeouts"]
    with pytest.raises(DataError, match="--horizon"):
        from_arrays(data)


@pytest.mark.parametrize("with_next", [True, False])
def test_ordinary_flags_are_ends_without_a_word(with_next):
    lengths = [30, 7, 50, 12]
    data = goal_data(lengths, [(1, 6, 7), (3, 11, 12)], with_next)
    data["timeouts"] &= ~data["terminals"]
    found = from_arrays(data, say=pytest.fail)
    assert found.lengths.tolist() == lengths
    assert found.terminated.tolist() == [False, True, False, True]
    assert (found.truncated == ~found.terminated).all()


def test_data_without_timeouts_need_a_horizon():
    # As D4RL's scripts for maze2d write them: no step is an end.
    data = goal_data([50] * 4, [], with_next=False, with_timeouts=False)
    with pytest.raises(DataError, match=r"lacks 'timeouts'.*pass --horizon"):
        from_arrays(data)
    said = []
    found = from_arrays(data, horizon=60, say=said.append)
    assert found.lengths.tolist() == [60, 60, 60]
    assert found.truncated.all()
    assert not found.terminated.any()
    assert "after 60 steps" in said[0]


def test_horizon_counts_from_the_last_end():
    # As D4RL's kitchen files: a terminal ends a demonstration, and nothing marks those that were cut.
    data = goal_data([30, 100, 70], [(0, 29, 30), (2, 69, 70)], with_next=False, with_timeouts=False)
    found = from_arrays(data, horizon=100, say=lambda line: None)
    assert found.lengths.tolist() == [30, 100, 70]
    assert found.terminated.tolist() == [True, False, True]
    assert found.truncated.tolist() == [False, True, False]


def test_horizon_as_a_naive_count(tmp_path):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        horizon = int(rng.integers(1, 30))
        data = arrays(200, ends=())
        del data["timeouts"]
        data["terminals"] = rng.random(200) < 0.2
        expected, steps = [], 0
        for i in range(200):
            steps += 1
            if steps == horizon or (data["terminals"][i] and not data["terminals"][i + 1 : i + 2].any()):
                expected.append(steps)
                steps = 0
        assert from_arrays(data, horizon=horizon, say=lambda line: None).lengths.tolist() == expected


def test_breaks_end_episodes_where_timeouts_are_missing():
    data = goal_data([50, 20, 30], [(1, 19, 20)], with_timeouts=False)
    said = []
    found = from_arrays(data, say=said.append)
    assert found.lengths.tolist() == [50, 20, 30]
    assert found.terminated.tolist() == [False, True, False]
    assert found.truncated.tolist() == [True, False, True]
    assert "do not go on" in said[0]
    assert from_arrays(data, horizon=25, say=said.append).lengths.tolist() == [25, 25, 20, 25, 5]


def test_horizon_is_for_data_without_timeouts():
    assert from_arrays(arrays(), horizon=5).lengths.tolist() == from_arrays(arrays()).lengths.tolist()
    with pytest.raises(InvalidInput, match="horizon is 0"):
        from_arrays(arrays(), horizon=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("observations", np.zeros(60), r"observations have shape \(60,\); expected \(steps, numbers\)"),
        ("actions", np.zeros(60), r"actions have shape \(60,\)"),
        ("actions", np.zeros((60, 0)), r"actions have shape \(60, 0\)"),
        ("rewards", np.zeros((60, 2)), r"rewards have shape \(60, 2\); expected \(60,\)"),
        ("terminals", np.zeros((60, 3)), r"terminals have shape \(60, 3\)"),
        ("terminals", np.full(60, np.nan), "terminals are nan at step 0; expected 0 or 1"),
        ("timeouts", np.arange(60), "timeouts are 2 at step 2; expected 0 or 1"),
    ],
)
def test_arrays_of_another_shape_or_meaning_are_refused(tmp_path, key, value, message):
    data = {**arrays(), key: value}
    for read in (lambda: from_arrays(data), lambda: read_file(write(tmp_path / "a.hdf5", data))):
        with pytest.raises(DataError, match=message):
            read()


def test_kilobytes_that_ask_for_gigabytes_are_refused_at_once(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for key, shape in (("observations", (10**9, 17)), ("actions", (10**9, 6)), ("rewards", (10**9,))):
            file.create_dataset(key, shape, "f4", chunks=True, compression="gzip")
        for key in ("terminals", "timeouts"):
            file.create_dataset(key, (10**9,), bool, chunks=True, compression="gzip")
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(DataError, match=r"GiB of values; a file of \d+ bytes holds at most 64.0 MiB"):
        read_file(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_data_beyond_the_free_memory_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.hdf5", arrays(2_000))
    monkeypatch.setattr(hdf5, "free_memory", lambda: 100_000)
    with pytest.raises(DataError, match=r"a\.hdf5 needs 0\.1 MiB of memory"):
        read_file(path)


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("key", ["timeouts", "next_observations"])
def test_ends_that_next_observations_contradict_are_said(key, shift):
    rng = np.random.default_rng(0)
    episodes, length = 20, 10
    rows = rng.normal(size=(episodes, length + 1, 3)).astype(np.float32)
    data = {
        "observations": rows[:, :-1].reshape(-1, 3),
        "next_observations": rows[:, 1:].reshape(-1, 3),
        "actions": rng.uniform(-1, 1, (episodes * length, 1)).astype(np.float32),
        "rewards": np.ones(episodes * length, np.float32),
        "terminals": np.zeros(episodes * length, bool),
        "timeouts": np.arange(episodes * length) % length == length - 1,
    }
    said = []
    from_arrays(data, say=said.append)
    assert said == []
    data[key] = np.roll(data[key], shift, axis=0)
    from_arrays(data, say=said.append)
    # Where all next observations are shifted, they tell nothing.
    assert bool(said) == (key == "timeouts")
    assert not said or "episodes 'next_observations' are not the next observations, first at step 9" in said[0]


@pytest.mark.parametrize("column", [False, True])
def test_actions_of_whole_numbers_are_choices(tmp_path, column):
    data, said = arrays(), []
    data["actions"] = np.arange(60) % 5
    path = write(tmp_path / "a.hdf5", {**data, "actions": data["actions"][:, None] if column else data["actions"]})
    found = read_file(path, say=said.append)
    np.testing.assert_array_equal(found.actions, data["actions"][:50])
    assert found.action_space == DiscreteSpace((), (5,), (0,))
    assert said == [f"data: {path}: actions are whole numbers, so they are choices: 0 to 4, as far as the data show"]
    episodes = parse(path, said.append).episodes
    assert np.concatenate([episode.actions for episode in episodes]).dtype == np.int64
    np.testing.assert_array_equal(np.concatenate([episode.actions for episode in episodes]), data["actions"][:50])


def test_images_of_bytes_stay_bytes(tmp_path):
    data = arrays()
    data["observations"] = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
    data["next_observations"] = np.concatenate([data["observations"][1:], data["observations"][:1]])
    found = read_file(write(tmp_path / "a.hdf5", data))
    assert found.observations["image"].dtype == np.uint8
    np.testing.assert_array_equal(found.observations["image"], data["observations"][:50])
    np.testing.assert_array_equal(found.final_observations["image"], data["next_observations"][[9, 29, 30, 49]])
    (first, *_) = parse(tmp_path / "a.hdf5", print).episodes
    np.testing.assert_array_equal(first.observations, data["observations"][:11])


def test_episodes_are_the_trajectories(tmp_path):
    data = with_next(arrays())
    found = read_file(write(tmp_path / "a.hdf5", data))
    parsed = parse(tmp_path / "a.hdf5", lambda line: None)
    assert len(parsed.episodes) == found.episodes
    for number, episode in enumerate(parsed.episodes):
        here = slice(found.offsets[number], found.offsets[number + 1])
        np.testing.assert_array_equal(episode.observations[:-1], found.observations[here])
        np.testing.assert_array_equal(episode.observations[-1], found.final_observations[number])
        np.testing.assert_array_equal(episode.rewards, found.rewards[here])
        assert (episode.terminated, episode.truncated) == (found.terminated[number], found.truncated[number])


@pytest.mark.parametrize("key", ["observations", "rewards", "next_observations"])
def test_whole_numbers_that_float32_rounds_are_refused(tmp_path, key):
    data = with_next(arrays(steps=9_000))
    data[key] = np.zeros(data[key].shape, np.int64)
    data[key][8_000] = 2**24 + 1
    write(tmp_path / "a.hdf5", data)
    with pytest.raises(DataError, match=rf"a\.hdf5 .*{key} are int64 numbers from 0 to 16777217; float32 holds"):
        read_file(tmp_path / "a.hdf5", say=lambda line: None)
    data[key][8_000] = 2**24
    from_arrays(data, say=lambda line: None)


@pytest.mark.parametrize("column", [False, True])
def test_actions_of_bools_are_choices(tmp_path, column):
    data = arrays()
    data["actions"] = np.arange(60) % 3 == 0
    if column:
        data["actions"] = data["actions"][:, None]
    found = from_arrays(data, say=lambda line: None)
    assert found.action_space == DiscreteSpace((), (2,), (0,))
    np.testing.assert_array_equal(found.actions, np.ravel(data["actions"])[: found.steps])


@pytest.mark.parametrize("with_timeouts", [True, False])
def test_npz_of_the_arrays_is_read_as_the_file(tmp_path, with_timeouts):
    data = arrays()
    if not with_timeouts:
        del data["timeouts"]
    write(tmp_path / "a.hdf5", data)
    np.savez(tmp_path / "a.npz", **data, qpos=np.zeros(3))
    ours, theirs = (read_file(tmp_path / name, 20, lambda line: None) for name in ("a.npz", "a.hdf5"))
    for name in ("observations", "actions", "rewards", "offsets", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.terminated.any()


def test_next_images_of_another_dtype_are_refused():
    data = arrays()
    data["observations"] = np.zeros((60, 8, 8, 3), np.uint8)
    data["next_observations"] = np.full((60, 8, 8, 3), 0.5)
    with pytest.raises(DataError, match="next_observations are float64; expected uint8"):
        from_arrays(data, say=lambda line: None)
