import dataclasses
import json
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl.data.spaces import (
    BinarySpace,
    Box,
    DictSpace,
    DiscreteSpace,
    ImageSpace,
    TextSpace,
    TupleSpace,
    differences,
    gymnasium_space,
    map_parts,
    space_from_json,
    space_of,
    space_of_values,
    with_vocabularies,
)
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


wide = st.floats(-3e38, 3e38)


@given(wide, wide)
def test_float64_bounds_are_rounded_inwards(one, other):
    low, high = sorted((one, other))
    (least,), (greatest,) = Box.bounded([low], [high], "float64").bounds()
    if least <= greatest and not (float(least) < low or float(greatest) > high):
        # The next float32 numbers outwards lie outside.
        assert float(np.nextafter(least, np.float32(-np.inf))) < low
        assert float(np.nextafter(greatest, np.float32(np.inf))) > high
    else:
        # Nothing lies between the two.
        assert least == greatest
        assert float(np.nextafter(least, np.float32(-np.inf))) < low
        assert float(np.nextafter(least, np.float32(np.inf))) > high


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 1 / 3, 1e-3])
def test_actions_at_float64_bounds_are_contained(bound):
    space = gym.spaces.Box(-bound, bound, (1,), np.float64)
    for action in space_of(space).bounds():
        assert space.contains(action)
    # Rounded to the nearest, some would not be.
    assert not all(gym.spaces.Box(-b, b, (1,), np.float64).contains(np.array([b], np.float32)) for b in (0.1, 0.3, 0.7))


@given(numbers, numbers, st.sampled_from(["float32", "float64"]))
def test_bounds_that_float32_holds_stay_as_they_are(one, other, dtype):
    low, high = sorted((one, other))
    assert Box.bounded([low], [high], dtype).bounds() == (low, high)


@given(st.floats(-6e4, 6e4), st.floats(-6e4, 6e4), st.sampled_from(["float16", "float32", "float64"]))
def test_what_lies_within_the_bounds_fits_the_space(one, other, dtype):
    low, high = sorted((one, other))
    space = gym.spaces.Box(low, high, (1,), np.dtype(dtype))
    least, greatest = space_of(space).bounds()
    if dtype != "float64" or float(np.float32(low)) != float(np.float32(high)):
        for action in (least, greatest, least + (greatest - least) / 3):
            assert space.contains(np.clip(action, least, greatest).astype(dtype))


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


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Sequence(gym.spaces.Discrete(2)),
        gym.spaces.OneOf([gym.spaces.Discrete(2)]),
        gym.spaces.Dict({"a": gym.spaces.Graph(gym.spaces.Discrete(2), None)}),
    ],
    ids=str,
)
def test_a_gymnasium_space_that_no_model_takes_is_refused(space):
    with pytest.raises(InvalidInput, match="this version takes Box, Discrete, .*: write a wrapper"):
        space_of(space)


def test_lists_make_the_same_box_as_tuples():
    box = Box([2], [0.0, -1.0], [1.0, 1.0])
    assert box == Box((2,), (0.0, -1.0), (1.0, 1.0))
    assert hash(box) == hash(Box((2,), (0.0, -1.0), (1.0, 1.0)))


@st.composite
def nested(draw):
    """Spaces of boxes in Dicts and Tuples."""
    leaves = boxes()
    return draw(
        st.recursive(
            leaves,
            lambda inner: (
                st.dictionaries(st.text(min_size=1, max_size=3), inner, min_size=1, max_size=3).map(
                    lambda parts: DictSpace(tuple(parts.items()))
                )
                | st.lists(inner, min_size=1, max_size=3).map(lambda parts: TupleSpace(tuple(parts)))
            ),
            max_leaves=5,
        )
    )


@given(nested())
def test_nested_spaces_come_back_from_json_in_any_order_of_keys(space):
    written = json.dumps(space.to_json(), allow_nan=False, sort_keys=True)
    assert space_from_json(json.loads(written)) == space
    assert differences(space, space_from_json(json.loads(written)), "values") == []


@given(nested())
def test_numbers_stand_in_the_order_of_the_parts(space):
    low = space.pack(value_of(space, "low"))
    parts = space.parts()
    assert low.shape == space.shape
    for part in parts:
        np.testing.assert_array_equal(np.ravel(low)[part.columns], part.space.low)
    assert sum(part.space.size for part in parts) == space.size
    batch = space.pack(stack([value_of(space, "low"), value_of(space, "high")]), batch=1)
    highs = np.concatenate([part.space.high for part in parts]).reshape(space.shape)
    np.testing.assert_array_equal(batch, [low, highs])


@given(nested(), st.integers(0, 2))
def test_what_was_packed_comes_back(space, batch):
    # Whole numbers are rounded, and have no infinities.
    space = map_parts(space, lambda part: dataclasses.replace(part.space, dtype="float32"))
    values = value_of(space, "low")
    for _ in range(batch):
        values = stack([values, values])
    packed = space.pack(values, batch)
    again = space.pack(space.unpack(packed, batch), batch)
    np.testing.assert_array_equal(packed, again)


def value_of(space, bound):
    if isinstance(space, DictSpace):
        # Whatever order a mapping has.
        return {key: value_of(part, bound) for key, part in reversed(space.by_key)}
    if isinstance(space, TupleSpace):
        return tuple(value_of(part, bound) for part in space.by_place)
    return np.array(getattr(space, bound)).reshape(space.shape)


def stack(values):
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stack(list(parts)) for parts in zip(*values, strict=True))
    return np.stack(values)


PAIR = DictSpace((("b", Box.unbounded((2,))), ("a", TupleSpace((Box.unbounded(()), Box.unbounded((3,)))))))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(6), r"keys ndarray; expected \['a', 'b'\]"),
        ({"a": (0.0, np.zeros(3))}, r"keys \['a'\]"),
        ({"b": np.zeros(2), "a": (0.0,)}, "part 'a': values have 1 parts; expected 2"),
        ({"b": np.zeros(1), "a": (0.0, np.zeros(3))}, r"part 'b': values have shape \(1,\); expected \(2,\)"),
    ],
)
def test_values_of_another_form_are_refused(values, message):
    with pytest.raises(InvalidInput, match=message):
        PAIR.pack(values)


def test_batches_of_different_lengths_are_refused():
    with pytest.raises(InvalidInput, match="as the parts before it"):
        PAIR.pack({"b": np.zeros((4, 2)), "a": (np.zeros(3), np.zeros((3, 3)))}, batch=1)


def test_differences_name_the_parts():
    other = DictSpace((("b", Box.unbounded((1,))), ("a", Box.unbounded((4,))), ("c", Box.unbounded(()))))
    assert differences(PAIR, other, "observations") == [
        "observations have a part 'c' too many",
        "observations['a'] are a Box in place of a Tuple",
        "observations['b'] have shape (1,) in place of (2,)",
    ]


@pytest.mark.parametrize("shape", [(-1, -1), (-2,)])
def test_boxes_of_impossible_sizes_are_refused(shape):
    with pytest.raises(InvalidInput, match="expected sizes from 0"):
        Box(shape, (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (DiscreteSpace((), (3,), (5,)), [5, 7, 6]),
        (DiscreteSpace((2,), (2, 3), (0, 1)), [[1, 1], [0, 3]]),
        (BinarySpace((2, 2)), [[[1, 0], [0, 1]]]),
    ],
)
def test_discrete_values_stay_as_the_environment_has_them(space, values):
    packed = space.pack(values, batch=1)
    np.testing.assert_array_equal(packed, np.array(values, np.float32))
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(space.unpack(packed, batch=1), values)
    assert space_from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize("values", [4, 8, 5.5, [5]])
def test_discrete_values_outside_are_refused(values):
    with pytest.raises(InvalidInput, match="values .*expected"):
        DiscreteSpace((), (3,), (5,)).pack(values)


@pytest.mark.parametrize(("shape", "counts", "starts"), [((), (0,), (0,)), ((2,), (3,), (0,)), ((), (3,), (0, 0))])
def test_discrete_spaces_that_do_not_fit_are_refused(shape, counts, starts):
    with pytest.raises(InvalidInput, match="expected one count from 1"):
        DiscreteSpace(shape, counts, starts)


def test_an_action_of_one_number_is_a_number():
    """Environments look it up in tables, where an array without dimensions is not found."""
    action = DiscreteSpace((), (4,), (0,)).unpack(np.float32(2))
    assert {2: "found"}[action] == "found"


def test_ranges_too_large_for_a_feature_each_are_refused():
    with pytest.raises(InvalidInput, match="200000 values from 7; expected at most 10000"):
        DiscreteSpace((), (200_000,), (7,))


@pytest.mark.parametrize(
    ("space", "image"),
    [
        (gym.spaces.Box(0, 255, (84, 84), np.uint8), ImageSpace((84, 84), "none")),
        (gym.spaces.Box(0, 255, (210, 160, 3), np.uint8), ImageSpace((210, 160, 3), "last")),
        (gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), ImageSpace((4, 84, 84), "first")),
        (gym.spaces.Box(0, 10, (7, 7, 3), np.uint8), ImageSpace((7, 7, 3), "last", 0.0, 32.0)),
        (gym.spaces.Box(0, 1, (3, 32, 32), np.float32), ImageSpace((3, 32, 32), "first", 0.0, 1.0, "float32")),
    ],
    ids=str,
)
def test_pictures_are_images(space, image):
    assert space_of(space) == image
    assert space_from_json(json.loads(json.dumps(image.to_json()))) == image
    channels, *sides = image.channels_first
    assert (channels, max(sides)) == (min(*space.shape, *([1] if len(space.shape) == 2 else [])), max(space.shape))
    value = space.sample()
    packed = image.pack(value)
    assert packed["image"].dtype == space.dtype
    np.testing.assert_array_equal(image.unpack(packed), value)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 255, (128,), np.uint8),
        gym.spaces.Box(0, 255, (3, 3, 3), np.uint8),
        gym.spaces.Box(-np.inf, np.inf, (3, 32, 32), np.float32),
        gym.spaces.Box(0, 1, (8, 8, 8), np.float32),
        gym.spaces.Box(0, 1, (32, 32), np.float32),
    ],
    ids=str,
)
def test_other_arrays_are_numbers(space):
    assert isinstance(space_of(space), Box)
    assert isinstance(space_of(gym.spaces.Box(0, 255, (64, 64, 3), np.uint8), image=False), Box)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((8, 9, 3), np.uint8), r"values have shape \(8, 9, 3\); expected \(8, 8, 3\)"),
        (np.zeros((8, 8, 3)), "dtype float64; expected whole numbers"),
        (np.full((8, 8, 3), 256), "images from 256 to 256; expected uint8"),
    ],
)
def test_images_of_another_kind_are_refused(values, message):
    with pytest.raises(InvalidInput, match=message):
        ImageSpace((8, 8, 3), "last").pack(values)


MISSION = DictSpace(
    (
        ("mission", TextSpace()),
        ("image", ImageSpace((7, 7, 3), "last")),
        ("direction", DiscreteSpace((), (4,), (0,))),
        ("inner", TupleSpace((Box.unbounded((2,)), BinarySpace((3,))))),
    )
)


def test_spaces_of_texts_of_packages_are_texts():
    class Missions(gym.Space):
        def __init__(self):
            super().__init__(dtype=str)

    assert space_of(Missions()) == TextSpace()


def missions(texts):
    rows = len(texts)
    rng = np.random.default_rng(0)
    return {
        "direction": rng.integers(0, 4, rows),
        "image": rng.integers(0, 11, (rows, 7, 7, 3)).astype(np.uint8),
        "mission": texts,
        "inner": (rng.normal(size=(rows, 2)).astype(np.float32), rng.integers(0, 2, (rows, 3)).astype(np.int8)),
    }


def test_numbers_of_all_parts_stand_beside_the_images():
    values = missions(["go to the red ball", "open a door"])
    space = with_vocabularies(MISSION, [values])
    words = ("a", "ball", "door", "go", "open", "red", "the", "to")
    assert [part.path for part in space.parts()] == ["direction", "image", "inner/0", "inner/1", "mission"]
    assert space.parts()[-1].space == TextSpace(words, 5)
    packed = space.pack(values, batch=1)
    assert packed["numbers"].shape == (2, 1 + 2 + 3 + 5)
    np.testing.assert_array_equal(packed["numbers"][:, 0], values["direction"])
    np.testing.assert_array_equal(packed["numbers"][:, 1:3], values["inner"][0])
    np.testing.assert_array_equal(packed["numbers"][:, 6:], [[5, 9, 8, 7, 3], [6, 2, 4, 0, 0]])
    assert packed["image"] is values["image"]
    back = space.unpack(packed, batch=1)
    assert back["mission"] == values["mission"]
    assert space.packed_shapes() == {"numbers": (11,), "image": (7, 7, 3)}
    for key in ("direction", "image"):
        np.testing.assert_array_equal(back[key], values[key])
    one = space.pack(
        {
            **{key: value[0] for key, value in values.items() if key != "inner"},
            "inner": (values["inner"][0][0], values["inner"][1][0]),
        }
    )
    np.testing.assert_array_equal(one["numbers"], packed["numbers"][0])
    assert space_from_json(json.loads(json.dumps(space.to_json()))) == space
    assert differences(space, MISSION, "observations") == []


def test_words_never_seen_are_named_once():
    space = TextSpace().of_texts(["go to the red ball"])
    with pytest.warns(RuntimeWarning, match="the word 'blue' is not among the 5 of the training data"):
        np.testing.assert_array_equal(space.pack("go to the blue ball"), [3, 6, 5, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space.pack("the blue ball")
    with pytest.warns(RuntimeWarning, match="has 6 words, the longest of the training data 5"):
        assert len(space.pack("go to the red ball go")) == 5


@pytest.mark.parametrize("values", [3, np.zeros(2), ["one", 2]])
def test_what_is_no_text_is_refused(values):
    with pytest.raises(InvalidInput, match="expected texts|expected 0: one text"):
        TextSpace().pack(values, batch=np.ndim(values) if isinstance(values, list) else 0)


@pytest.mark.parametrize("values", [[2, 0], [0.5, 1.0], [0]])
def test_what_is_no_bits_is_refused(values):
    with pytest.raises(InvalidInput, match="expected"):
        BinarySpace((2,)).pack(values)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3, start=2),
        gym.spaces.MultiDiscrete([[2, 3], [4, 5]]),
        gym.spaces.MultiBinary((2, 3)),
        gym.spaces.Box(0, 255, (64, 48, 3), np.uint8),
        gym.spaces.Dict(b=gym.spaces.Box(0, 1, (2,), np.float64), a=gym.spaces.Tuple((gym.spaces.Discrete(2),))),
        gym.spaces.Box(np.array([-np.inf, 0], np.float32), np.array([1, np.inf], np.float32)),
    ],
    ids=str,
)
def test_gymnasium_spaces_come_back(space):
    assert gymnasium_space(space_of(space)) == space


def test_parts_that_share_a_path_are_refused():
    """ "a/b" could be a key, or the part "b" of "a"."""
    inner = DictSpace((("b", Box.unbounded(())),))
    with pytest.raises(InvalidInput, match="two parts have the path 'a/b'"):
        DictSpace((("a/b", Box.unbounded(())), ("a", inner))).parts()
    with pytest.raises(InvalidInput, match="a Dict with an empty key"):
        DictSpace((("", Box.unbounded(())),))


def test_keys_that_are_numbers_are_taken_by_their_names():
    space = space_of_values({1: np.zeros((3, 2)), 0: np.zeros(3)})
    np.testing.assert_array_equal(space.pack({1: np.ones((3, 2)), 0: np.full(3, 7)}, batch=1), [[7, 1, 1]] * 3)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_unbounded_whole_numbers_have_the_bounds_of_their_dtype(dtype):
    space = gymnasium_space(Box.unbounded((2,), dtype))
    assert (space.low == np.iinfo(dtype).min).all()
    assert (space.high == np.iinfo(dtype).max).all()


@pytest.mark.parametrize(
    "saved",
    [
        {"type": "discrete", "shape": [], "counts": [4.7], "starts": [0]},
        {"type": "discrete", "shape": [], "counts": "4", "starts": [0]},
        {"type": "discrete", "shape": [-1, -1], "counts": [4], "starts": [0]},
        {"type": "binary", "shape": [True]},
        {"type": "text", "vocabulary": "ab", "length": 2},
        {"type": "text", "vocabulary": ["a", "a"], "length": 2},
        {"type": "text", "vocabulary": ["a"], "length": 300_000_000},
        {"type": "text", "vocabulary": ["a"], "length": "3"},
        {"type": "image", "shape": [8.5, 8, 3], "channels": "last", "low": 0, "high": 255, "dtype": "uint8"},
    ],
    ids=str,
)
def test_saved_spaces_of_other_types_are_refused(saved):
    with pytest.raises(InvalidInput):
        space_from_json(saved)
    nested = {"type": "dict", "parts": {"x": {"type": "tuple", "parts": [saved]}}}
    with pytest.raises(InvalidInput) as caught:
        space_from_json(nested)
    assert len(str(caught.value)) < 300


def test_texts_are_cut_at_the_longest_length():
    space = TextSpace().of_texts(["word " * 3_000, "other"])
    assert space.length == 1_000
    with pytest.warns(RuntimeWarning, match="a text has 3000 words"):
        assert space.pack("word " * 3_000).shape == (1_000,)
