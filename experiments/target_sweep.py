"""Achieved return over target return: one agent evaluated at several targets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaren_rl.actor import AUTO, Actor
from aaren_rl.checkpoint import AgentCard
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.errors import InvalidInput
from aaren_rl.figures import drawn
from aaren_rl.folders import replace_file


@dataclass(frozen=True)
class Sweep:
    """One agent at several targets.

    Attributes:
        results: of the evaluations (see `aaren_rl.envs.evaluation.result`), lowest target first.
        figures: file of the results.
        plot: their picture.
    """

    results: list[dict[str, Any]]
    figures: Path
    plot: Path


def targets_of(card: AgentCard) -> list[float]:
    """Targets of a sweep: the card's, and every second decile of the data's returns with the lowest and the highest.

    Raises:
        InvalidInput: the card holds no returns of the data.
    """
    if not card.data_returns:
        raise InvalidInput(
            "this agent's card has no returns of its data; pass the targets, as --targets 1000 2000 3000"
        )
    return sorted({*card.data_returns[::2], *(target for target in card.target_returns if target != AUTO)})


def sweep(
    actor: Actor,
    protocol: Protocol,
    targets: Sequence[float],
    about: dict[str, Any],
    progress: Callable[[int], object] = lambda done: None,
) -> list[dict[str, Any]]:
    """Results of an evaluation at each target (see `aaren_rl.envs.evaluation.result`), lowest target first."""
    results = []
    for target in sorted(targets):
        at_target = dataclasses.replace(protocol, target_return=target)
        results.append(result(evaluate(actor, at_target, progress), at_target, **about))
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """The sweep as a Markdown table."""
    lines = ["| target | achieved | 95% interval | normalised score |", "|---|---|---|---|"]
    for figures in results:
        interval, score = figures["ci95_return"], figures["normalized_score"]
        within = "" if interval is None else f"{interval[0]:.5g} to {interval[1]:.5g}"
        known = "" if score is None else f"{score:.1f}"
        lines.append(
            f"| {figures['target']:.5g} | {figures['mean']:.5g} +- {figures['std']:.3g} | {within} | {known} |"
        )
    return "\n".join(lines)


def write(file: Path, results: list[dict[str, Any]], data_returns: Sequence[float]) -> Sweep:
    """Writes the results into a file and their plot beside it."""
    replace_file(file, json.dumps({"results": results}, indent=2) + "\n")
    return Sweep(results, file, draw(file.with_suffix(".png"), results, data_returns))


def draw(path: Path, results: Sequence[dict[str, Any]], data_returns: Sequence[float]) -> Path:
    """Draws achieved over target return, the diagonal, and the range of returns in the data if the card holds it."""
    targets = [figures["target"] for figures in results]
    with drawn(path, 4.6, 4.2) as figure:
        axes = figure.subplots()
        for figures in results:
            axes.plot([figures["target"]] * len(figures["returns"]), figures["returns"], ".", color="C0", alpha=0.15)
        low, high = zip(*(figures["ci95_return"] or [figures["mean"]] * 2 for figures in results), strict=True)
        axes.fill_between(targets, low, high, alpha=0.3, color="C0")
        axes.plot(targets, [figures["mean"] for figures in results], marker="o", color="C0", label="achieved, mean")
        axes.plot(targets, targets, color="grey", linestyle="--", label="target")
        if data_returns:
            axes.axvspan(data_returns[0], data_returns[-1], color="grey", alpha=0.1, label="returns in the data")
        axes.set(xlabel="target return", ylabel="achieved return")
        axes.legend(frameon=False)
        first = results[0]
        axes.set_title(f"{first['dataset']} ({first['source']}), {first['environment']}, {first['acting']}", fontsize=9)
    return path
