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
        found[pull] = values[looks.argmax(1)].mean()
    return found


def to_markdown(runs: Sequence[Run]) -> str:
    """A table of the scores by agent and episodes spent, averaged over the datasets.

    Args:
        runs: of a comparison; those that are not finished are left out.

    Raises:
        DataError: a result has no score, or no returns.
    """
    finished: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        figures = running.outcome(run)
        if figures is None:
            continue
        if figures.get("normalized_score") is None or not isinstance(figures.get("returns"), list):
            raise DataError(f"{run.folder} has no score or no returns of episodes; leave it out, or evaluate it anew")
        finished.setdefault(run.agent, {}).setdefault(run.dataset, []).append(figures)
    lines = []
    for agent, by_dataset in finished.items():
        curves = [
            chosen_scores(
                [np.array(one["returns"]) for one in seeds], [one["normalized_score"] for one in seeds], max(BUDGETS)
            )
            for seeds in by_dataset.values()
        ]
        mean = np.mean(curves, 0)
        counts = sorted({len(seeds) for seeds in by_dataset.values()})
        choices = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append([agent, choices, *(f"{mean[budget - 1]:.1f}" for budget in BUDGETS)])
    head = ["agent", "seeds", *(f"{budget} episode{'s' * (budget > 1)}" for budget in BUDGETS)]
    words = (
        "Mean score over the datasets of the one of an agent's seeds that looks best after so many episodes, which go "
        f"to the seeds by upper confidence bounds (Jackson et al. 2025); mean of {TRIALS:,} such choices."
    )
    return f"{words}\n\n{grid(head, lines)}\n"
