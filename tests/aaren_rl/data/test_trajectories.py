import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaren_rl.data.trajectories import Episode, Trajectories, returns_to_go
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


@settings(max_examples=50)
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


def test_only_arrays_that_are_not_float32_are_copied():
    observations = np.zeros((8, 2), dtype=np.float32)
    trajectories = make(observations=observations)
    assert np.shares_memory(trajectories.observations, observations)
    assert {trajectories.actions.dtype, trajectories.rewards.dtype} == {np.dtype(np.float32)}
    assert make(offsets=[0, 3, 4, 8]).offsets.dtype == np.int64


@pytest.mark.parametrize("observation_shape", [(), (2,), (3, 4, 2)])
@pytest.mark.parametrize("action_shape", [(), (1,), (2, 3)])
def test_observations_and_actions_have_any_shape(observation_shape, action_shape):
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(8, *observation_shape)), rng.normal(size=(8, *action_shape))
    final = rng.normal(size=(3, *observation_shape))
    trajectories = make(observations=observations, actions=actions, final_observations=final)
    np.testing.assert_array_equal(trajectories.observations, observations.astype(np.float32))
    np.testing.assert_array_equal(trajectories.actions, actions.astype(np.float32))
    np.testing.assert_array_equal(trajectories.final_observations, final.astype(np.float32))
    mean, std = trajectories.observation_statistics()
    assert mean.shape == std.shape == observation_shape
    np.testing.assert_allclose(mean, observations.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, observations.std(0), rtol=1e-5)
    vectors = make(observations=observations.reshape(8, -1)).observation_statistics()
    np.testing.assert_array_equal(mean.ravel(), vectors[0])
    np.testing.assert_array_equal(std.ravel(), vectors[1])


def test_statistics_of_large_observations_come_in_small_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    whole = make((40,), observations=rng.normal(size=(40, 6, 5)))
    expected = whole.observation_statistics()
    monkeypatch.setattr("aaren_rl.data.storage.BLOCK_NUMBERS", 7 * 30)
    for got, wanted in zip(whole.observation_statistics(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
    with pytest.raises(DataError, match="at step 39"):
        make((40,), observations=spoiled(np.zeros((40, 6, 5)), (39, 5, 4), np.nan))


def test_final_observations_are_optional_and_float32():
    assert make().final_observations is None
    final = np.ones((3, 2), dtype=np.float32)
    assert np.shares_memory(make(final_observations=final).final_observations, final)
    assert make(final_observations=np.ones((3, 2))).final_observations.dtype == np.float32


@pytest.mark.parametrize("steps", [1, 7, 30_000, 150_000])
def test_statistics_equal_numpys_in_float64(steps):
    rng = np.random.default_rng(steps)
    # One component far from zero, where sums of squares in float32 would fail, and one that never changes.
    observations = np.stack([rng.normal(size=steps), rng.normal(size=steps) + 1e4, np.full(steps, 3.5)], 1)
    trajectories = make((steps,), observations=observations)
    mean, std = trajectories.observation_statistics()
    wide = trajectories.observations.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, wide.std(0), rtol=1e-4, atol=1e-9)
    assert mean.dtype == std.dtype == np.float32
    assert std[2] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros((8, 1))}, r"expected \(steps, \*observation shape\), \(steps, \*action shape\) and"),
        ({"observations": np.zeros((11, 2))}, "11 observations, 8 actions and 8 rewards.*final_observations"),
        ({"observations": np.zeros(())}, "1 observations, 8 actions"),
        ({"final_observations": np.zeros((2, 2))}, r"final_observations has shape \(2, 2\); expected \(3, 2\)"),
        ({"final_observations": np.zeros((3, 3))}, r"final_observations has shape \(3, 3\); expected \(3, 2\)"),
        ({"final_observations": np.zeros((3, 2, 1))}, r"expected \(3, 2\)"),
        ({"rewards": np.zeros(7)}, "8 observations, 8 actions and 7 rewards"),
        ({"offsets": [0]}, "no whole episode"),
        ({"offsets": []}, "no whole episode"),
        ({"offsets": [1, 3, 4, 8]}, "from 1 to 8"),
        ({"offsets": [0, 3, 4, 7]}, "from 0 to 7"),
        ({"offsets": [0, 3, 3, 8]}, "shortest episode 0"),
        ({"offsets": [0, 5, 4, 8]}, "shortest episode -1"),
        ({"terminated": np.zeros(2, dtype=bool)}, "2 terminated and 3 truncated flags for 3 episodes"),
        ({"terminated": True}, r"terminated has shape \(\); expected \(3,\)"),
        ({"truncated": np.zeros((3, 1), dtype=bool)}, r"truncated has shape \(3, 1\); expected \(3,\)"),
        ({"offsets": [[0], [3], [4], [8]]}, r"offsets have shape \(4, 1\); expected \(episodes \+ 1,\)"),
        ({"offsets": [0, 3.5, 4, 8]}, "offsets are float64 numbers; expected whole numbers"),
        ({"actions": np.full((8, 1), "left")}, "actions are not an array of numbers"),
        ({"observations": [[1.0, 2.0]] * 7 + [[3.0]]}, "observations are not an array of numbers"),
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
    found = "a NaN" if np.isnan(value) else "an infinite value, or one beyond float32"
    with pytest.raises(DataError, match=f"{name} holds {found}.* at step {step}, in episode {episode}; mend"):
        replace(make(), **{name: array})


@pytest.mark.parametrize("value", [1e39, -1e300, 3.5e38])
@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "final_observations"])
def test_numbers_beyond_float32_are_named(name, value):
    shape = {"observations": (8, 2), "actions": (8, 1), "rewards": (8,), "final_observations": (3, 2)}[name]
    message = rf"{name} holds {re.escape(f'{value:.3g}')}.*, beyond float32 \(3.4e\+38\),.* in episode 1; mend"
    row = 1 if name == "final_observations" else 3
    with pytest.raises(DataError, match=message):
        make(**{name: spoiled(np.zeros(shape), row, value)})


@pytest.mark.parametrize("largest", [float(np.finfo(np.float32).max), -3e38])
def test_numbers_that_float32_just_holds_are_taken(largest):
    data = make(observations=spoiled(np.zeros((8, 2)), (2, 1), largest), rewards=spoiled(np.zeros(8), 7, largest))
    assert data.observations[2, 1] == np.float32(largest)
    assert data.returns[2] == np.float32(largest)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([0, 0, 0, 0, 2e38, 2e38, 0, 0], r"episode 2 sum to 4e\+38 from step 4 on, beyond float32 \(3.4e\+38\)"),
        ([-3e38, -3e38, 1, 0, 0, 0, 0, 0], r"episode 0 sum to -6e\+38 from step 0 on"),
        ([-3e38, 3e38, 3e38, 0, 0, 0, 0, 0], r"episode 0 sum to 6e\+38 from step 1 on"),
    ],
)
def test_returns_beyond_float32_are_refused_with_their_episode(rewards, message):
    with pytest.raises(DataError, match=message):
        make(rewards=np.array(rewards))


def test_large_rewards_that_cancel_are_taken():
    data = make(rewards=np.array([3e38, -3e38, 3e38, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(data.returns_to_go[:3], np.array([3e38, 0, 3e38], np.float32))


@pytest.mark.parametrize("size", [1e12, -1e20, 3e38])
@pytest.mark.parametrize("large", [0, 1, 2])
def test_returns_beside_an_episode_of_large_rewards_keep_their_digits(size, large):
    """A sum over all episodes would lose them."""
    rewards = np.arange(1.0, 13.0).reshape(3, 4)
    rewards[large, 2] = size
    data = make((4, 4, 4), rewards=rewards.ravel())
    expected = rewards[:, ::-1].cumsum(1)[:, ::-1]
    np.testing.assert_allclose(data.returns_to_go.reshape(3, 4), expected, rtol=1e-6)


@pytest.mark.parametrize(("value", "found"), [(np.nan, "a NaN"), (np.inf, "an infinite value")])
def test_final_observations_that_are_not_finite_are_refused(value, found):
    with pytest.raises(DataError, match=f"final_observations holds {found} in component 0, in episode 1"):
        make(final_observations=spoiled(np.zeros((3, 2)), (1, 0), value))


def test_a_bad_value_far_into_the_data_is_found():
    steps = 70_000
    with pytest.raises(DataError, match="at step 69999, in episode 1"):
        make((60_000, 10_000), actions=spoiled(np.zeros((steps, 1)), 69_999, np.nan))


def episode(steps=4, seed=0, final=True, observation_shape=(2,), action_shape=(1,), **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "observations": rng.normal(size=(steps + final, *observation_shape)),
        "actions": rng.normal(size=(steps, *action_shape)),
        "rewards": rng.normal(size=steps),
        "truncated": True,
    }
    return Episode(**{**fields, **changes})


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(("observation_shape", "action_shape"), [((2,), (1,)), ((), ()), ((3, 4), (2, 2))])
def test_episodes_are_packed_one_after_another(final, observation_shape, action_shape):
    shapes = {"final": final, "observation_shape": observation_shape, "action_shape": action_shape}
    episodes = [episode(steps, seed, **shapes) for seed, steps in enumerate((3, 1, 5))]
    trajectories = Trajectories.from_episodes(iter(episodes))
    assert trajectories.offsets.tolist() == [0, 3, 4, 9]
    for number, one in enumerate(episodes):
        here, steps = slice(*trajectories.offsets[number : number + 2]), len(one.rewards)
        np.testing.assert_array_equal(trajectories.observations[here], one.observations[:steps].astype(np.float32))
        np.testing.assert_array_equal(trajectories.actions[here], one.actions.astype(np.float32))
        np.testing.assert_array_equal(trajectories.rewards[here], one.rewards.astype(np.float32))
        if final:
            last = one.observations[steps].astype(np.float32)
            np.testing.assert_array_equal(trajectories.final_observations[number], last)
    if not final:
        assert trajectories.final_observations is None


def test_an_episode_without_an_end_counts_as_truncated():
    flags = [(False, False), (False, True), (True, False), (True, True)]
    packed = Trajectories.from_episodes(episode(terminated=ended, truncated=cut) for ended, cut in flags)
    assert packed.terminated.tolist() == [False, False, True, True]
    assert packed.truncated.tolist() == [True, True, False, True]


def test_plain_lists_and_other_numbers_make_an_episode():
    packed = Trajectories.from_episodes([Episode([[0, 1], [2, 3]], [[True]], [7], terminated=np.True_)])
    assert (packed.observations.tolist(), packed.final_observations.tolist()) == ([[0, 1]], [[2, 3]])
    assert (packed.actions.tolist(), packed.rewards.tolist(), packed.terminated.tolist()) == ([[1]], [7], [True])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((7, 2))}, r"episode 1 has 7 observations, 4 actions and 4 rewards; .*T or T \+ 1"),
        ({"observations": np.zeros((3, 2))}, "episode 1 has 3 observations, 4 actions and 4 rewards"),
        ({"actions": np.zeros((5, 1))}, "episode 1 has 5 observations, 5 actions and 4 rewards"),
        ({"rewards": np.zeros(0)}, "episode 1 has 5 observations, 4 actions and 0 rewards; .*T at least 1"),
        ({"rewards": np.zeros((4, 1))}, r"episode 1 has .* rewards \(4, 1\); expected"),
        ({"observations": np.zeros(())}, r"episode 1 has observations \(\), actions"),
        ({"observations": np.zeros((5, 3))}, r"observations of episode 1 have shape \(3,\) per step; expected \(2,\)"),
        ({"actions": np.zeros((4, 2))}, r"actions of episode 1 have shape \(2,\) per step; expected \(1,\)"),
        ({"observations": np.zeros((4, 2))}, "episode 1 has 4 observations for 4 steps, episode 0 has 5 for 4"),
        ({"actions": [["left"]] * 4}, "actions of episode 1 have the dtype <U4; expected numbers"),
        ({"observations": [[1, 2], [3]]}, "observations of episode 1 are not an array"),
        ({"terminated": np.zeros(4, bool)}, r"terminated of episode 1 has shape \(4,\); expected one bool"),
        ({"rewards": [0, np.nan, 0, 0]}, "rewards holds a NaN at step 5, in episode 1"),
        ({"rewards": [0, 1e300, 0, 0]}, r"rewards of episode 1 hold 1e\+300, beyond float32 .* at step 1"),
        (
            {"actions": spoiled(np.zeros((4, 1)), 2, -1e39)},
            r"actions of episode 1 hold -1e\+39 in component 0, .* step 2",
        ),
        (
            {"observations": spoiled(np.zeros((5, 2)), (4, 1), 1e39)},
            r"observations of episode 1 hold 1e\+39 in comp.* step 4",
        ),
        ({"observations": spoiled(np.zeros((5, 2)), 4, np.inf)}, "final_observations .* in episode 1"),
    ],
)
def test_an_episode_that_does_not_fit_is_named(changes, message):
    with pytest.raises(DataError, match=message):
        Trajectories.from_episodes([episode(), episode(**changes)])


def test_no_episodes_are_refused():
    with pytest.raises(DataError, match="no episodes; expected at least one"):
        Trajectories.from_episodes([])


@pytest.mark.parametrize("final", [True, False])
def test_joined_datasets_have_the_episodes_of_all(final):
    parts = [
        make(lengths, seed, **({"final_observations": np.full((len(lengths), 2), seed)} if final else {}))
        for seed, lengths in enumerate(((3, 1), (4,), (2, 2, 5)))
    ]
    joined = Trajectories.join(parts)
    assert joined.lengths.tolist() == [3, 1, 4, 2, 2, 5]
    np.testing.assert_array_equal(joined.returns, np.concatenate([part.returns for part in parts]))
    third = joined.select(np.array([2]))
    np.testing.assert_array_equal(third.observations, parts[1].observations)
    if final:
        np.testing.assert_array_equal(joined.final_observations[:, 0], [0, 0, 1, 2, 2, 2])


def test_datasets_that_differ_are_not_joined():
    with pytest.raises(DataError, match=r"dataset 1 has actions of shape \(2,\), dataset 0 \(1,\)"):
        Trajectories.join([make(), make(actions=np.zeros((8, 2)))])
    with pytest.raises(DataError, match="dataset 1 has final observations True, dataset 0 False"):
        Trajectories.join([make(), make(final_observations=np.zeros((3, 2)))])
    with pytest.raises(DataError, match="no datasets; expected at least one"):
        Trajectories.join([])


def test_the_best_episodes_are_kept_in_their_order():
    rewards = np.arange(8.0)
    trajectories = make((2, 2, 2, 2), rewards=rewards[::-1].copy())
    assert trajectories.best(0.5).returns.tolist() == [13.0, 9.0]
    assert trajectories.best(0.01).returns.tolist() == [13.0]
    assert trajectories.at_least(5).returns.tolist() == [13.0, 9.0, 5.0]
    with pytest.raises(DataError, match="no episode has a return of 14; the best has 13"):
        trajectories.at_least(14)
    with pytest.raises(DataError, match="share is 0; expected a number above 0, up to 1"):
        trajectories.best(0)
