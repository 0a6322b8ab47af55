"""Aggregates of scores over datasets and seeds.

After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv 2108.13264),
and as the authors' package rliable computes them. Scores are a list of datasets, each with one number for each of its
seeds; datasets may have different numbers of seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aaren_rl.errors import InvalidInput

RESAMPLES = 50_000
"""Default number of resamples of a bootstrap, as in rliable."""

Scores = Sequence[npt.ArrayLike]


def interquartile_mean(scores: Scores) -> float:
    """Mean of all runs without the lowest and the highest quarter (section 4.3).

    Args:
        scores: for each dataset, (seeds,).

    Returns:
        The mean, in the unit of the scores.

    Raises:
        InvalidInput: no scores, or scores that are not finite.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(np.concatenate(_checked(scores)), 0.25))


def resampled_interquartile_means(scores: Scores, seed: int = 0, resamples: int = RESAMPLES) -> npt.NDArray[np.float64]:
    """Interquartile means of a stratified bootstrap, which resamples the runs of each dataset (section 4.1).

    Args:
        scores: for each dataset, (seeds,).
        seed: seed of the draws.
        resamples: number of resamples.

    Returns:
        Interquartile means, (resamples,).

    Raises:
        InvalidInput: no scores, or scores that are not finite.
    """
    from scipy.stats import trim_mean

    rng = np.random.default_rng(seed)
    drawn = [runs[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in _checked(scores)]
    return np.asarray(trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1))


def interval(resampled: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a bootstrap (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def probability_above(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Share of pairs of resamples in which one aggregate is above another; a tie counts half (our definition).

    Args:
        one: aggregates of a bootstrap, (resamples,).
        other: aggregates of an independent bootstrap, (resamples,).
    """
    return float(np.mean(one > other) + np.mean(one == other) / 2)


def _checked(scores: Scores) -> list[npt.NDArray[np.float64]]:
    strata = [np.asarray(runs, dtype=np.float64) for runs in scores]
    for number, runs in enumerate(strata):
        if runs.ndim != 1 or not len(runs) or not np.isfinite(runs).all():
            raise InvalidInput(f"dataset {number} has scores {runs}; expected one finite number for each of its runs")
    if not strata:
        raise InvalidInput("no scores; expected those of at least one dataset")
    return strata
