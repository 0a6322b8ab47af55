"""Trajectories of images, discrete numbers, texts and parts, from episodes to training segments."""

import dataclasses

import numpy as np
import pytest
import torch

from aaren_rl.data.oddities import describe_oddities
from aaren_rl.data.sampler import Sampler
from aaren_rl.data.spaces import (
    BinarySpace,
    Box,
    DictSpace,
    DiscreteSpace,
    ImageSpace,
    TextSpace,
    TupleSpace,
)
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import DataError
from aaren_rl.model.scaling import Scaling

WORDS = ["pick up the key", "open the door"]


def mission(steps, seed=0, final=True, **changes):
    rng = np.random.default_rng(seed)
    count = steps + final
    observations = {
        "image": rng.integers(0, 11, (count, 7, 7, 3)).astype(np.uint8),
        "direction": rng.integers(0, 4, count),
        "mission": [WORDS[seed % 2]] * count,
    }
    fields = {
        "observations": observations,
        "actions": rng.integers(0, 7, steps),
        "rewards": rng.normal(size=steps),
        "terminated": True,
    }
    return Episode(**{**fields, **changes})


EPISODES = [mission(5, 0), mission(3, 1), mission(4, 2)]


def test_episodes_show_their_spaces():
    data = Trajectories.from_episodes(EPISODES)
    words = ("door", "key", "open", "pick", "the", "up")
    assert data.observation_space == DictSpace(
        (
            ("image", ImageSpace((7, 7, 3), "last")),
            ("direction", Box.unbounded((), "int64")),
            ("mission", TextSpace(words, 4)),
        )
    )
    assert data.action_space == DiscreteSpace((), (1 + max(one.actions.max() for one in EPISODES),), (0,))
    assert data.observation_shapes == {"numbers": (5,), "image": (7, 7, 3)}
    assert data.observations["image"].dtype == np.uint8
    np.testing.assert_array_equal(
        data.observations["image"], np.concatenate([one.observations["image"][:-1] for one in EPISODES])
    )
    np.testing.assert_array_equal(data.final_observations["image"][1], EPISODES[1].observations["image"][-1])
    np.testing.assert_array_equal(data.actions, np.concatenate([one.actions for one in EPISODES]))
    np.testing.assert_array_equal(data.numbers[5], [EPISODES[1].observations["direction"][0], 4, 6, 2, 0])


def test_spaces_that_are_given_count():
    given = DictSpace(
        (
            ("image", ImageSpace((7, 7, 3), "last")),
            ("direction", DiscreteSpace((), (4,), (0,))),
            ("mission", TextSpace()),
        )
    )
    data = Trajectories.from_episodes(EPISODES, given, DiscreteSpace((), (7,), (0,)))
    assert data.action_space == DiscreteSpace((), (7,), (0,))
    assert [type(part.space) for part in data.observation_space.parts()] == [DiscreteSpace, ImageSpace, TextSpace]
    chosen = data.select(np.array([2, 0]))
    assert chosen.observation_space == data.observation_space
    np.testing.assert_array_equal(chosen.observations["image"][:4], EPISODES[2].observations["image"][:-1])
    mean, std = data.observation_statistics()
    np.testing.assert_allclose(mean[0], data.numbers[:, 0].mean(dtype=np.float64), rtol=1e-6)
    assert std.shape == (5,)
    assert describe_oddities(data) is not None


def test_an_image_alone_is_an_array_of_bytes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 3, 40, 40)).astype(np.uint8)
    data = Trajectories.from_episodes([Episode(images, np.zeros((5, 1)), np.ones(5))])
    assert data.observation_space == ImageSpace((3, 40, 40), "first")
    np.testing.assert_array_equal(data.observations["image"], images[:-1])
    assert np.shares_memory(data.observations["image"], data.select(np.array([0])).observations["image"]) is False
    assert data.numbers.shape == (5, 0)
    assert Scaling.of(data).observation_mean.shape == (0,)
    packed = Trajectories(images[:5], np.zeros((5, 1)), np.ones(5), [0, 5], [True], [False], images[5:])
    np.testing.assert_array_equal(packed.observations["image"], data.observations["image"])
    np.testing.assert_array_equal(packed.final_observations["image"], data.final_observations["image"])
    assert np.shares_memory(packed.observations["image"], images)


def test_bytes_that_are_no_image_become_floats():
    data = Trajectories.from_episodes([Episode(np.full((3, 3, 3), 7, np.uint8), np.zeros((3, 1)), np.ones(3))])
    assert data.observations.dtype == np.float32
    assert data.observation_space is None


def test_actions_of_parts_stand_in_one_row():
    space = DictSpace((("move", Box.bounded([-1.0], [1.0])), ("keys", TupleSpace((BinarySpace((2,)),)))))
    actions = {"move": np.array([[0.5], [-1.0]]), "keys": (np.array([[1, 0], [0, 1]]),)}
    data = Trajectories.from_episodes([Episode(np.zeros((2, 1)), actions, np.ones(2))], action_space=space)
    np.testing.assert_array_equal(data.actions, [[1, 0, 0.5], [0, 1, -1]])


@pytest.mark.parametrize("context", ["3", "episode", "packed", "carry:2", "2+3"])
def test_segments_hold_what_the_steps_are(context):
    data = Trajectories.from_episodes(EPISODES)
    sampler = Sampler(data, np.arange(3), 2, context, next_observations=True, seed=1)
    for _ in range(5):
        segment = sampler.sample()
        assert segment.observations["image"].dtype == torch.uint8
        segment.check(data.observation_space, data.action_space)
        rows, times = np.nonzero(segment.valid.numpy())
        assert not segment.observations["image"][~segment.valid].any()
        for row, time in zip(rows, times, strict=True):
            observed = {key: part[row, time].numpy() for key, part in segment.observations.items()}
            steps = np.flatnonzero((data.observations["image"] == observed["image"]).all((1, 2, 3)))
            (step,) = steps
            np.testing.assert_array_equal(observed["numbers"], data.numbers[step])
            episode = data.episode_of(step)
            after = np.concatenate([data.observations["image"], data.final_observations["image"]])
            last = step + 1 == data.offsets[episode + 1]
            expected = after[data.steps + episode] if last else after[step + 1]
            np.testing.assert_array_equal(segment.next_observations["image"][row, time], expected)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (mission(3, observations={"direction": np.zeros(4)}), r"observations of episode 1 do not fit .*keys \['direct"),
        (
            mission(3, observations={**mission(3).observations, "image": np.zeros((4, 7, 8, 3), np.uint8)}),
            r"episode 1 .*part 'image': values have shape \(7, 8, 3\); expected \(7, 7, 3\)",
        ),
        (
            mission(3, observations={**mission(3).observations, "mission": ["a", "b"]}),
            r"episode 1 .*part 'mission' has \(2,\) values; expected \(4,\)",
        ),
        (
            mission(3, actions=np.array([0, -1, 2])),
            "actions of episode 1 are whole numbers from -1; expected numbers f",
        ),
        (mission(3, final=False), "episode 1 has 3 observations for 3 steps"),
        (mission(3, rewards=np.array([0.0, np.nan, 1.0])), "rewards holds a NaN at step 6, in episode 1"),
    ],
)
def test_what_does_not_fit_is_named(episode, message):
    with pytest.raises(DataError, match=message):
        Trajectories.from_episodes([EPISODES[0], episode])


def test_whole_numbers_that_float32_does_not_hold_are_refused():
    large = np.array([[2**24 + 1], [0], [5]])
    with pytest.raises(DataError, match=r"observations of episode 0 are int64 numbers from 0 to 16777217; float32"):
        Trajectories.from_episodes([Episode(large, np.zeros((2, 1)), np.ones(2))])
    kept = Trajectories.from_episodes([Episode(large - 1, np.zeros((2, 1)), np.ones(2))])
    np.testing.assert_array_equal(kept.observations, large[:-1] - 1)


def test_images_need_their_space():
    with pytest.raises(DataError, match="observations with images, without observation_space"):
        Trajectories({"image": np.zeros((2, 8, 8), np.uint8)}, np.zeros((2, 1)), np.ones(2), [0, 2], [True], [False])
    with pytest.raises(DataError, match=r"their space has \{'image': \(8, 9\)\}"):
        Trajectories(
            {"image": np.zeros((2, 8, 8), np.uint8)},
            np.zeros((2, 1)),
            np.ones(2),
            [0, 2],
            [True],
            [False],
            observation_space=ImageSpace((8, 9), "none"),
        )


def test_numbers_without_a_scale_are_not_odd():
    """A text that is always the same and an action of which one value is used are no constants to be held."""
    episodes = [mission(30, 0, actions=np.zeros(30, int)), mission(30, 2, actions=np.zeros(30, int))]
    assert not [line for line in describe_oddities(Trajectories.from_episodes(episodes)) if "never var" in line]
    observations = {**episodes[0].observations, "still": np.full((31, 2), 3.0)}
    (line,) = describe_oddities(
        Trajectories.from_episodes([dataclasses.replace(episodes[0], observations=observations)])
    )
    assert "2 of 7 observation components never vary (5 to 6)" in line


def test_whole_numbers_beside_other_parts_are_checked_too():
    observations = {"large": np.array([2**24 + 1, 0, 0]), "small": np.zeros(3)}
    with pytest.raises(DataError, match="part 'large': int64 numbers from 0 to 16777217; float32 holds"):
        Trajectories.from_episodes([Episode(observations, np.zeros((2, 1)), np.ones(2))])


def test_too_many_words_are_refused():
    texts = [f"word{number}" for number in range(10_002)]
    with pytest.raises(DataError, match="a vocabulary of 10002; expected .* at most 10000 words"):
        Trajectories.from_episodes([Episode({"text": texts}, np.zeros((10_001, 1)), np.ones(10_001))])


@pytest.mark.parametrize("actions", [[0, 7, 1], [0.0, 1.5, 1.0]])
def test_packed_choices_are_values_of_their_space(actions):
    with pytest.raises(DataError, match="actions hold .* at step 1, in episode 0; expected a value of"):
        Trajectories(
            np.zeros((3, 2)),
            np.array(actions),
            np.ones(3),
            [0, 3],
            [True],
            [False],
            action_space=DiscreteSpace((), (3,), (0,)),
        )


def test_packed_whole_numbers_are_choices_as_in_episodes():
    data = Trajectories(np.zeros((3, 2)), np.array([0, 2, 1]), np.ones(3), [0, 3], [True], [False])
    assert data.action_space == DiscreteSpace((), (3,), (0,))
