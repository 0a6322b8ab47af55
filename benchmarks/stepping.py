"""Time of a step in acting: beside the peers, by batch, and late in an episode."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

import d3rlpy_peer
import hugging_face
import setting
from aaren_rl.agents import DecisionAgent
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import Chart, Report, Row, Side, compare, timed
from aaren_rl.mixers.aaren.stepper import AarenStepper
from aaren_rl.model import DecisionModel
from aaren_rl.model.heads.box import BoxHeadStepper
from aaren_rl.model.trunk_stepper import BlockStepper
from aaren_rl.stepping import ModelStepper
from aaren_rl.stepping import onnx as export
from aaren_rl.stepping.c import compiled
from aaren_rl.stepping.c.export import HEADER, SOURCE, to_c
from aaren_rl.stepping.exported import CARD

NEEDS = ("transformers", "onnx", "onnxscript", "onnxruntime")
CALLS = 100
"""Steps in a round of a comparison."""

EXPORTED = {
    "exported step": ("interleaved", False),
    "exported fused step": ("fused", False),
    "exported int8 step": ("interleaved", True),
}
"""Layout of the tokens, and True for int8, by the name of the row."""

IN_C = {"C step": False, "C int8 step": True}
"""True for int8, by the name of the row; tokens are fused, as by default."""

BATCHES = (1, 16, 64, 256)
BATCH_CALLS = 300
"""Steps behind a median and a percentile."""

EARLY, LATE, LONG = 100, 20_000, 1_000_000
"""Steps of an episode after which the next ones are timed; the last with `--long`."""


def measure(report: Report, peer: d3rlpy_peer.D3rlpy | None, long: bool = False) -> None:
    """Measures all rows on acting."""
    _against_peers(report, peer)
    _late_in_an_episode(report, LONG if long else LATE)
    _by_batch(report)


class Acting:
    """An agent in an episode without end, on made-up observations."""

    def __init__(self, rows: int | None = None, layout: str = "interleaved", mixer: str = "aaren") -> None:
        self.agent = DecisionAgent(setting.make_model(layout=layout, mixer=mixer), setting.make_card())
        shape = (1_000, setting.OBSERVATION_SIZE) if rows is None else (1_000, rows, setting.OBSERVATION_SIZE)
        self._observations = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self._reward: float | npt.NDArray[np.float64] = 1.0 if rows is None else np.ones(rows)
        self._rows = rows
        self.reset()

    def reset(self) -> None:
        """Starts a new episode."""
        self.steps = 0
        self.agent.reset(3_600.0, self._rows)

    def step(self) -> None:
        """Calls `act` once."""
        self.agent.act(self._observations[self.steps % 1_000], self._reward if self.steps else None)
        self.steps += 1


def _against_peers(report: Report, peer: d3rlpy_peer.D3rlpy | None) -> None:
    ours, fused, theirs = Acting(), Acting(layout="fused"), hugging_face.HuggingFace()
    theirs.model.eval()
    observations = np.random.default_rng(0).standard_normal((CALLS, setting.OBSERVATION_SIZE), dtype=np.float32)

    def window() -> None:
        for observation in observations:
            theirs.act(observation, 1.0)

    whole_window = timed(window)
    sides: dict[str, Side] = {
        "agent.act": timed(ours.step, CALLS),
        "agent.act, fused": timed(fused.step, CALLS),
        "hugging-face": lambda: whole_window() / CALLS,
    }
    if peer is not None:
        sides["d3rlpy"] = peer.side("step", CALLS)
    with TemporaryDirectory() as folder:
        sides |= _exported(Path(folder))
        sides |= _in_c(Path(folder))
        taken = measuring.alternate(sides)
    for name in (*EXPORTED, *IN_C):
        over = "theirs / ours", "us"
        report.add(compare(f"{name} vs hugging-face", taken[name], taken["hugging-face"], taken[name], *over))
        streaming = taken[f"streaming {name}"]
        over = "step / streaming", "us"
        report.add(compare(f"{name} vs streaming the weights", taken[name], taken[name], streaming, *over))
    for peer_name in ("hugging-face", "d3rlpy"):
        for name in ("agent.act", "agent.act, fused"):
            if peer_name in taken:
                over = "theirs / ours", "us"
                report.add(compare(f"{name} vs {peer_name}", taken[name], taken[peer_name], taken[name], *over))
            else:
                report.leave_out(f"{name} vs {peer_name}", d3rlpy_peer.LEFT_OUT)


def _exported(folder: Path) -> dict[str, Side]:
    """Sides of the exported steps, and of one pass over as many bytes as the weights of each."""
    sides: dict[str, Side] = {}
    for name, (layout, int8) in EXPORTED.items():
        graph = export.to_onnx(setting.make_model(layout=layout), setting.make_card(), folder / name, int8)
        sides[name] = _session_side(graph)
        sides[f"streaming {name}"] = _streaming_side(graph.stat().st_size)
    return sides


def _in_c(folder: Path) -> dict[str, Side]:
    """Sides of the step in C, called from Python, and of one pass over as many bytes as its weights."""
    compiler = compiled.find_compiler()
    if compiler is None:
        raise InvalidInput("the step in C needs a C compiler; install gcc or clang, or set CC to its path")
    sides: dict[str, Side] = {}
    for name, int8 in IN_C.items():
        described = to_c(setting.make_model(layout="fused"), setting.make_card(), folder / name, int8)
        files = {file: (folder / name / file).read_bytes() for file in (HEADER, SOURCE)}
        built = folder / f"{name} built"
        built.mkdir()
        steps = compiled.Library.build(files, built, compiler).steps
        state = np.array([described["state_start"]])
        observation, reward = np.zeros((1, setting.OBSERVATION_SIZE), np.float32), np.ones(1, np.float32)
        action = np.zeros((1, setting.ACTION_SIZE), np.float32)
        arrays = state, observation, reward, action
        sides[name] = timed(_call(steps, arrays), CALLS)
        sides[f"streaming {name}"] = _streaming_side(described["weight_bytes"])
    return sides


def _call(steps: Callable[..., None], arrays: tuple[npt.NDArray[Any], ...]) -> Callable[[], None]:
    places = [array.ctypes.data for array in arrays]

    def step() -> None:
        steps(1, *places)
        # Named, so that the arrays live as long as the function.
        assert arrays

    return step


def _session_side(graph: Path) -> Side:
    session = export.session(str(graph), torch.get_num_threads())
    card = json.loads(graph.with_name(CARD).read_text())
    feeds = {
        "observation": np.zeros((1, setting.OBSERVATION_SIZE), np.float32),
        "reward": np.ones(1, np.float32),
        "state": np.array([card["state_start"]], np.float64),
    }

    def step() -> None:
        feeds["state"] = session.run(None, feeds)[1]

    return timed(step, CALLS)


def _streaming_side(size: int) -> Side:
    """A side that reads this many bytes once."""
    return timed(torch.rand(size // 4).sum, CALLS)


def _products(model: DecisionModel, batch: int) -> Callable[[], object]:
    """The matrix products of a step of one token, of a batch, and nothing else."""
    step = ModelStepper(model)
    blocks = [cast(BlockStepper, block) for block in step.trunk.blocks]
    of_blocks = [(cast(AarenStepper, block.mixer).project, block.expand, block.contract.t()) for block in blocks]
    weights = [step.inputs.weight, *itertools.chain(*of_blocks), cast(BoxHeadStepper, step.head).linear.weight]
    inputs = [torch.randn(batch, weight.shape[1]) for weight in weights]

    @torch.inference_mode()
    def multiply() -> None:
        for given, weight in zip(inputs, weights, strict=True):
            F.linear(given, weight)

    return multiply


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
        # The first steps warm up.
        figures = statistics.median(taken[CALLS:]), float(np.percentile(taken[CALLS:], 95))
        for (name, points), value in zip(lines.items(), figures, strict=True):
            points.append((batch, value))
            report.add(Row(f"agent.act, batch {batch}, {name}", value, "ms"))
    for batch in BATCHES[1:]:
        acting = Acting(batch, layout="fused")
        sides = {"act": timed(acting.step, CALLS), "products": timed(_products(acting.agent.model, batch), CALLS)}
        rounds = measuring.alternate(sides)
        name = f"agent.act, fused, batch {batch} vs its matrix products"
        report.add(compare(name, rounds["act"], rounds["act"], rounds["products"], "act / products", "us"))
    report.charts.append(Chart("step-latency", "environments stepped together", "milliseconds per agent.act", lines))
