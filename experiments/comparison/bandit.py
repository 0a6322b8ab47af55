"""The score that a user gets who can spend a number of episodes to choose among trained agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aaren_rl.data.trajectories import Floats
from aaren_rl.errors import DataError
from aaren_rl.experiments.comparison import running
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.comparison.table import grid

BUDGETS = (1, 5, 10, 20, 50, 100)
"""Episodes spent in all."""

TRIALS = 1_000
"""Choices that are averaged."""

ALPHA = 2.0
"""Of the bonus for agents that were tried seldom, as in Jackson et al. 2025."""


def chosen_scores(
    returns: Sequence[Floats], scores: Sequence[float], pulls: int, trials: int = TRIALS, seed: int = 0
) -> Floats:
    """Score of the agent that looks best after 1, 2, ..., `pulls` episodes, averaged over trials, (pulls,).

    Episodes go to the agent with the highest upper confidence bound (UCB1; Auer et al. 2002), as in Jackson et al. 2025
    (arXiv 2504.11453, section 4). An episode is one of the agent's evaluation, drawn with replacement. The bonus is in
    units of the range of all returns.

    Args:
        returns: of the evaluation's episodes, (episodes,), of each agent.
        scores: of the agents.
        pulls: number of episodes.
        trials: number of choices that are averaged.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    values = np.array(scores)
    everything = np.concatenate(list(returns))
    spread = float(np.ptp(everything)) or 1.0
    rows = np.arange(trials)
    counts, sums = np.zeros((trials, len(returns))), np.zeros((trials, len(returns)))
    found = np.empty(pulls, np.float32)
    for pull in range(pulls):
        with np.errstate(divide="ignore", invalid="ignore"):
            # An agent that was never tried has an infinite bonus.
            bonus = np.where(counts > 0, np.sqrt(ALPHA * np.log(pull + 1) / counts), np.inf)
        bound = sums / np.maximum(counts, 1) / spread + bonus
        ties = bound == bound.max(1, keepdims=True)
        arm = np.argmax(ties * rng.random(ties.shape), 1)
        drawn = np.array([returns[a][rng.integers(len(returns[a]))] for a in arm])
        counts[rows, arm] += 1
        sums[rows, arm] += drawn
        looks = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
        best = looks == looks.max(1, keepdims=True)
        found[pull] = values[np.argmax(best * rng.random(best.shape), 1)].mean()
    return found


def to_markdown(runs: Sequence[Run]) -> str:
    """A table of the scores by agent and episodes spent, averaged over the datasets.

    Every second episode of an evaluation chooses, and the others score what was chosen, so that luck in choosing is no
    score. Only datasets and seeds that all agents have finished count.

    Args:
        runs: of a comparison.

    Raises:
        DataError: no dataset and seed is finished by all agents, or a result has no score or too few returns.
    """
    finished: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for run in runs:
        figures = running.outcome(run)
        if figures is None:
            continue
        if figures.get("normalized_score") is None or len(figures.get("returns") or ()) < 2:
            raise DataError(f"{run.folder} has no score or too few returns; leave it out, or evaluate two episodes")
        finished.setdefault(run.agent, {})[run.dataset, run.seed] = figures
    common = sorted(set.intersection(*(set(one) for one in finished.values()))) if finished else []
    if not common:
        raise DataError("no dataset and seed is finished by all agents, so none is chosen; finish more runs")
    longest = max(BUDGETS)
    datasets = sorted({dataset for dataset, _ in common})
    lines = []
    for agent, by_run in finished.items():
        arms = [[by_run[key] for key in common if key[0] == dataset] for dataset in datasets]
        curves = [
            chosen_scores(
                [np.array(one["returns"][::2]) for one in seeds], list(map(_score_of_the_rest, seeds)), longest
            )
            for seeds in arms
        ]
        mean = np.mean(curves, 0)
        lines.append([agent, *(f"{mean[budget - 1]:.1f}" for budget in BUDGETS)])
    head = ["agent", *(f"{budget} episode{'s' * (budget > 1)}" for budget in BUDGETS)]
    counts = sorted({sum(key[0] == dataset for key in common) for dataset in datasets})
    words = (
        f"Mean score over {len(datasets)} datasets of the one of {' to '.join(map(str, counts))} seeds that looks best "
        "after so many episodes, which go to the seeds by upper confidence bounds (Jackson et al. 2025). Half of an "
        f"evaluation's episodes choose, the others score; mean of {TRIALS:,} such choices."
    )
    return f"{words}\n\n{grid(head, lines)}\n"


def _score_of_the_rest(figures: dict[str, Any]) -> float:
    """Normalised score of the episodes that do not choose."""
    mean, score = figures["mean"], figures["normalized_score"]
    low, high = zip(figures["ci95_return"] or (mean, mean), figures["ci95"] or (score, score), strict=True)
    # Scores are linear in returns: two points of the line are known, unless all returns are equal.
    slope = (high[1] - low[1]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
    return float(score + slope * (np.mean(figures["returns"][1::2]) - mean))
