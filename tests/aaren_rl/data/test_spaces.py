import json
import math

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl.data.spaces import Box, space_from_json, space_of
from aaren_rl.errors import InvalidInput

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def boxes(draw):
    """Boxes of up to three dimensions, of which any bound may be missing."""
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    size = math.prod(shape)
    pairs = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)
    bounds = draw(st.lists(pairs, min_size=size, max_size=size))
    missing = draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=size, max_size=size))
    low = [-math.inf if gone else pair[0] for pair, (gone, _) in zip(bounds, missing, strict=True)]
    high = [math.inf if gone else pair[1] for pair, (_, gone) in zip(bounds, missing, strict=True)]
    return Box(shape, tuple(low), tuple(high), draw(st.sampled_from(["float32", "float64", "uint8"])))


@given(boxes())
def test_a_space_comes_back_from_json(space):
    # JSON has no infinities.
    written = json.dumps(space.to_json(), allow_nan=False)
    assert space_from_json(json.loads(written)) == space


@given(boxes())
def test_bounds_have_the_shape_of_the_space(space):
    low, high = space.bounds()
    assert low.shape == high.shape == space.shape
    assert low.dtype == high.dtype == np.float32
    assert space.size == low.size
    assert tuple(low.ravel().tolist()) == space.low
    assert tuple(high.ravel().tolist()) == space.high
    assert space.is_bounded == bool(np.isfinite(low).all() and np.isfinite(high).all())


def test_json_says_what_the_space_is():
    space = Box.bounded([[0.0, -np.inf], [2.5, -1.0]], [[1.0, 3.0], [np.inf, 1.0]])
    assert space.to_json() == {
        "type": "box",
        "shape": [2, 2],
        "dtype": "float32",
        "low": [0.0, None, 2.5, -1.0],
        "high": [1.0, 3.0, None, 1.0],
    }


def test_unbounded_spaces_have_infinite_bounds():
    space = Box.unbounded((2, 3), "float64")
    assert space == Box((2, 3), (-math.inf,) * 6, (math.inf,) * 6, "float64")
    assert not space.is_bounded
    assert space.size == 6
    assert Box.unbounded(()).size == 1


def test_one_missing_bound_makes_a_space_unbounded():
    assert Box.bounded([0.0, 0.0], [1.0, 1.0]).is_bounded
    assert not Box.bounded([0.0, 0.0], [1.0, np.inf]).is_bounded
    assert not Box.bounded([0.0, -np.inf], [1.0, 1.0]).is_bounded


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([0.0, 2.0], [1.0, 1.0]),
        ([0.0, np.nan], [1.0, 1.0]),
        ([0.0, 0.0], [1.0, np.nan]),
        ([np.inf], [-np.inf]),
    ],
)
def test_a_low_above_its_high_is_refused(low, high):
    with pytest.raises(InvalidInput, match="expected no low above its high"):
        Box.bounded(low, high)


def test_a_number_that_never_varies_is_a_box():
    """Gymnasium allows it, and observations of MuJoCo have some."""
    assert Box.bounded([0.0, 1.0], [1.0, 1.0]).high == (1.0, 1.0)


def test_bounds_of_other_shapes_are_refused():
    with pytest.raises(InvalidInput, match=r"low has shape \(2,\) and high \(3,\); expected one shape"):
        Box.bounded([0.0, 0.0], [1.0, 1.0, 1.0])
    with pytest.raises(InvalidInput, match=r"low has shape \(2,\) and high \(\); expected one shape"):
        Box.bounded([0.0, 0.0], 1.0)
    for low, high in (((0.0,), (1.0, 1.0)), ((0.0, 0.0), (1.0,)), ((0.0,) * 3, (1.0,) * 3)):
        message = f"shape .2,. has {len(low)} lows and {len(high)} highs; expected 2"
        with pytest.raises(InvalidInput, match=message):
            Box((2,), low, high)


def saved(**changes):
    return {**Box.bounded([0.0, -1.0], [1.0, 1.0]).to_json(), **changes}


@pytest.mark.parametrize("name", ["made-up", None, 3])
def test_a_saved_space_of_another_type_is_refused(name):
    with pytest.raises(InvalidInput, match=f"a space of type {name!r}; this version knows 'box'"):
        space_from_json(saved(type=name))
    with pytest.raises(InvalidInput, match="a space of type None"):
        space_from_json({})


@pytest.mark.parametrize("saved", [None, 3, "box", [1.0, 2.0]])
def test_a_saved_space_that_is_no_object_is_refused(saved):
    with pytest.raises(InvalidInput, match="expected an object"):
        space_from_json(saved)


@pytest.mark.parametrize("name", ["shape", "low", "high", "dtype"])
def test_a_saved_space_without_a_field_is_refused(name):
    description = saved()
    del description[name]
    with pytest.raises(InvalidInput, match=f"a space cannot be read from .*{name}"):
        space_from_json(description)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": 2},
        {"shape": ["a"]},
        {"shape": [3]},
        {"shape": None},
        {"low": 0.0},
        {"low": [0.0]},
        {"low": [0.0, "a"]},
        {"low": [[0.0], [0.0]]},
        {"low": [2.0, 2.0]},
        {"high": None},
    ],
)
def test_a_saved_space_that_cannot_be_is_refused(changes):
    with pytest.raises(InvalidInput):
        space_from_json(saved(**changes))


def test_a_gymnasium_box_is_described():
    low, high = np.array([[-1, -np.inf], [0, 2]], np.float32), np.array([[1, 5], [np.inf, 3]], np.float32)
    space = space_of(gym.spaces.Box(low, high))
    assert space == Box.bounded(low, high, "float32")
    assert space_of(gym.spaces.Box(-2.0, 3.0, (4,), np.float64)) == Box((4,), (-2.0,) * 4, (3.0,) * 4, "float64")
    assert space_of(gym.spaces.Box(0, 255, (2, 2, 3), np.uint8)).dtype == "uint8"
    assert space_of(gym.spaces.Box(-np.inf, np.inf, (17,), np.float64)) == Box.unbounded((17,), "float64")


@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), gym.spaces.Dict({"a": gym.spaces.Discrete(2)})], ids=str)
def test_a_gymnasium_space_that_is_no_box_is_refused(space):
    with pytest.raises(InvalidInput, match="this version needs Boxes"):
        space_of(space)


def test_lists_make_the_same_box_as_tuples():
    box = Box([2], [0.0, -1.0], [1.0, 1.0])
    assert box == Box((2,), (0.0, -1.0), (1.0, 1.0))
    assert hash(box) == hash(Box((2,), (0.0, -1.0), (1.0, 1.0)))
