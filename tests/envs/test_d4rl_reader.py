import contextlib
import tracemalloc

import h5py
import numpy as np
import pytest

from aaren_rl.envs.d4rl_reader import from_arrays, read_file
from aaren_rl.errors import DataError


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
    """Episodes by one plain loop over the steps."""
    episodes, current = [], []
    for i in range(len(data["rewards"])):
        current.append(i)
        if data["terminals"][i] or data["timeouts"][i]:
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


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals", "timeouts"])
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
        (np.zeros((60, 3)), r"final_observations has shape \(4, 3\); expected \(4, 4\)"),
        (np.full((60, 4), np.nan), "final_observations holds a NaN in component 0, in episode 0"),
        (np.array(["a"] * 60, dtype="S1"), "lies under 'next_observations'"),
    ],
)
def test_next_observations_that_do_not_fit_are_refused(tmp_path, given, message):
    with pytest.raises(DataError, match=message):
        read_file(write(tmp_path / "a.hdf5", {**arrays(), "next_observations": given}))


@pytest.mark.parametrize("steps", [0, 20])
def test_no_whole_episode(tmp_path, steps):
    with pytest.raises(DataError, match=f"no whole episode.*{steps} steps"):
        read_file(write(tmp_path / "a.hdf5", arrays(steps, ends=())))


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
    with pytest.raises(DataError, match="of another format"):
        read_file(tmp_path / "a.hdf5")


def test_path_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"b\.hdf5 does not exist"):
        read_file(tmp_path / "b.hdf5")
    with pytest.raises(DataError, match="expected a D4RL HDF5 file"):
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
