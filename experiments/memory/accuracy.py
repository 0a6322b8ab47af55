"""Accuracy of an agent at one length of its memory task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aaren_rl.agents import DecisionAgent
from aaren_rl.envs.environments import environment_of
from aaren_rl.envs.evaluation import Protocol, confidence_interval, evaluate, success_interval
from aaren_rl.envs.memory import ONE_ANSWER, with_length

ROWS = 100
"""Most episodes that are played at once."""


@dataclass(frozen=True)
class Accuracy:
    """Answers of an agent at one length.

    Attributes:
        length: of the task.
        episodes: number of episodes.
        accuracy: share of right answers among those that count: the mean return.
        ci95: 95% interval of it: Wilson's where an episode has one answer, a bootstrap over episodes elsewhere; None
            for a single episode of many answers.
        perfect: episodes with a return of 1.
    """

    length: int
    episodes: int
    accuracy: float
    ci95: tuple[float, float] | None
    perfect: int


def accuracy(
    agent: DecisionAgent, length: int, episodes: int, seed: int, advance: Callable[[int], object] = lambda done: None
) -> Accuracy:
    """Plays an agent at one length of its task, at most `ROWS` episodes at once.

    Args:
        agent: trained on a memory task.
        length: of the task.
        episodes: number of episodes.
        seed: of the first row; row i has seed + i.
        advance: called with the number of episodes done since the last call.

    Raises:
        InvalidInput: episodes below 1, or a length that the task does not have.
    """
    returns = evaluate(agent, protocol_of(agent, length, episodes, seed), advance).returns
    perfect = int((returns == 1).sum())
    one_answer = environment_of(agent.card).registered_id in ONE_ANSWER
    interval = success_interval(perfect, episodes) if one_answer else confidence_interval(returns, seed)
    return Accuracy(length, episodes, float(returns.mean()), interval, perfect)


def protocol_of(agent: DecisionAgent, length: int, episodes: int, seed: int) -> Protocol:
    """How an agent is played at one length of its task.

    Raises:
        InvalidInput: episodes below 1.
    """
    spec = with_length(environment_of(agent.card), length)
    return Protocol(spec, episodes, seed, agent.card.target_returns[0], None, instances=ROWS)
