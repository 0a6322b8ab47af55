"""Lines on what in data is accepted and yet odd."""

import re

import numpy as np
import pytest

from aaren_rl.data.episode import Episode
from aaren_rl.data.oddities import describe_oddities
from aaren_rl.data.trajectories import Trajectories


def make(lengths=(50, 50, 50), seed=0, **changes):
    rng = np.random.default_rng(seed)
    steps, episodes = sum(lengths), len(lengths)
    arrays = {
        "observations": rng.normal(size=(steps, 6)),
        "actions": rng.uniform(-1, 1, (steps, 3)),
        "rewards": rng.random(steps),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "terminated": np.zeros(episodes, bool),
        "truncated": np.ones(episodes, bool),
    }
    for name, change in changes.items():
        arrays[name] = arrays[name].astype(np.float32)
        change(arrays[name])
    return Trajectories(**arrays)


def put(*places):
    """Writes values at places of an array."""

    def change(array):
        for place, value in places:
            array[place] = value

    return change


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_ordinary_data_have_none(unit):
    def scale(array):
        array *= unit

    assert describe_oddities(make(observations=scale, actions=scale, rewards=scale)) == []


def test_constant_observations_are_named():
    (line,) = describe_oddities(make(observations=put((np.s_[:, 1], 5.0), (np.s_[:, 3:], -1e-9))))
    assert line.startswith("4 of 6 observation components never vary (1, 3 to 5): they are held at their constants")


def test_constant_actions_are_named():
    (line,) = describe_oddities(make(actions=put((np.s_[:, 2], 90.0))))
    assert line == "1 of 3 action components never vary (2): the agent holds them there"


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([40] * 5 + [1] * 100 + [40] * 1000, r"100 of 1105 episodes \(9%\) .* the first is episode 5"),
        ([40, 40, 1, 1, 40], r"2 of 5 episodes \(40%\) have a single step, the first is episode 2"),
        ([40] * 11 + [1], r"1 of 12 episodes \(8%\) have a single step, the first is episode 11"),
        ([40] * 110 + [1], None),
    ],
)
def test_episodes_of_one_step_are_counted(lengths, expected):
    lines = describe_oddities(make(lengths))
    assert len(lines) == (expected is not None)
    assert all(re.match(expected, line) for line in lines)


@pytest.mark.parametrize("value", [1e20, -3e38, 1e4])
def test_steps_that_are_clipped_are_counted_with_their_place(value):
    # Of fewer steps a single one makes up too much of the deviation to be far off. Most are 0, so none look alike.
    data = make([10_000] * 3, observations=put((np.s_[:, 2], 0), (np.s_[::31, 2], 1e-9), ((20_007, 2), value)))
    (line,) = describe_oddities(data)
    assert re.match(r"1 steps have .* more than 100 deviations .* step 20007, in episode 2, component 2$", line)


@pytest.mark.parametrize("value", [1e20, -1e30, 1e5])
def test_outliers_that_make_up_the_deviation_are_named(value):
    (line,) = describe_oddities(make(observations=put(((77, 4), value))))
    assert "1 observation components have a few values so large" in line
    assert f"component 4 is {np.float32(value):.3g} at step 77, in episode 1, and mostly from -1" in line


def test_equal_returns_are_named():
    (line,) = describe_oddities(make(rewards=put((np.s_[:], 0.0))))
    assert line == "all 3 episodes have the return 0: a target return changes nothing"
    assert describe_oddities(make([50], rewards=put((np.s_[:], 0.0)))) == []


def test_returns_beyond_the_return_scale_are_counted():
    data = make(rewards=put((np.s_[:], 0.0), (60, 500.0), (90, -30.0)))
    assert describe_oddities(data) == []
    (line,) = describe_oddities(data, return_scale=1.0)
    # Those from the start of episode 1 up to the large reward.
    assert line.startswith("11 steps have a return-to-go beyond 100 times the return scale of 1, and are clipped there")
    assert line.endswith("the first is step 50, in episode 1")
    assert describe_oddities(data, return_scale=5.0) == []


def test_many_places_are_cut_short():
    rng = np.random.default_rng(0)
    data = make()
    observations = rng.normal(size=(150, 60)).astype(np.float32)
    observations[:, ::2] = 1.0
    wide = Trajectories(observations, data.actions, data.rewards, data.offsets, data.terminated, data.truncated)
    (line,) = describe_oddities(wide)
    assert "(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ...)" in line


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_observations_of_any_shape_are_looked_at(shape):
    rng = np.random.default_rng(0)
    data = make()
    observations = np.ones((150, *shape), np.float32)
    observations[..., :1] = rng.normal(size=observations[..., :1].shape)
    found = describe_oddities(
        Trajectories(observations, data.actions, data.rewards, data.offsets, data.terminated, data.truncated)
    )
    assert found == [] if shape == () else "4 of 6 observation components never vary (1 to 2, 4 to 5)" in found[0]


def test_a_return_that_dominates_is_said():
    rng = np.random.default_rng(0)

    def data(first):
        rewards = rng.uniform(-1, 0, 200)
        rewards[3] = first
        return Trajectories.from_episodes(
            Episode(rng.normal(size=(11, 2)), rng.normal(size=(10, 1)), rewards[start : start + 10], truncated=True)
            for start in range(0, 200, 10)
        )

    assert not [line for line in describe_oddities(data(-1.0)) if "they look alike" in line]
    (line,) = [line for line in describe_oddities(data(1e6)) if "they look alike" in line]
    assert line.startswith("episode 0 has the return 99999")


def test_a_constant_far_from_zero_may_be_more_than_float32_resolves():
    rng = np.random.default_rng(0)
    clock = 1.76e9 + np.arange(44.0)
    observations = np.stack([rng.normal(size=44), clock], axis=1)
    data = Trajectories.from_episodes([Episode(observations[:22], np.ones((21, 1)), np.ones(21), truncated=True)])
    text = " ".join(describe_oddities(data))
    assert "component 1, near 1.76e+09, does vary, float32 does not resolve it there: subtract an offset" in text
