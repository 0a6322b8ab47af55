"""Prints measurements of this machine: `python benchmarks/benchmark.py SUBJECT`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import by_mixer
import d3rlpy_peer
import evaluating
import loading
import scanning
import sharing
import stepping
import training
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments import measuring
from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.peers.worker import D3RLPY


@dataclass(frozen=True)
class Arguments:
    """Measure this machine beside the peers in alternating rounds; ratios come with the lowest and the highest."""

    what: Literal["all", "train", "scan", "step", "mixers", "data", "eval", "processes"] = "all"
    """Subject: updates (train), forms of the scan (scan), acting (step), both by mixer (mixers), loading (data),
    evaluation (eval), updates shared by two processes (processes), or all."""
    threads: int = 1
    """Threads of torch and onnxruntime."""
    json: Path | None = None
    """File to write all figures into."""
    plots: Path | None = None
    """Folder to draw plots into."""
    long: bool = False
    """Act for 1,000,000 steps before the late steps are timed, instead of 20,000."""
    d3rlpy: Path | None = None
    """Interpreter with d3rlpy, to compare with it too."""


GROUPS = (
    Group("measurement", "Threads, peers and length.", ("threads", "d3rlpy", "long")),
    Group("output", "Files beside the printed table.", ("json", "plots")),
)


def main() -> None:
    """Entry point of the command."""
    run(lambda: measure(parse(Arguments, "benchmark", GROUPS, ["what"])))


def measure(arguments: Arguments) -> None:
    """Measures the subject, prints rows as they come, and writes the files.

    Raises:
        InvalidInput: a peer is not installed, or the number of threads is below 1.
    """
    if arguments.threads < 1:
        raise InvalidInput(f"--threads {arguments.threads}; expected at least 1")
    # Loading comes first: the others raise the peak memory of the process, which it measures.
    chosen = (
        ("data", "scan", "step", "train", "mixers", "eval", "processes")
        if arguments.what == "all"
        else (arguments.what,)
    )
    needs = {"step": stepping.NEEDS, "train": training.NEEDS, "mixers": training.NEEDS}
    measuring.require(dict.fromkeys(module for what in chosen for module in needs.get(what, ())))
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = measuring.machine()
    say(", ".join(f"{name} {value}" for name, value in about.items() if name != "packages"))
    say(", ".join(f"{name} {version}" for name, version in about["packages"].items()) + "\n")
    report = measuring.Report()
    with contextlib.ExitStack() as stack:
        peer = None
        if not {"step", "train"}.isdisjoint(chosen):
            if arguments.d3rlpy is None:
                say(f"rows on d3rlpy are not measured; {D3RLPY}\n")
            else:
                peer = stack.enter_context(d3rlpy_peer.start(arguments.d3rlpy))
                about["d3rlpy_packages"] = peer.versions
        say(measuring.table_head())
        measures: dict[str, Callable[[], None]] = {
            "data": lambda: loading.measure(report),
            "scan": lambda: scanning.measure(report),
            "step": lambda: stepping.measure(report, peer, arguments.long),
            "train": lambda: training.measure(report, peer),
            "mixers": lambda: by_mixer.measure(report),
            "eval": lambda: evaluating.measure(report),
            "processes": lambda: sharing.measure(report),
        }
        for what in chosen:
            measures[what]()
    if arguments.json is not None:
        report.write_json(arguments.json, about)
    if arguments.plots is not None:
        for path in measuring.plot(report, arguments.plots):
            say(f"plot in {path}")


if __name__ == "__main__":
    main()
