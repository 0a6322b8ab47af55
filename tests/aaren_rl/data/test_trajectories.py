from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl.data.trajectories import Trajectories, returns_to_go
from aaren_rl.errors import DataError


def make(lengths=(3, 1, 4), seed=0, **changes):
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    fields = {
        "observations": rng.normal(size=(steps, 2)),
        "actions": rng.normal(size=(steps, 1)),
        "rewards": rng.normal(size=steps),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "terminated": np.zeros(len(lengths), dtype=bool),
        "truncated": np.ones(len(lengths), dtype=bool),
    }
    return Trajectories(**{**fields, **changes})


def spoiled(array, at, value):
    array = np.array(array)
    array[at] = value
    return array


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), min_size=1, max_size=8))
def test_returns_to_go_equal_a_loop_over_each_episode(episodes):
    rewards = np.array([reward for episode in episodes for reward in episode], dtype=np.float32)
    offsets = np.concatenate([[0], np.cumsum([len(episode) for episode in episodes])])
    expected = [sum(map(float, episode[t:])) for episode in episodes for t in range(len(episode))]
    np.testing.assert_allclose(returns_to_go(rewards, offsets), expected, rtol=1e-5, atol=1e-3)


def test_returns_to_go_of_a_late_episode_keep_their_precision():
    # A running float32 sum over ten million would lose the rewards of the last episode.
    rewards = np.full(1_000_001, 10.0, dtype=np.float32)
    rewards[-1] = 0.001
    got = returns_to_go(rewards, np.array([0, 1_000_000, 1_000_001]))
    assert got[-1] == pytest.approx(0.001, rel=1e-4)
    assert got[0] == pytest.approx(1e7)


def test_sizes_and_returns_follow_the_offsets():
    trajectories = make((3, 1, 4))
    assert (trajectories.episodes, trajectories.steps) == (3, 8)
    assert trajectories.lengths.tolist() == [3, 1, 4]
    rewards = trajectories.rewards
    np.testing.assert_allclose(trajectories.returns, [rewards[:3].sum(), rewards[3], rewards[4:].sum()], rtol=1e-5)
    np.testing.assert_allclose(trajectories.returns_to_go[[2, 3, 7]], rewards[[2, 3, 7]], rtol=1e-5)


def test_float32_arrays_are_taken_without_a_copy_and_others_converted():
    observations = np.zeros((8, 2), dtype=np.float32)
    trajectories = make(observations=observations)
    assert np.shares_memory(trajectories.observations, observations)
    assert {trajectories.actions.dtype, trajectories.rewards.dtype} == {np.dtype(np.float32)}
    assert make(offsets=[0, 3, 4, 8]).offsets.dtype == np.int64


@pytest.mark.parametrize("steps", [1, 7, 30_000, 150_000])
def test_statistics_equal_numpys_in_float64(steps):
    rng = np.random.default_rng(steps)
    # One component far from zero, where sums of squares in float32 would fail, and one that never changes.
    observations = np.stack([rng.normal(size=steps), rng.normal(size=steps) + 1e4, np.full(steps, 3.5)], 1)
    trajectories = make((steps,), observations=observations)
    mean, std = trajectories.observation_statistics()
    wide = trajectories.observations.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, np.where(wide.std(0) > 1e-6, wide.std(0), 1.0), rtol=1e-4, atol=1e-9)
    assert mean.dtype == std.dtype == np.float32
    assert std[2] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros(8)}, r"expected \(steps, size\), \(steps, size\) and \(steps,\)"),
        ({"actions": np.zeros((8, 1, 1))}, r"expected \(steps, size\)"),
        ({"rewards": np.zeros((8, 1))}, r"expected \(steps, size\)"),
        ({"observations": np.zeros((11, 2))}, "11 observations, 8 actions and 8 rewards"),
        ({"rewards": np.zeros(7)}, "8 observations, 8 actions and 7 rewards"),
        ({"offsets": [0]}, "no whole episode"),
        ({"offsets": []}, "no whole episode"),
        ({"offsets": [1, 3, 4, 8]}, "from 1 to 8"),
        ({"offsets": [0, 3, 4, 7]}, "from 0 to 7"),
        ({"offsets": [0, 3, 3, 8]}, "shortest episode 0"),
        ({"offsets": [0, 5, 4, 8]}, "shortest episode -1"),
        ({"terminated": np.zeros(2, dtype=bool)}, "2 terminated and 3 truncated flags for 3 episodes"),
        ({"truncated": np.zeros(4, dtype=bool)}, "3 terminated and 4 truncated flags for 3 episodes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_no_steps_at_all_are_refused():
    nothing = {"observations": np.zeros((0, 2)), "actions": np.zeros((0, 1)), "rewards": np.zeros(0)}
    with pytest.raises(DataError, match="no whole episode"):
        make(**nothing, offsets=[0], terminated=[], truncated=[])


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("step", "episode"), [(0, 0), (3, 1), (7, 2)])
def test_values_that_are_not_finite_are_refused_with_their_place(name, value, step, episode):
    array = spoiled(getattr(make(), name), step, value)
    with pytest.raises(
        DataError, match=f"{name} holds a NaN or an infinite value at step {step}, in episode {episode}"
    ):
        replace(make(), **{name: array})


def test_a_bad_value_far_into_the_data_is_found():
    steps = 70_000
    with pytest.raises(DataError, match="at step 69999, in episode 1"):
        make((60_000, 10_000), actions=spoiled(np.zeros((steps, 1)), 69_999, np.nan))
