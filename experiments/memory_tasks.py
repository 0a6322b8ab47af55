"""Success in memory tasks, and the time of a step, by the length of the task."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.reference import Reference
from aaren_rl.envs import references
from aaren_rl.envs.environments import environment_of, make
from aaren_rl.envs.evaluation import Protocol, evaluate, success_interval
from aaren_rl.envs.memory import MEMORY_CHAIN, T_MAZE
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.console import progress
from aaren_rl.figures import drawn
from aaren_rl.folders import replace_file

TIMED_STEPS = 200
"""Least number of steps whose time is measured; short episodes are played several times."""


@dataclass(frozen=True)
class Point:
    """One agent at one length.

    Attributes:
        agent: label of the agent.
        acting: way of acting, as "stream" or "window:20".
        environment: Gymnasium id.
        length: length of the corridor or chain.
        episodes: number of episodes.
        successes: number of episodes with the right answer.
        success: share of these episodes.
        ci95: 95% Wilson interval of this share.
        ms_per_step: median milliseconds of `act` in a single environment, over the later half of an episode.
        state_bytes: bytes of the state at the end of such an episode.
    """

    agent: str
    acting: str
    environment: str
    length: int
    episodes: int
    successes: int
    success: float
    ci95: tuple[float, float]
    ms_per_step: float
    state_bytes: int


def load(folders: Sequence[str], device: torch.device) -> dict[str, DecisionAgent]:
    """Agents by their labels.

    Args:
        folders: folders of agents, each as FOLDER or LABEL=FOLDER.
        device: device to compute on.

    Raises:
        InvalidInput: two labels are the same.
        CheckpointError: an agent cannot be read.
    """
    agents: dict[str, DecisionAgent] = {}
    for given in folders:
        label, _, folder = given.partition("=") if "=" in given else (given, "", given)
        if not label or label in agents:
            raise InvalidInput(f"{given} needs a label of its own; pass LABEL=FOLDER")
        agents[label] = DecisionAgent.load(folder, device)
    return agents


def measure(agents: Mapping[str, DecisionAgent], lengths: Iterable[int], episodes: int, seed: int) -> list[Point]:
    """Plays every agent at every length.

    Args:
        agents: agents by label.
        lengths: lengths of the corridor or chain, in any order.
        episodes: number of episodes of each agent at each length.
        seed: seed of the first row of the vector environment; row i has seed + i.

    Raises:
        InvalidInput: a length below 1, or an agent of another task or of shorter episodes.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1:
        raise InvalidInput(f"lengths {lengths}; expected whole numbers, at least 1")
    for label, agent in agents.items():
        _check(label, agent, lengths[-1])
    points = []
    with progress(len(agents) * len(lengths) * episodes, "episode") as advance:
        for label, agent in agents.items():
            for length in lengths:
                points.append(_play(label, agent, length, _protocol(agent, length, episodes, seed), advance))
    return points


def _play(label: str, agent: DecisionAgent, length: int, protocol: Protocol, advance: Callable[[int], object]) -> Point:
    returns = evaluate(agent, protocol, advance).returns
    successes = int((returns == 1).sum())
    milliseconds, state_bytes = time_steps(agent, protocol)
    return Point(
        agent=label,
        acting=str(agent.acting),
        environment=protocol.environment.id,
        length=length,
        episodes=len(returns),
        successes=successes,
        success=successes / len(returns),
        ci95=success_interval(successes, len(returns)),
        ms_per_step=milliseconds,
        state_bytes=state_bytes,
    )


def write(path: Path, agents: Mapping[str, DecisionAgent], points: Iterable[Point], seed: int, device: str) -> None:
    """Writes all points, and a description of the agents, as JSON."""
    figures = {
        "seed": seed,
        "device": device,
        "agents": {label: _about(agent) for label, agent in agents.items()},
        "points": [asdict(point) for point in points],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(figures, indent=2) + "\n")


def time_steps(agent: DecisionAgent, protocol: Protocol) -> tuple[float, int]:
    """Time of a step late in an episode, in one environment.

    Returns:
        Median milliseconds of `act` over the later halves of episodes with `TIMED_STEPS` steps in all, and the bytes
        of the state at the end of the last episode.
    """
    taken: list[float] = []
    env = make(protocol.environment)
    try:
        while len(taken) < TIMED_STEPS:
            times: list[float] = []
            observation, _ = env.reset(seed=protocol.seed + len(taken))
            agent.reset(protocol.target_return)
            reward: float | None = None
            ended = False
            while not ended:
                began = time.perf_counter()
                action = agent.act(observation, reward)
                times.append(1e3 * (time.perf_counter() - began))
                observation, earned, terminated, truncated, _ = env.step(action)
                reward, ended = float(earned), terminated or truncated
            taken += times[len(times) // 2 :]
    finally:
        env.close()
    return statistics.median(taken), agent.state_bytes


def table(points: list[Point]) -> str:
    """Points as a Markdown table."""
    rows = [
        "| agent | acting | length | success | 95% interval | ms per step | state, bytes |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for point in points:
        rows.append(
            f"| {point.agent} | {point.acting} | {point.length:,} | {point.success:.2f} | "
            f"{point.ci95[0]:.2f} to {point.ci95[1]:.2f} | {point.ms_per_step:.3g} | {point.state_bytes:,} |"
        )
    return "\n".join(rows)


def draw(points: list[Point], path: Path) -> None:
    """Draws success and milliseconds per step by length; a line shows the success of chance."""
    with drawn(path, 9, 3.4) as figure:
        success, step = figure.subplots(1, 2)
        for label in dict.fromkeys(point.agent for point in points):
            line = [point for point in points if point.agent == label]
            lengths = [point.length for point in line]
            rates = np.array([point.success for point in line])
            low, high = np.array([point.ci95 for point in line]).T
            success.errorbar(lengths, rates, [rates - low, high - rates], marker="o", capsize=3, label=label)
            step.plot(lengths, [point.ms_per_step for point in line], marker="o", label=label)
        for chance in {_chance(point.environment) for point in points}:
            success.axhline(chance, color="grey", linestyle="--", label="chance")
        success.set(xlabel="length", ylabel="success", xscale="log", ylim=(-0.05, 1.05))
        step.set(xlabel="length", ylabel="ms per step", xscale="log")
        step.set_ylim(bottom=0)
        success.legend(frameon=False)


def _check(label: str, agent: DecisionAgent, longest: int) -> None:
    """Checks that an agent can be measured at these lengths, before anything is played."""
    task = agent.card.environment.id if agent.card.environment else None
    if task not in (T_MAZE, MEMORY_CHAIN):
        raise InvalidInput(
            f"{label} was trained for {task}, which has no length to set; expected {T_MAZE} or "
            f"{MEMORY_CHAIN}, as trained on t-maze-expert or memory-chain-expert"
        )
    if agent.longest is not None and longest >= agent.longest:
        raise InvalidInput(
            f"{label} has a learned timestep embedding for {agent.longest} steps; pass --lengths below {agent.longest}"
        )


def _protocol(agent: DecisionAgent, length: int, episodes: int, seed: int) -> Protocol:
    own = environment_of(agent.card)
    spec = EnvironmentSpec(own.id, own.kwargs | {"shortest": length, "longest": length})
    return Protocol(spec, episodes, seed, agent.card.target_returns[0], _reference(spec.id))


def _reference(env_id: str) -> Reference:
    """Returns of a memory task, which its rules determine at every length."""
    return next(row.reference for row in references.rows() if row.environment.id == env_id)


def _chance(env_id: str) -> float:
    return _reference(env_id).random


def _about(agent: DecisionAgent) -> dict[str, Any]:
    config = agent.model.config
    return {"dataset": agent.card.dataset_id, "updates": agent.card.updates, "model": asdict(config)}
