"""Trains the runs of a comparison in a pool, and finds the finished ones."""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from typeguard import TypeCheckError, check_type

from aaren_rl.actor import Target
from aaren_rl.checkpoint import read_json
from aaren_rl.envs.dataset import Say
from aaren_rl.errors import AarenError, CheckpointError, DataError, InvalidInput
from aaren_rl.experiments import config as run_config
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.comparison.processes import LOG, SUCCESS, Pool
from aaren_rl.experiments.config import CONFIG, RunConfig
from aaren_rl.experiments.console import rounded
from aaren_rl.experiments.peers import d3rlpy
from aaren_rl.experiments.peers.worker import D3RLPY
from aaren_rl.training.checkpoints import checkpoints
from aaren_rl.training.run import Interrupted
from aaren_rl.training.signals import stop_signal

RESULT = "result.json"

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
        saved = saved_configuration(run)
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


def saved_configuration(run: Run) -> RunConfig | None:
    """Configuration saved in a run's folder; None if the run has not begun.

    Raises:
        CheckpointError: it cannot be read.
    """
    begun = any((run.folder / name).exists() for name in (CONFIG, RESULT)) or checkpoints(run.folder)
    return run_config.load(run.folder / CONFIG) if begun else None


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


def do(runs: list[Run], pool: Pool, total: int, say: Say) -> list[str]:
    """Trains runs. An interrupted run goes on from its checkpoint, but that of a peer begins anew.

    Args:
        runs: runs that are not finished.
        pool: trains them.
        total: number of runs of the comparison, finished ones included.
        say: receives a line on every run that ends.

    Returns:
        A line on every run that failed.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the runs in training have saved a checkpoint and ended.
    """
    waiting, failures = list(runs), []
    training, done = 0, total - len(runs)
    with stop_signal() as stop, tqdm(total=total, initial=done, unit="run", disable=None) as bar:
        while (training or waiting) and not stop.is_set():
            while waiting and (pool.queues or training < pool.capacity) and not stop.is_set():
                pool.start(waiting.pop(0))
                training += 1
            # The timeout lets the loop see the signal.
            for run, how in pool.ended(timeout=0.2):
                training -= 1
                line, failed = report(run, how)
                failures += [line] if failed else []
                done += not failed
                bar.update(not failed)
                with tqdm.external_write_mode():
                    say(f"{done} of {total}: {line}")
        if stop.is_set():
            end(pool)
            raise Interrupted(f"stopped, {done} of {total} runs are finished, all that was trained is saved")
    return failures


def end(pool: Pool) -> None:
    """Has all runs save a checkpoint, and waits until they have ended."""
    pool.stop()
    while pool.training:
        # What is wrong with a node was said, or will be with the next command.
        with contextlib.suppress(AarenError):
            pool.ended(timeout=0.2)


def check_interpreter(runs: Iterable[Run], python: Path | None) -> None:
    """Refuses peers without an interpreter for them.

    Raises:
        InvalidInput: a run is a peer's, and there is no interpreter.
    """
    peers = [run.name for run in runs if run.peer is not None]
    if peers and python is None:
        raise InvalidInput(f"{', '.join(peers)}: these train with d3rlpy, in an interpreter of its own; {D3RLPY}")


def report(run: Run, how: str) -> tuple[str, bool]:
    """A line on a run that has ended, and True if it failed; `how` says how it ended."""
    with contextlib.suppress(AarenError):
        figures = outcome(run)
        if how == SUCCESS and figures is not None:
            score, seconds = figures["normalized_score"], figures["train_seconds"]
            reached = f"return {rounded(figures['mean'])}" if score is None else f"normalised score {score:.1f}"
            return f"{run.name}: {reached}, trained in {seconds:.0f} s", False
    # The last line is an error, or the end of a traceback.
    log = run.folder / LOG
    tail = log.read_text("utf-8", errors="replace").splitlines()[-1:] if log.exists() else []
    said = tail[0] if tail else "it said nothing"
    return f"{run.name} failed with {how}: {said} (all it said is in {log})", True


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
