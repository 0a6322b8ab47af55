"""Acting: the time of a step beside the peers', by batch, and late in an episode."""

from __future__ import annotations

import importlib
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aaren_rl.agents import DecisionAgent
from aaren_rl.scripts.benchmarks import d3rlpy_peer, measuring, setting
from aaren_rl.scripts.benchmarks.d3rlpy_peer import D3rlpy
from aaren_rl.scripts.benchmarks.hugging_face import HuggingFace
from aaren_rl.scripts.benchmarks.measuring import Chart, Report, Row, Side, compare, timed

NEEDS = ("transformers", "onnx", "onnxscript", "onnxruntime")
CALLS = 100
"""Steps in a round of a comparison."""

BATCHES = (1, 16, 64, 256)
BATCH_CALLS = 300
"""Steps whose median and percentile are taken."""

EARLY, LATE, LONG = 100, 20_000, 1_000_000
"""Steps into an episode at which the time of the next ones is compared; the last with `--long`."""


def measure(report: Report, peer: D3rlpy | None, long: bool = False) -> None:
    """All rows on acting."""
    _against_peers(report, peer)
    _late_in_an_episode(report, LONG if long else LATE)
    _by_batch(report)


class Acting:
    """An agent in an episode without end, on made-up observations."""

    def __init__(self, rows: int | None = None) -> None:
        self.agent = DecisionAgent(setting.make_model(), setting.make_card())
        shape = (1_000, setting.OBSERVATION_SIZE) if rows is None else (1_000, rows, setting.OBSERVATION_SIZE)
        self._observations = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self._reward: float | npt.NDArray[np.float64] = 1.0 if rows is None else np.ones(rows)
        self._rows = rows
        self.reset()

    def reset(self) -> None:
        """Starts the episode anew."""
        self.steps = 0
        self.agent.reset(3_600.0, self._rows)

    def step(self) -> None:
        """One call of `act`."""
        self.agent.act(self._observations[self.steps % 1_000], self._reward if self.steps else None)
        self.steps += 1


def _against_peers(report: Report, peer: D3rlpy | None) -> None:
    ours, theirs = Acting(), HuggingFace()
    theirs.model.eval()
    observations = np.random.default_rng(0).standard_normal((CALLS, setting.OBSERVATION_SIZE), dtype=np.float32)

    def window() -> None:
        for observation in observations:
            theirs.act(observation, 1.0)

    whole_window = timed(window)
    sides: dict[str, Side] = {"act": timed(ours.step, CALLS), "hugging-face": lambda: whole_window() / CALLS}
    if peer is not None:
        sides["d3rlpy"] = peer.side("step", CALLS)
    with TemporaryDirectory() as folder:
        sides |= _exported(Path(folder))
        taken = measuring.alternate(sides)
    for name, side in (("exported step", "exported"), ("exported int8 step", "exported int8")):
        report.add(
            compare(f"{name} vs hugging-face", taken[side], taken["hugging-face"], taken[side], "theirs / ours", "us")
        )
        report.add(
            compare(
                f"{name} vs streaming the weights",
                taken[side],
                taken[side],
                taken[f"streaming {side}"],
                "step / streaming",
                "us",
            )
        )
    for name in ("hugging-face", "d3rlpy"):
        if name in taken:
            report.add(compare(f"agent.act vs {name}", taken["act"], taken[name], taken["act"], "theirs / ours", "us"))
    if peer is None:
        report.leave_out("agent.act vs d3rlpy", d3rlpy_peer.LEFT_OUT)


def _exported(folder: Path) -> dict[str, Side]:
    """The exported step alone, in float32 and int8, each with a pass over as many bytes as its weights."""
    export: Any = importlib.import_module("aaren_rl.export")
    sides: dict[str, Side] = {}
    for name, int8 in (("exported", False), ("exported int8", True)):
        path = folder / name
        export.to_onnx(setting.make_model(), setting.make_card(), path, int8=int8)
        sides[name] = _session_side(path)
        weights = sum(file.stat().st_size for file in path.glob("agent.onnx*"))
        sides[f"streaming {name}"] = _streaming_side(weights)
    return sides


def _session_side(folder: Path) -> Side:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "agent.onnx", options, providers=["CPUExecutionProvider"])
    state_size = next(given.shape[1] for given in session.get_inputs() if given.name == "state")
    feeds = {
        "observation": np.zeros((1, setting.OBSERVATION_SIZE), np.float32),
        "reward": np.ones(1, np.float32),
        "state": np.zeros((1, state_size), np.float32),
    }

    def step() -> None:
        feeds["state"] = session.run(None, feeds)[1]

    return timed(step, CALLS)


def _streaming_side(size: int) -> Side:
    """Reads so many bytes once."""
    return timed(torch.rand(size // 4).sum, CALLS)


def _late_in_an_episode(report: Report, late: int) -> None:
    young, old = Acting(), Acting()
    while old.steps < late:
        old.step()
    old_bytes = old.agent.state_bytes

    def early() -> float:
        young.reset()
        while young.steps < EARLY:
            young.step()
        return timed(young.step, CALLS)()

    taken = measuring.alternate({"late": timed(old.step, CALLS), "early": early})
    name = f"agent.act at step {late:,} vs step {EARLY}"
    report.add(compare(name, taken["late"], taken["late"], taken["early"], "late / early", "us"))
    ratio = old_bytes / young.agent.state_bytes
    report.add(Row(f"state bytes at step {late:,} vs step {EARLY}", old_bytes, "bytes", ratio, None, "late / early"))


def _by_batch(report: Report) -> None:
    lines: dict[str, list[tuple[float, float]]] = {"median": [], "95th percentile": []}
    for batch in BATCHES:
        acting = Acting(batch)
        taken = []
        for _ in range(BATCH_CALLS + CALLS):
            began = time.perf_counter()
            acting.step()
            taken.append(1e3 * (time.perf_counter() - began))
        # The first ones warm up.
        figures = statistics.median(taken[CALLS:]), float(np.percentile(taken[CALLS:], 95))
        for (name, points), value in zip(lines.items(), figures, strict=True):
            points.append((batch, value))
            report.add(Row(f"agent.act, batch {batch}, {name}", value, "ms"))
    report.charts.append(Chart("step-latency", "environments stepped together", "milliseconds per agent.act", lines))
