"""Accuracy of agents in memory tasks, and the time of a step, by the length of the task."""

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
from aaren_rl.agents.hub import find
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import Protocol
from aaren_rl.envs.memory import LENGTH_ARGUMENTS, with_length
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.console import device_named, progress, say
from aaren_rl.experiments.memory.accuracy import Accuracy, accuracy, protocol_of
from aaren_rl.figures import drawn
from aaren_rl.folders import replace_file

TIMED_STEPS = 200
"""Least number of steps whose time is measured; short episodes are played several times."""


@dataclass(frozen=True)
class Request:
    """Agents to measure, and the lengths."""

    agents: list[str]
    """Agents, each as AGENT or LABEL=AGENT: folders, as runs/<run>/last, or names on the Hub, as user/repo."""
    lengths: tuple[int, ...] = (20, 50, 100, 150, 300, 600, 1200, 2400, 4800, 9600)
    """Lengths of the agents' tasks, one measurement each: steps between the cue and the question, or of an episode."""
    json: Path | None = None
    """Write all figures into this file."""
    plot: Path | None = None
    """Draw accuracy and time by length into this file."""


@dataclass(frozen=True)
class Point(Accuracy):
    """One agent at one length.

    Attributes:
        agent: label of the agent.
        acting: way of acting, as "stream" or "window:20".
        environment: Gymnasium id.
        chance: accuracy of random answers.
        ms_per_step: median milliseconds of `act` in a single environment, over the later half of an episode.
        state_bytes: bytes of the state at the end of such an episode.
    """

    agent: str
    acting: str
    environment: str
    chance: float
    ms_per_step: float
    state_bytes: int


def measure_agents(request: Request, episodes: int, seed: int, device: str) -> None:
    """Measures, prints a table, and writes the files that were asked for.

    Raises:
        InvalidInput: as `load` and `measure`.
        CheckpointError: an agent cannot be read.
    """
    agents = load(request.agents, device_named(device))
    points = measure(agents, request.lengths, episodes, seed)
    say(table(points))
    if request.json is not None:
        write(request.json, agents, points, seed, device)
        say(f"figures:    {request.json}")
    if request.plot is not None:
        draw(points, request.plot)
        say(f"plot:       {request.plot}")


def load(folders: Sequence[str], device: torch.device) -> dict[str, DecisionAgent]:
    """Agents by their labels.

    Args:
        folders: agents, each as AGENT or LABEL=AGENT: folders, or names on the Hub.
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
        agents[label] = DecisionAgent.load(find(folder, say).folder, device)
    return agents


def measure(agents: Mapping[str, DecisionAgent], lengths: Iterable[int], episodes: int, seed: int) -> list[Point]:
    """Plays every agent at every length.

    Args:
        agents: agents by label.
        lengths: lengths of the task, in any order.
        episodes: number of episodes of each agent at each length.
        seed: seed of the first row of the vector environment; row i has seed + i.

    Raises:
        InvalidInput: a length below 1 or too short for a task, or an agent of another task or of shorter episodes.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1:
        raise InvalidInput(f"lengths {lengths}; expected whole numbers, at least 1")
    for label, agent in agents.items():
        _check(label, agent, lengths)
    points = []
    with progress(len(agents) * len(lengths) * episodes, "episode") as advance:
        for label, agent in agents.items():
            for length in lengths:
                points.append(_play(label, agent, length, episodes, seed, advance))
    return points


def _play(
    label: str, agent: DecisionAgent, length: int, episodes: int, seed: int, advance: Callable[[int], object]
) -> Point:
    answers = accuracy(agent, length, episodes, seed, advance)
    protocol = protocol_of(agent, length, episodes, seed)
    milliseconds, state_bytes = time_steps(agent, protocol)
    env = make(protocol.environment)
    chance: float = env.get_wrapper_attr("chance")
    env.close()
    return Point(
        **asdict(answers),
        agent=label,
        acting=str(agent.acting),
        environment=protocol.environment.id,
        chance=chance,
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
        "| agent | acting | length | accuracy | 95% interval | ms per step | state, bytes |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for point in points:
        interval = "-" if point.ci95 is None else f"{point.ci95[0]:.2f} to {point.ci95[1]:.2f}"
        rows.append(
            f"| {point.agent} | {point.acting} | {point.length:,} | {point.accuracy:.2f} | "
            f"{interval} | {point.ms_per_step:.3g} | {point.state_bytes:,} |"
        )
    return "\n".join(rows)


def draw(points: list[Point], path: Path) -> None:
    """Draws accuracy and milliseconds per step by length; a line shows the accuracy of chance."""
    with drawn(path, 9, 3.4) as figure:
        right, step = figure.subplots(1, 2)
        for label in dict.fromkeys(point.agent for point in points):
            line = [point for point in points if point.agent == label]
            lengths = [point.length for point in line]
            shares = np.array([point.accuracy for point in line])
            low, high = np.array([point.ci95 or (point.accuracy, point.accuracy) for point in line]).T
            right.errorbar(lengths, shares, [shares - low, high - shares], marker="o", capsize=3, label=label)
            step.plot(lengths, [point.ms_per_step for point in line], marker="o", label=label)
        for chance in {point.chance for point in points}:
            right.axhline(chance, color="grey", linestyle="--", label="chance")
        right.set(xlabel="length", ylabel="accuracy", xscale="log", ylim=(-0.05, 1.05))
        step.set(xlabel="length", ylabel="ms per step", xscale="log")
        step.set_ylim(bottom=0)
        right.legend(frameon=False)


def _check(label: str, agent: DecisionAgent, lengths: Sequence[int]) -> None:
    """Checks that an agent can be measured at these lengths, before anything is played."""
    spec = agent.card.environment
    if spec is None or spec.registered_id not in LENGTH_ARGUMENTS:
        raise InvalidInput(
            f"{label} was trained for {spec and spec.id}, which has no length to set; expected one of "
            f"{', '.join(LENGTH_ARGUMENTS)}, as trained on t-maze-expert or recall-4-expert"
        )
    # The task itself says which lengths are too short for it.
    make(with_length(spec, lengths[0])).close()
    if agent.longest is not None and lengths[-1] >= agent.longest:
        raise InvalidInput(
            f"{label} has a learned timestep embedding for {agent.longest} steps; pass --lengths below {agent.longest}"
        )


def _about(agent: DecisionAgent) -> dict[str, Any]:
    config = agent.model.config
    return {"dataset": agent.card.dataset_id, "updates": agent.card.updates, "model": asdict(config)}
