"""Shares of an evaluation's time: environment and agent."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import setting
from aaren_rl.agents import DecisionAgent
from aaren_rl.envs.environments import environment_of, make_vector
from aaren_rl.envs.evaluation import INSTANCES
from aaren_rl.envs.rollout import roll_out
from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import Report, Row

EPISODES = 100
"""Episodes in a round; those of an untrained agent are short."""

P = ParamSpec("P")
T = TypeVar("T")


def measure(report: Report) -> None:
    """Measures the shares of 25 hopper environments, resets included, and of the agent in wall time."""
    card = setting.make_card()
    agent = DecisionAgent(setting.make_model(), card)
    envs = make_vector(environment_of(card), INSTANCES)
    in_environment, in_agent = Clock(), Clock()
    envs.step = in_environment.around(envs.step)  # type: ignore[method-assign]
    envs.reset = in_environment.around(envs.reset)  # type: ignore[method-assign]
    agent.act = in_agent.around(agent.act)  # type: ignore[method-assign]
    whole = measuring.timed(lambda: roll_out(agent, envs, EPISODES, card.target_returns[0]))
    shares: dict[str, list[float]] = {"environment": [], "agent": []}
    whole()
    for _ in range(measuring.ROUNDS):
        in_environment.seconds = in_agent.seconds = 0.0
        seconds = whole()
        shares["environment"].append(in_environment.seconds / seconds)
        shares["agent"].append(in_agent.seconds / seconds)
    envs.close()
    for name, rounds in shares.items():
        share = statistics.median(rounds)
        report.add(
            Row(
                f"{name} share of evaluation",
                100 * share,
                "%",
                share,
                (min(rounds), max(rounds)),
                f"{name} / wall time",
            )
        )


class Clock:
    """Adds up the seconds spent in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[P, T]) -> Callable[P, T]:
        """Wraps a function, whose time is added up."""

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return call
