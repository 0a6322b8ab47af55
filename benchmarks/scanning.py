"""Time of the scan: every form by length, and the fused kernel against the bandwidth of memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aaren_rl.experiments import measuring
from aaren_rl.experiments.measuring import Report, Side, compare, timed
from aaren_rl.ops import prefix_attention as scan
from aaren_rl.ops.prefix_attention import fused as fused_scan

FORMS: tuple[scan.Form, ...] = ("matrix", "chunked", "blockwise", "parallel")
SIZES = (
    (64, 1, 20, 128),
    (64, 1, 60, 128),
    (32, 1, 96, 128),
    (16, 1, 128, 128),
    (16, 1, 192, 128),
    (16, 1, 256, 128),
    (8, 1, 512, 128),
    (4, 4, 3_000, 32),
    (1, 4, 30_000, 32),
)
"""Batch, heads, time and dim."""

KERNEL_SIZES = ((64, 1, 60, 128), (1_024, 1, 60, 128), (64, 4, 3_000, 32))
REPLAYED = 20
"""Calls in one CUDA graph."""


def measure(report: Report) -> None:
    """Measures all rows on the scan."""
    for size in SIZES:
        _forms(report, *size)
    if not torch.cuda.is_available() or not fused_scan.available():
        reason = "the GPU is too old, or Triton missing" if torch.cuda.is_available() else "no CUDA device"
        report.leave_out("scan kernel vs copy bandwidth", reason)
        return
    for dtype in (torch.bfloat16, torch.float32):
        for size in KERNEL_SIZES:
            _kernel(report, dtype, *size)


def _forms(report: Report, batch: int, heads: int, time: int, dim: int) -> None:
    """Measures forward and backward of every form, to show the length at which the matrix form loses."""
    scores = torch.randn(batch, heads, time, requires_grad=True)
    values = torch.randn(batch, heads, time, dim, requires_grad=True)

    def side(form: scan.Form) -> Side:
        def work() -> None:
            scan.prefix_attention(scores, values, form=form)[0].sum().backward()  # type: ignore[no-untyped-call]

        return timed(work)

    # The matrix form takes memory with the square of the length.
    taken = measuring.alternate({form: side(form) for form in FORMS if form != "matrix" or time <= 1_000})
    fastest = min(taken.values(), key=statistics.median)
    for form, seconds in taken.items():
        name = f"scan {form}, {_size(batch, heads, time, dim)}"
        report.add(compare(name, seconds, seconds, fastest, "form / fastest", "ms"))


def _kernel(report: Report, dtype: torch.dtype, batch: int, heads: int, time: int, dim: int) -> None:
    """Measures the fused kernel beside a copy of as many bytes as its inputs and outputs have together."""
    scores = torch.randn(batch, heads, time, device="cuda").to(dtype)
    values = torch.randn(batch, heads, time, dim, device="cuda").to(dtype)
    nothing = torch.full((batch, heads), -torch.inf, device="cuda"), torch.zeros(batch, heads, dim, device="cuda")
    given = fused_scan.Inputs(scores, values, None, None, *nothing)
    outputs, logs = fused_scan.forward(given)
    gradient = torch.randn_like(outputs)
    calls: dict[str, tuple[Callable[[], object], tuple[Tensor, ...]]] = {
        "forward": (partial(fused_scan.forward, given), (scores, values, outputs, logs)),
        "backward": (
            partial(fused_scan.backward, given, fused_scan.Results(outputs, logs, gradient, None)),
            # The gradients that come out are as large as the scores and values.
            (scores, values, outputs, logs, gradient, scores, values),
        ),
    }
    for way, (call, moved) in calls.items():
        # A copy reads and writes.
        source = torch.empty(sum(part.nbytes for part in moved) // 2, dtype=torch.uint8, device="cuda")
        copy = partial(torch.empty_like(source).copy_, source)
        taken = measuring.alternate({"kernel": _replayed(call), "copy": _replayed(copy)})
        size = f"{str(dtype).removeprefix('torch.')}, {_size(batch, heads, time, dim)}"
        report.add(
            compare(
                f"scan kernel vs copy bandwidth, {way}, {size}",
                taken["kernel"],
                taken["copy"],
                taken["kernel"],
                "bandwidth / copy's",
                "us",
            )
        )


def _replayed(call: Callable[[], object]) -> Side:
    """A side that replays a CUDA graph of calls, without time of the host."""
    # Triton compiles at the first call, which a CUDA graph cannot hold.
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPLAYED):
            call()

    def play() -> float:
        events: Any = torch.cuda.Event
        began, ended = (events(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3 / REPLAYED

    return play


def _size(batch: int, heads: int, time: int, dim: int) -> str:
    return f"B={batch} H={heads} T={time} D={dim}"
