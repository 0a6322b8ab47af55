"""What counts as constant, and the actions between which a model acts."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaren_rl.data.bounds import WIDEST, action_space_of, varies
from aaren_rl.data.spaces import Box, space_of
from aaren_rl.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
numbers = st.floats(-6e4, 6e4)
sizes = st.floats(-30, 30).map(lambda power: 10.0**power)
UNITS = [1e-30, 1e-9, 1e-3, 1.0, 1e3, 1e9, 1e30]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_spread_counts_in_any_unit(unit, sign):
    at = sign * np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    spread = np.array([0.1, 1e-4, 1e-5, 0.0, 1.0])
    np.testing.assert_array_equal(varies(at * unit, (at + spread) * unit), [True, True, True, False, True])


@pytest.mark.parametrize("value", [1.0, 0.3, -90.0, 1e-20, 7e25])
def test_the_last_bits_of_float32_are_no_spread(value):
    value = np.float32(value)
    others = [np.nextafter(value, np.float32(np.inf)), value * (1 + np.finfo(np.float32).eps)]
    assert not any(varies(*sorted((value, other))) for other in others)
    assert varies(*sorted((value, value * np.float32(1.00001))))


def test_a_spread_beyond_float32_counts():
    assert varies(-LARGEST, LARGEST)


def test_a_spread_that_float32_cannot_resolve_is_none():
    assert not varies(0.0, 1e-40)


def bounds_of(actions, space=None):
    box = action_space_of(np.asarray(actions, np.float32), space)
    return list(zip(*box.bounds(), strict=True))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("times", [20.0, 100.0, 1e30])
def test_bounds_far_wider_than_the_data_give_way_to_them(unit, times):
    actions = np.array([[-0.5], [0.25], [1.0]], np.float32) * np.float32(unit)
    space = Box.bounded([-times * unit], [times * unit])
    assert bounds_of(actions, space) == [(actions.min(), actions.max())]


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_bounds_that_suit_the_data_are_kept(unit):
    actions = np.array([[-0.5], [0.5]]) * unit
    for limit in (0.5, 1.0, 0.49 * WIDEST):
        low, high = Box.bounded([-limit * unit], [limit * unit]).bounds()
        assert bounds_of(actions, Box.bounded([-limit * unit], [limit * unit])) == [(low[0], high[0])]


@pytest.mark.parametrize("limit", [LARGEST, 3.4e38, 1e39, 1e300, np.inf], ids=str)
def test_bounds_that_are_finite_on_paper_give_way(limit):
    with np.errstate(all="raise", under="ignore"):
        assert bounds_of([[-0.5], [1.0]], Box.bounded([-limit], [limit], "float64")) == [(-0.5, 1.0)]


def test_half_a_bound_is_kept_where_it_suits():
    space = Box.bounded([0.0, -np.inf, 0.0, -1e6], [np.inf, 1.0, np.inf, np.inf])
    actions = [[0.5, -2.0, 90.0, -1.0], [1.0, 0.5, 90.5, 1.0]]
    assert bounds_of(actions, space) == [(0.0, 1.0), (-2.0, 1.0), (90.0, 90.5), (-1.0, 1.0)]


@pytest.mark.parametrize("still", [0.0, 5.0, 90.0, -1e-7, 1e30, 0.1])
@pytest.mark.parametrize(
    "space",
    [
        None,
        Box.unbounded((2,)),
        Box.bounded([-np.inf, -LARGEST], [np.inf, LARGEST]),
        Box.bounded([-3.0, -1e31], [3.0, 2e31], "float64"),
    ],
    ids=["no environment", "unbounded", "finite on paper", "wide"],
)
def test_an_action_that_never_varies_is_held(still, space):
    rng = np.random.default_rng(0)
    actions = np.stack([rng.uniform(-2, 2, 50), np.full(50, still)], 1).astype(np.float32)
    (low, high), held = bounds_of(actions, space)
    assert low <= actions[:, 0].min() < actions[:, 0].max() <= high
    assert held == (np.float32(still), np.float32(still))


def test_an_action_that_varies_by_rounding_is_held_between():
    values = np.array([90.0, np.nextafter(np.float32(90), np.float32(100))], np.float32)
    ((low, high),) = bounds_of(values[:, None])
    assert low == high
    assert low in values


def test_a_range_beyond_float32_is_cut():
    ((low, high),) = bounds_of([[-3e38], [3e38]])
    assert np.isfinite(np.float32(high) - np.float32(low))


def test_actions_beyond_the_environments_bounds_count_as_at_them():
    """Readers let through what rounding to float32 put outside."""
    assert bounds_of([[-1.0005], [0.5]], Box.bounded([-1.0], [1.0])) == [(-1.0, 1.0)]
    assert bounds_of([[1.0005], [1.0005]], Box.bounded([-1.0], [1.0])) == [(1.0, 1.0)]


@pytest.mark.parametrize(("acted", "takes"), [((1,), (3,)), ((), (2,)), ((2, 1), (2,)), ((2, 1), (2, 3))])
def test_actions_of_another_shape_are_refused(acted, takes):
    """NumPy would broadcast them."""
    space = Box.bounded(-np.ones(takes), np.ones(takes))
    with pytest.raises(DataError, match=r"the data's actions have shape .*; the environment takes .*; pass the env"):
        action_space_of(np.zeros((5, *acted), np.float32), space)


@given(
    st.sampled_from(["float16", "float32", "float64"]),
    st.lists(st.tuples(numbers, numbers, st.booleans(), st.booleans()), min_size=1, max_size=4),
    sizes,
    st.integers(0, 2**32 - 1),
)
def test_the_result_lies_inside_the_environments_space(dtype, numbers, width, seed):
    """In its dtype, at both ends, and it holds all actions of the data, whatever bounds and data are."""
    pairs = [(*sorted(pair[:2]), *pair[2:]) for pair in numbers]
    low = [-np.inf if missing else low for low, _, missing, _ in pairs]
    high = [np.inf if missing else high for _, high, _, missing in pairs]
    env = gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=np.dtype(dtype))
    space = space_of(env)
    lower, upper = space.bounds()
    rng = np.random.default_rng(seed)
    centre = np.clip(rng.uniform(-6e4, 6e4, len(pairs)), lower, upper)
    actions = np.clip(centre + width * rng.uniform(-1, 1, (20, len(pairs))), lower, upper).astype(np.float32)
    if dtype == "float16":
        actions = np.clip(actions, -np.float32(6e4), np.float32(6e4))
    found = action_space_of(actions, space)
    for bound in found.bounds():
        assert np.isfinite(bound).all()
        exact = (env.low.astype(np.float64) < env.high) | (dtype != "float64")
        assert (bound >= lower).all()
        assert (bound <= upper).all()
        # Where two bounds of float64 are nearly one, float32 may have nothing between them.
        assert env.contains(np.where(exact & (lower < upper), bound.astype(dtype), env.low))
    least, greatest = (bound.astype(np.float64) for bound in found.bounds())
    slack = 1e-6 * np.abs(actions).max() + 1e-37
    assert (actions >= least - slack).all()
    assert (actions <= greatest + slack).all()
