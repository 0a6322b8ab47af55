"""Long streams of extreme observations and rewards: actions must stay finite and in bounds, and no state may grow."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aaren_rl import mixers
from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.decision_agent import SMALL
from aaren_rl.checkpoint import AgentCard
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
        return report.findings

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
        wrong: steps with a wrong action or a wrong state.
        findings: one for each kind of fault.
    """

    steps: int
    seconds: float
    wrong: int
    findings: list[Finding]


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
    low, high = agent.action_space.bounds()
    agent.reset(num_envs=ROWS)
    size, began, wrong, memory = agent.state_bytes, time.perf_counter(), 0, 0
    findings: dict[Finding, None] = {}
    reward: Array | None = None
    ended = np.zeros(ROWS, np.bool_)
    for call in range(calls):
        if call % LENGTH == 0:
            observations, observed = extremes(rng, 3)
            rewards, rewarded = extremes(rng, 1)
        if call == calls // 10:
            memory = _resident()
        refused = np.zeros(ROWS, np.bool_)
        try:
            action = agent.act(observations[call % LENGTH], reward, ended)
            bad = ~(np.isfinite(action) & (action >= low) & (action <= high)).all(-1)
        except AarenError as error:
            # All that it was given is finite.
            findings.setdefault(Finding("wrong", "an agent that does not act", str(error)[:150]))
            action, bad, refused = np.zeros((ROWS, *low.shape)), np.zeros(ROWS, np.bool_), ~refused
        # The rows of state that both steps carry, (rows, state size).
        lost = ~np.isfinite(np.asarray(agent._state.state)).all(-1)  # type: ignore[union-attr]
        for what, rows in (
            ("an action that is not finite or out of bounds", bad),
            ("a state that is not finite", lost),
        ):
            for row in np.flatnonzero(rows)[:1]:
                detail = f"observations {observed[row]}, rewards {rewarded[row]}, action {action[row]}"
                findings.setdefault(Finding("wrong", what, detail))
        if agent.state_bytes != size:
            findings[Finding("wrong", "a state that changed its size", f"{size} and {agent.state_bytes} bytes")] = None
        if (bad | lost | refused).any():
            wrong += int((bad | lost | refused).sum())
            agent.reset(num_envs=ROWS)
            reward, ended = None, np.zeros(ROWS, np.bool_)
            continue
        reward = rewards[call % LENGTH, :, 0]
        ended = (rng.random(ROWS) < END) & (np.arange(ROWS) % 2 == 0)
    if _resident() - memory > GROWTH:
        findings[Finding("memory", f"the process grew by more than {GROWTH >> 20} MiB")] = None
    return Report(calls * ROWS, time.perf_counter() - began, wrong, list(findings))


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
