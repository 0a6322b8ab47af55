"""The memory probes: mixers are trained on every memory task, and measured at several times the training length."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from aaren_rl.agents import DecisionAgent
from aaren_rl.checkpoint import read_json
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.dataset import Say
from aaren_rl.envs.evaluation import versions
from aaren_rl.envs.memory import length_of
from aaren_rl.errors import AarenError, InvalidInput, unknown_name
from aaren_rl.experiments import settings
from aaren_rl.experiments.comparison import matrix, preparing, running
from aaren_rl.experiments.comparison.matrix import Run
from aaren_rl.experiments.comparison.processes import Processes
from aaren_rl.experiments.console import device_named, progress
from aaren_rl.experiments.memory import contamination, probe_table
from aaren_rl.experiments.memory.accuracy import accuracy
from aaren_rl.folders import replace_file
from aaren_rl.training.run import Interrupted

TASKS = {
    "recall-4": (1, 4, 16),
    "recall-32": (1, 4, 16),
    "recall-64": (1, 4, 16),
    "parity": (1, 4, 16),
    "associative-recall": (1, 4, 16),
    "t-maze": (1, 4, 16, 64),
}
"""Tasks, and the lengths that agents are measured at, in training lengths."""

CONTAMINATED = ("recall-4", "t-maze")
"""Tasks in which the effect of a foreign observation is measured."""

FILE, TABLE, MEASURED = "probes.toml", "probes", "memory.json"
"""Names of the matrix, of the table without its ending, and of what was measured of a run."""


@dataclass(frozen=True)
class Request:
    """Mixers to train on the memory tasks, and how."""

    probes: tuple[str, ...] = ()
    """Mixers to train on every task and to measure, as gru "aaren(recency=true)"."""
    tasks: tuple[str, ...] = ()
    """Tasks to train on, as recall-4 t-maze; all by default."""
    seeds: int = 3
    """Number of agents of each mixer on each task."""
    updates: int = 800
    """Optimiser updates of each agent."""
    settings: tuple[str, ...] = ()
    """Settings in place of those of the preset "memory", each in TOML, as model.width=32."""
    longest: int | None = None
    """Greatest length to play; by default 16 times the training length, and 9,600 steps in the T-maze."""
    out: Path = Path("runs/probes")
    """Folder of the runs and the table."""
    jobs: int = 1
    """Number of trainings at a time, each in a process with one thread."""


def probe(request: Request, episodes: int, seed: int, device: str, say: Say) -> list[dict[str, Any]]:
    """Trains what is not trained yet, measures what is not measured yet, and writes the table.

    Args:
        request: mixers, tasks and settings.
        episodes: number of episodes of each agent at each length.
        seed: of the first environment; the others follow it.
        device: to train and to act on: "auto", "cpu" or "cuda".
        say: receives lines on runs and files.

    Returns:
        The rows of the table, one for each finished run, as in probes.json.

    Raises:
        InvalidInput: an option does not fit, or a folder holds a run of another configuration.
        RunsFailed: some runs failed; the others were done, and stand in the table.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    if min(request.jobs, episodes) < 1:
        raise InvalidInput(f"{request.jobs} jobs and {episodes} episodes; expected at least 1 each")
    if request.longest is not None and request.longest < 1:
        raise InvalidInput(f"--longest {request.longest}; expected a number of steps, at least 1")
    table, file = _table_of(request, device), request.out / FILE
    runs = matrix.from_table(table, file).runs(request.out)
    running.check_folders(runs, file)
    request.out.mkdir(parents=True, exist_ok=True)
    # `scripts/compare.py` takes this file too.
    replace_file(file, tomli_w.dumps(table))
    try:
        with Processes(request.jobs) as pool:
            left = preparing.prepare(runs, preparing.begun(runs), request.out, pool, say)
            if len(left) < len(runs):
                say(f"{len(runs) - len(left)} of {len(runs)} runs are finished and stand")
            failures = running.do(left, pool, len(runs), say)
    except Interrupted as error:
        raise Interrupted(f"{error}; the same command goes on") from error
    rows, unmeasured = _measured(runs, request, episodes, seed, device)
    if rows:
        markdown = probe_table.to_markdown(rows, episodes, table["settings"]["training"]["updates"])
        figures = {"settings": table, "episodes": episodes, "seed": seed, "versions": versions(), "runs": rows}
        replace_file(request.out / f"{TABLE}.md", markdown)
        replace_file(request.out / f"{TABLE}.json", json.dumps(figures, indent=2) + "\n")
        say(f"\n{markdown}\ntable:      {request.out / TABLE}.md, {request.out / TABLE}.json")
    if failures or unmeasured:
        count = len(failures) + len(unmeasured)
        raise running.RunsFailed("\n".join([f"{count} of {len(runs)} runs failed:", *failures, *unmeasured]))
    return rows


def _table_of(request: Request, device: str) -> dict[str, Any]:
    """The matrix of a request, as the TOML file of a comparison has it.

    Raises:
        InvalidInput: a task is unknown, a setting is no TOML, or there are no seeds.
    """
    for task in request.tasks:
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
    if request.seeds < 1:
        raise InvalidInput(f"--seeds {request.seeds}; expected at least 1")
    shared: dict[str, Any] = {"preset": "memory", "source": "bundled", "device": device}
    shared["training"] = {"updates": request.updates}
    for given in request.settings:
        try:
            shared = settings.merge(shared, settings.loads(given), f"--settings {given}")
        except ValueError as error:
            raise InvalidInput(f"--settings {given}: {error}; expected TOML, as model.width=32") from error
    return {
        "datasets": [f"{task}-expert" for task in TASKS if task in request.tasks or not request.tasks],
        "seeds": list(range(request.seeds)),
        "settings": shared,
        "agents": {mixer: {"model": {"mixer": mixer}} for mixer in request.probes},
    }


def _measured(
    runs: list[Run], request: Request, episodes: int, seed: int, device: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """What was measured of the finished runs, one row each, and what kept others from it."""
    finished = [(run, outcome) for run in runs if (outcome := running.outcome(run)) is not None]
    rows, failures = [], []
    with progress(len(finished), "run", "measured") as advance:
        for run, outcome in finished:
            entry = find(run.dataset)
            trained = length_of(entry.environments["bundled"])
            lengths = [times * trained for times in TASKS[entry.task]]
            played = [length for length in lengths if request.longest is None or length <= request.longest]
            try:
                found = _measure(run, played, entry.task in CONTAMINATED, episodes, seed, device)
            except Interrupted:
                raise
            except AarenError as error:
                failures.append(f"{run.name}: {error}")
            else:
                about = {"task": entry.task, "mixer": run.agent, "seed": run.seed, "lengths": lengths}
                chance = entry.reference.random if entry.reference else None
                rows.append({**about, "chance": chance, "parameters": outcome["parameters"], **found})
            advance(1)
    return rows, failures


def _measure(run: Run, lengths: list[int], contaminated: bool, episodes: int, seed: int, device: str) -> dict[str, Any]:
    """Accuracies of a run's agent and its contamination; those that its folder holds already stand."""
    file = run.folder / MEASURED
    asked = {"episodes": episodes, "evaluation_seed": seed}
    kept = read_json(file) if file.exists() else {}
    if not asked.items() <= kept.items():
        kept = {**asked, "points": {}, "contamination": None}
    missing = [length for length in lengths if str(length) not in kept["points"]]
    due = contaminated and kept["contamination"] is None
    if missing or due:
        agent = DecisionAgent.load(run.folder / "last", device_named(device))
        for length in missing:
            kept["points"][str(length)] = asdict(accuracy(agent, length, episodes, seed))
            # After every length: an interrupted command goes on from here.
            replace_file(file, json.dumps(kept, indent=2) + "\n")
        if due:
            kept["contamination"] = asdict(contamination.measure(agent, episodes, seed))
            replace_file(file, json.dumps(kept, indent=2) + "\n")
    # As JSON has it, whether it was read or measured now.
    found: dict[str, Any] = json.loads(json.dumps(kept))
    return {**found, "points": {str(length): found["points"][str(length)] for length in lengths}}
