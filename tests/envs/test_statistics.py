import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rliable import library, metrics

from aaren_rl.envs.statistics import (
    interquartile_mean,
    interval,
    probability_above,
    resampled_interquartile_means,
)
from aaren_rl.errors import InvalidInput

NUMBERS = st.floats(-1e3, 1e3)
STRATA = st.lists(st.lists(NUMBERS, min_size=1, max_size=7), min_size=1, max_size=5)
MATRICES = st.tuples(st.integers(1, 9), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=NUMBERS)
)


def by_loop(scores):
    """Sorts, drops a quarter of the runs, rounded down, at either end, and averages the rest."""
    flat = sorted(float(score) for runs in scores for score in runs)
    cut = len(flat) // 4
    kept = flat[cut : len(flat) - cut]
    return sum(kept) / len(kept)


@given(STRATA)
def test_interquartile_mean_is_the_loops(scores):
    assert interquartile_mean(scores) == pytest.approx(by_loop(scores), abs=1e-9)


@given(MATRICES)
def test_interquartile_mean_is_rliables(matrix):
    # rliable has seeds down and datasets across.
    assert interquartile_mean(list(matrix.T)) == pytest.approx(metrics.aggregate_iqm(matrix), abs=1e-9)


@given(STRATA, st.randoms(use_true_random=False), NUMBERS)
def test_interquartile_mean_follows_order_and_shift(scores, random, shift):
    flat = [score for runs in scores for score in runs]
    found = interquartile_mean(scores)
    assert min(flat) - 1e-9 <= found <= max(flat) + 1e-9
    shuffled = [random.sample(runs, len(runs)) for runs in random.sample(scores, len(scores))]
    assert interquartile_mean(shuffled) == pytest.approx(found, abs=1e-9)
    assert interquartile_mean([np.array(runs) + shift for runs in scores]) == pytest.approx(found + shift, abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 4), (2, 1)])
def test_interval_is_rliables(shape):
    matrix = np.random.default_rng(sum(shape)).normal(50, 20, shape)
    np.random.seed(0)
    resamples = 2_000
    points, intervals = library.get_interval_estimates(
        {"agent": matrix}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=resamples
    )
    resampled = resampled_interquartile_means(list(matrix.T), seed=1)
    assert interquartile_mean(list(matrix.T)) == pytest.approx(points["agent"][0])
    # Quantiles of that many resamples are uncertain by a few hundredths of their spread.
    assert interval(resampled) == pytest.approx(intervals["agent"][:, 0], abs=0.15 * resampled.std())


def test_bootstrap_is_the_distribution_of_all_resamples():
    scores = [[0.0, 10.0], [100.0, 130.0, 160.0]]
    every = [
        by_loop([[scores[0][i] for i in first], [scores[1][i] for i in second]])
        for first in itertools.product(range(2), repeat=2)
        for second in itertools.product(range(3), repeat=3)
    ]
    resampled = resampled_interquartile_means(scores)
    values, counts = np.unique(np.round(resampled, 6), return_counts=True)
    expected, of_all = np.unique(np.round(every, 6), return_counts=True)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(counts / len(resampled), of_all / len(every), atol=0.01)


def test_runs_are_drawn_within_their_dataset():
    # Drawn from all runs, the means would spread from 0 to 100.
    resampled = resampled_interquartile_means([[0.0, 0.0, 0.0], [100.0, 100.0, 100.0]])
    np.testing.assert_array_equal(resampled, 50.0)


@settings(max_examples=30)
@given(st.lists(arrays(np.float64, 5, elements=st.floats(0, 100)), min_size=1, max_size=4), st.integers(0, 99))
def test_interval_holds_the_bootstraps_mean(scores, seed):
    resampled = resampled_interquartile_means(scores, seed, 500)
    low, high = interval(resampled)
    assert np.min(scores) - 1e-9 <= low <= np.median(resampled) <= high <= np.max(scores) + 1e-9


def test_interval_holds_the_interquartile_mean_of_normal_scores():
    for seed in range(20):
        scores = list(np.random.default_rng(seed).normal(50, 10, (6, 5)))
        low, high = interval(resampled_interquartile_means(scores, resamples=2_000))
        assert low < interquartile_mean(scores) < high


def test_single_seed_has_no_spread():
    scores = [[30.0], [50.0], [70.0], [90.0], [1000.0]]
    assert interquartile_mean(scores) == pytest.approx(70)
    assert interval(resampled_interquartile_means(scores, resamples=10)) == pytest.approx((70, 70))


def test_same_seed_gives_the_same_bootstrap():
    scores = [[1.0, 2.0, 4.0], [8.0, 16.0]]
    first, again, other = (resampled_interquartile_means(scores, seed, 50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_probability_above():
    low, high = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 5.0, 3.0])
    assert probability_above(high, low) == (2 + 0.5) / 4
    assert probability_above(low, high) == 1 - probability_above(high, low)
    assert probability_above(low, low) == 0.5


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []], [[1.0, float("nan")]], [[[1.0]]], [3.0]])
def test_scores_that_do_not_fit(scores):
    for function in (interquartile_mean, resampled_interquartile_means):
        with pytest.raises(InvalidInput, match=r"expected (one finite number|those of at least one)"):
            function(scores)
