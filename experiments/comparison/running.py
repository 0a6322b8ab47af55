"""Trains the runs of a comparison, each in its process, and finds the finished ones."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import reprlib
import signal
import sys
import threading
from collections.abc import Iterable
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from typeguard import TypeCheckError, check_type

from aaren_rl.actor import Target
from aaren_rl.checkpoint import read_json
from aaren_rl.envs import sources
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.dataset import Say
from aaren_rl.errors import AarenError, CheckpointError, DataError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments import console
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.config import CONFIG, DATA, RunConfig, keeping, reading
from aaren_rl.experiments.console import device_named, rounded, say
from aaren_rl.experiments.peers import d3rlpy
from aaren_rl.experiments.peers.worker import D3RLPY
from aaren_rl.experiments.train import train
from aaren_rl.training.checkpoints import checkpoints
from aaren_rl.training.run import Interrupted
from aaren_rl.training.signals import stop_signal

RESULT, LOG = "result.json", "log.txt"

FIGURES: dict[str, Any] = {
    "normalized_score": float,
    "mean": float,
    "ci95": list[float],
    "train_seconds": float,
    "target": Target,
    "best": dict[str, Any],
    "versions": dict[str, Any],
    **dict.fromkeys(("source", "environment", "reference", "acting", "data_sha256"), str),
    **dict.fromkeys(("updates", "episodes", "parameters"), int),
}
"""Entries of a result that comparisons read, and their types where they are not null."""


class RunsFailed(AarenError):
    """Some runs of a comparison failed; the others are finished."""


def check_folders(runs: Iterable[Run], file: Path) -> None:
    """Checks that no run's folder holds a run of another configuration.

    Args:
        runs: runs whose folders are checked.
        file: TOML file of the comparison.

    Raises:
        InvalidInput: a folder does; the message names the settings that differ.
        CheckpointError: a folder holds something other than a run.
    """
    for run in runs:
        saved = _saved_configuration(run)
        differing = [] if saved is None else _differences(saved, run.config)
        was = d3rlpy.saved_peer(run.folder)
        if saved is not None and was != run.peer:
            differing.append(("peer", was, run.peer))
        if differing:
            raise InvalidInput(
                f"{run.folder} holds a run of another configuration: "
                + ", ".join(f"{name} is {was!r} there and {wanted!r} in {file}" for name, was, wanted in differing)
                + "; pass another --out, delete that folder, or set the file back"
            )


def outcome(run: Run) -> dict[str, Any] | None:
    """Result of a finished run; None if it is not finished.

    Raises:
        CheckpointError: a result cannot be read.
    """
    ended: dict[str, Any] = {"checkpoint": "last", "episodes": run.config.episodes}
    if run.peer is None or run.peer.seconds is None:
        ended["updates"] = run.config.training.updates
    # An evaluation by hand renames the run's result to the next free number; its result has no "train_seconds".
    for file in sorted(run.folder.glob("result*.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        figures = _checked(file, read_json(file))
        if "train_seconds" in figures and ended.items() <= figures.items():
            return figures
    return None


def _checked(file: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """A result whose entries have the types that comparisons count on.

    Raises:
        CheckpointError: one has another.
    """
    for name, hint in FIGURES.items():
        try:
            check_type(figures.get(name), hint | None)
        except TypeCheckError as error:
            raise CheckpointError(
                f"{file} says {name} is {reprlib.repr(figures[name])}: {error}; delete that file and run again: the "
                "agent is kept, and evaluated anew"
            ) from error
    return figures


def check_sources(found: Iterable[tuple[Run, str]]) -> None:
    """Checks that the data of all runs come from one source.

    Args:
        found: runs and their sources.

    Raises:
        DataError: the sources differ; the message names the runs.
    """
    by_source: dict[str, list[str]] = {}
    for run, source in found:
        by_source.setdefault(source, []).append(run.name)
    if len(by_source) > 1:
        listed = "; ".join(f"from {source}: {', '.join(names)}" for source, names in sorted(by_source.items()))
        raise DataError(
            f"runs on data from different sources are not compared ({listed}); set one source under [settings] and "
            "pass another --out, or choose runs with --only, --datasets and --seeds"
        )


def prepare(runs: list[Run], whole: Iterable[Run], say: Say, without_scores: bool = False) -> list[Run]:
    """Fetches or rolls out the data of runs once, before several processes need them.

    Args:
        runs: selected runs.
        whole: all runs of the comparison; the source of those that began replaces "auto".
        say: receives lines on the data.
        without_scores: takes datasets without reference returns too.

    Returns:
        Runs that are not finished, with the source of their data set.

    Raises:
        InvalidInput: a dataset has no reference returns, which normalised scores need.
        DataError: data cannot be loaded, or come from different sources.
        CheckpointError: a result or a configuration cannot be read.
    """
    begun = {run.dataset: config.source for run in whole if (config := _saved_configuration(run)) is not None}
    loaded: dict[tuple[Any, ...], sources.Source] = {}
    found: list[tuple[Run, str]] = []
    left: list[Run] = []
    for run in runs:
        config = run.config
        figures = outcome(run)
        if figures is not None:
            found.append((run, str(figures.get("source"))))
            continue
        wanted = begun.get(run.dataset, "auto") if config.source == "auto" else config.source
        key = (wanted, *(getattr(config, name) for name in DATA if name != "source"))
        if key not in loaded:
            where = keeping(config, run.folder.parent, device_named(config.device), progress=True)
            dataset = sources.load(config.env, wanted, reading(config, where), say)
            if dataset.reference is None and not without_scores:
                why = dataset.reference_reason.removeprefix("none: ")
                acted = f"for {dataset.environment}" if dataset.environment else "without an environment"
                raise InvalidInput(
                    f"{run.dataset} has no reference returns {acted} ({why}), so its scores cannot be normalised and "
                    "compared; leave it out, or pass --returns"
                )
            loaded[key] = cast(sources.Source, dataset.source)
        found.append((run, loaded[key]))
        # Only names of the catalogue have a source.
        source = loaded[key] if run.dataset in catalogue() else "auto"
        left.append(dataclasses.replace(run, config=dataclasses.replace(config, source=source)))
    check_sources(found)
    return left


def do(runs: list[Run], jobs: int, total: int, say: Say, python: Path | None = None) -> list[str]:
    """Trains runs, some at a time, each in a process with one thread of computation.

    One thread for any number of jobs, since results depend on the number of threads. The output of a run goes into
    log.txt in its folder. An interrupted run goes on from its checkpoint, but that of a peer begins anew.

    Args:
        runs: runs that are not finished.
        jobs: number of runs at a time.
        total: number of runs of the comparison, finished ones included.
        say: receives a line on every run that ends.
        python: interpreter with d3rlpy, for peers.

    Returns:
        A line on every run that failed.

    Raises:
        InvalidInput: a run is a peer's, and there is no interpreter.
        Interrupted: Ctrl-C or SIGTERM; the runs in training have saved a checkpoint and ended.
    """
    peers = [run.name for run in runs if run.peer is not None]
    if peers and python is None:
        raise InvalidInput(f"{', '.join(peers)}: these train with d3rlpy, in an interpreter of its own; {D3RLPY}")
    waiting, failures = list(runs), []
    running: dict[int, tuple[SpawnProcess, Run]] = {}
    done = total - len(runs)
    with stop_signal() as stop, tqdm(total=total, initial=done, unit="run", disable=None) as bar:
        try:
            while running or waiting:
                while waiting and len(running) < jobs and not stop.is_set():
                    run = waiting.pop(0)
                    process = _start(run, python)
                    running[process.sentinel] = process, run
                # The timeout lets the loop see the signal.
                for sentinel in connection.wait(list(running), timeout=0.2):
                    assert isinstance(sentinel, int)
                    process, run = running.pop(sentinel)
                    process.join()
                    line, failed = _ended(process, run)
                    failures += [line] if failed else []
                    done += not failed
                    bar.update(not failed)
                    with tqdm.external_write_mode():
                        say(f"{done} of {total}: {line}")
                if stop.is_set():
                    break
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.join()
        finally:
            for process, _ in running.values():
                process.kill()
        if stop.is_set():
            raise Interrupted(f"stopped, {done} of {total} runs are finished, all that was trained is saved")
    return failures


def _start(run: Run, python: Path | None) -> SpawnProcess:
    run.folder.mkdir(parents=True, exist_ok=True)
    resume = run.folder if checkpoints(run.folder) else None
    config = dataclasses.replace(run.config, resume=resume)
    work = config, run.peer, python, run.folder / LOG
    process = multiprocessing.get_context("spawn").Process(target=_work, args=work)
    # The process inherits this: Ctrl-C must not reach it while it starts.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process


def _work(config: RunConfig, peer: d3rlpy.Peer | None, python: Path | None, log: Path) -> None:
    """Trains one run; the target of a process."""
    if sys.platform != "win32":
        # A second signal would break the saving, so Ctrl-C reaches only the command, which sends SIGTERM.
        os.setpgrp()
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if peer is None:
        console.run(lambda: train(config))
    else:
        assert python is not None
        interpreter = python
        console.run(lambda: d3rlpy.train(config, peer, interpreter, say))


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _ended(process: SpawnProcess, run: Run) -> tuple[str, bool]:
    """A line on a run whose process has ended, and True if it failed."""
    with contextlib.suppress(AarenError):
        figures = outcome(run)
        if process.exitcode == 0 and figures is not None:
            score, seconds = figures["normalized_score"], figures["train_seconds"]
            reached = f"return {rounded(figures['mean'])}" if score is None else f"normalised score {score:.1f}"
            return f"{run.name}: {reached}, trained in {seconds:.0f} s", False
    # The last line is an error, or the end of a traceback.
    log = run.folder / LOG
    tail = log.read_text("utf-8", errors="replace").splitlines()[-1:] if log.exists() else []
    said = tail[0] if tail else "it said nothing"
    return f"{run.name} failed with exit status {process.exitcode}: {said} (all it said is in {log})", True


def _saved_configuration(run: Run) -> RunConfig | None:
    """Configuration saved in a run's folder; None if the run has not begun."""
    begun = any((run.folder / name).exists() for name in (CONFIG, RESULT)) or checkpoints(run.folder)
    return run_config.load(run.folder / CONFIG) if begun else None


def _differences(saved: RunConfig, wanted: RunConfig) -> list[tuple[str, Any, Any]]:
    one, other = (_flat(dataclasses.asdict(run_config.located(config))) for config in (saved, wanted))
    # Of a preset only its settings count; "auto" became a source when the run began. Where data lie changes nothing.
    ignored = {"run", "resume", "preset", "data", "data_folder"} | ({"source"} if wanted.source == "auto" else set())
    return [
        (name, one.get(name), other.get(name))
        for name in one | other
        if name not in ignored and one.get(name) != other.get(name)
    ]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
