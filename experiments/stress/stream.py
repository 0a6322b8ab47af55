"""Long streams of extreme observations and rewards: actions must stay finite and in bounds, and no state may grow."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aaren_rl import mixers
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.decision_agent import SMALL
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.bounds import bounds_of
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.errors import AarenError
from aaren_rl.experiments.console import progress
from aaren_rl.experiments.stress.processes import Workers
from aaren_rl.experiments.stress.rows import Finding, Row
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.stepping import ModelStepper, NumpyModelStepper

Array = npt.NDArray[Any]

ROWS = 16
"""Environments that act at a time, each with its own extremes; steps are counted in all of them together."""

WIDTH, WIDE = 16, 80
"""Widths of a token. At the second one the agent steps in torch, also where NumPy could."""

LENGTH = 40
"""Steps for which a row keeps its kind of observations."""

END = 1 / 500
"""Share of steps at which an episode ends, in half of the rows; the others go on to the end."""

GROWTH = 32 * 2**20
"""Bytes by which a process may grow between a tenth of its steps and the last."""

EXTREMES = ("ordinary", "zeros", "1e-30", "1e20", "-3e38", "alternating", "any magnitude")
"""Kinds of observations and of rewards."""

SECONDS = 6 * 3600.0
"""Limit of one stream."""


@dataclass(frozen=True)
class Stream:
    """An agent under attack.

    Attributes:
        mixer: of its model.
        library: library that computes its step, "NumPy" or "torch".
    """

    mixer: str
    library: str

    def __str__(self) -> str:
        return f"{self.mixer}, {self.library}"


def streams(names: list[str] | None = None) -> list[Stream]:
    """All mixers of constant size or of a window, stepped in torch and, where that exists, in NumPy.

    Args:
        names: mixers; None for all registered ones.
    """
    found = []
    for name in mixers.names() if names is None else names:
        model = _model(name, WIDTH)
        if not model.fixed_size:
            continue
        if NumpyModelStepper.of(ModelStepper(model)) is not None:
            found.append(Stream(name, "NumPy"))
        found.append(Stream(name, "torch"))
    return found


def run(chosen: list[Stream], steps: int, seed: int, jobs: int, folder: Path, rows: dict[str, Row]) -> None:
    """Lets agents act, and counts what they show.

    Args:
        chosen: agents.
        steps: steps of each, all its environments together.
        seed: of weights, observations and rewards.
        jobs: number of agents at a time.
        folder: to write into.
        rows: receives a row for each agent.
    """
    rows |= {str(one): Row(str(one)) for one in chosen}

    def attempt(one: Stream) -> list[Finding]:
        report = act(make_agent(one, seed), steps, seed)
        # Figures come back by a file, findings by the pipe.
        (folder / f"{one}.txt").write_text(f"{report.steps} {report.seconds} {report.wrong}")
        return list(report.findings)

    with progress(len(chosen), "agent") as advance:
        for one, findings in Workers(attempt, folder, jobs, SECONDS).run([[one] for one in chosen]):
            row = rows[str(one)]
            row.add(str(one), findings)
            figures = folder / f"{one}.txt"
            if figures.exists():
                done, seconds, wrong = (float(number) for number in figures.read_text().split())
                row.tried = int(done)
                row.counts["wrong"] = int(wrong)
                row.figures["steps_per_second"] = round(done / seconds)
            advance(1)


@dataclass
class Report:
    """What a stream showed.

    Attributes:
        steps: taken, of all rows together.
        seconds: that they took.
        wrong: steps with something wrong.
        findings: one for each kind of fault, as keys.
    """

    steps: int
    seconds: float = 0.0
    wrong: int = 0
    findings: dict[Finding, None] = field(default_factory=dict)

    def add(self, wrong: dict[str, Array], given: list[str]) -> None:
        """Counts what is wrong with a step.

        Args:
            wrong: rows by what is wrong with them, (rows,) bool.
            given: what each row was given, in words.
        """
        self.wrong += int(np.logical_or.reduce(list(wrong.values())).sum())
        for what, rows in wrong.items():
            self.findings.setdefault(Finding("wrong", what, given[int(np.flatnonzero(rows)[0])]))


def make_agent(one: Stream, seed: int) -> DecisionAgent:
    """An untrained agent of random weights, with the scaling of ordinary data."""
    torch.manual_seed(seed)
    # At the smaller width NumPy steps where it can.
    wide = one.library == "torch" and NumpyModelStepper.of(ModelStepper(_model(one.mixer, WIDTH))) is not None
    model = _model(one.mixer, WIDE if wide else WIDTH)
    assert not wide or ROWS * 4 * WIDE**2 > SMALL
    return DecisionAgent(model, AgentCard(None, "stress/stream-v0", "arrays", (100.0,)))


def _model(mixer: str, width: int) -> DecisionModel:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(64, 3)) * [1, 10, 0]
    episode = Episode(observations, rng.uniform(-1, 1, (64, 2)), rng.normal(size=64), terminated=True)
    config = ModelConfig(mixer=mixer, blocks=1, width=width, dropout=0.0, reward=True)
    actions = Box.bounded([-1.0, 0.0], [1.0, 50.0])
    return DecisionModel(config, Box.unbounded((3,)), actions, Scaling.of(Trajectories.from_episodes([episode])))


def act(agent: DecisionAgent, steps: int, seed: int) -> Report:
    """Acts on extremes. After a wrong step all episodes begin anew, so that the next one shows a new fault."""
    rng, calls = np.random.default_rng(seed), max(2, -(-steps // ROWS))
    agent.reset(num_envs=ROWS)
    report, size, began, memory = Report(calls * ROWS), agent.state_bytes, time.perf_counter(), 0
    reward: Array | None = None
    ended = np.zeros(ROWS, np.bool_)
    for call in range(calls):
        if call % LENGTH == 0:
            observations, observed = extremes(rng, 3)
            rewards, rewarded = extremes(rng, 1)
            given = list(zip(observed, rewarded, strict=True))
        if call == calls // 10:
            memory = _resident()
        wrong = _step(agent, observations[call % LENGTH], reward, ended, size)
        if wrong:
            report.add(wrong, [f"observations {one}, rewards {other}" for one, other in given])
            agent.reset(num_envs=ROWS)
            reward, ended = None, np.zeros(ROWS, np.bool_)
            continue
        reward = rewards[call % LENGTH, :, 0]
        ended = (rng.random(ROWS) < END) & (np.arange(ROWS) % 2 == 0)
    if _resident() - memory > GROWTH:
        report.findings[Finding("memory", f"the process grew by more than {GROWTH >> 20} MiB")] = None
    report.seconds = time.perf_counter() - began
    return report


def _step(agent: DecisionAgent, observation: Array, reward: Array | None, ended: Array, size: int) -> dict[str, Array]:
    """What is wrong with a step, and in which rows, (rows,) bool."""
    low, high = bounds_of(agent.action_space)
    try:
        action = agent.act(observation, reward, ended)
    except AarenError as error:
        # All that it was given is finite.
        said = re.sub(r"\d+", "N", str(error))[:60]
        return {f"an agent that does not act: {said}": np.ones(ROWS, np.bool_)}
    # The rows of state that both steps carry, (rows, state size).
    state = np.asarray(agent._state.state)  # type: ignore[union-attr]
    wrong = {
        "an action not finite or out of bounds": ~(np.isfinite(action) & (action >= low) & (action <= high)).all(-1),
        "a state that is not finite": ~np.isfinite(state).all(-1),
        "a state that changed its size": np.full(ROWS, agent.state_bytes != size),
    }
    return {what: rows for what, rows in wrong.items() if rows.any()}


def extremes(rng: np.random.Generator, size: int) -> tuple[Array, list[str]]:
    """Values for some steps of all rows, (steps, rows, size) float32 and finite, and the kind of each row."""
    kinds = [str(kind) for kind in rng.choice(EXTREMES, ROWS)]
    values = rng.normal(size=(LENGTH, ROWS, size))
    for row, kind in enumerate(kinds):
        if kind == "alternating":
            values[:, row] = 3e38 * (-1.0) ** np.arange(LENGTH)[:, None]
        elif kind == "any magnitude":
            values[:, row] = np.sign(values[:, row]) * 10.0 ** rng.uniform(-38, 38.4, (LENGTH, size))
        elif kind != "ordinary":
            values[:, row] = 0.0 if kind == "zeros" else float(kind)
    return values.astype(np.float32), kinds


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
