"""Exports an agent as a single step, and evaluates what exporting changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aaren_rl import checkpoint
from aaren_rl.actor import Actor
from aaren_rl.agents import CAgent, DecisionAgent, OnnxAgent
from aaren_rl.envs.environments import environment_of
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.envs.references import find_reference
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments.console import progress
from aaren_rl.folders import replace_file
from aaren_rl.stepping.c.export import to_c
from aaren_rl.stepping.exported import CARD
from aaren_rl.stepping.onnx import to_onnx

Form: TypeAlias = Literal["onnx", "c"]


@dataclass(frozen=True)
class Export:
    """An agent and its exported step.

    Attributes:
        agent: the agent that was exported.
        folder: folder of export.json and of the step's files.
        step: file of the step, agent.onnx or agent.c.
        described: contents of export.json.
    """

    agent: DecisionAgent
    folder: Path
    step: Path
    described: dict[str, Any]


def export(
    agent: Path, out: Path | None = None, acting: str | None = None, int8: bool = False, to: Form = "onnx"
) -> Export:
    """Writes an agent's step and its description.

    Args:
        agent: folder of the agent.
        out: folder to write; None for the agent's, with -onnx, -onnx-int8, -c or -c-int8 added.
        acting: way in which the exported agent acts, stream or reset:STEPS; None for the agent's.
        int8: stores weights in 8 bits: those of the perceptrons in a graph, those of all large products in C.
        to: form of the step.

    Raises:
        InvalidInput: the folder is the agent's, or the agent's step cannot be exported so.
        ExportFailed: what was exported does not compute what the agent does.
        CheckpointError: the agent cannot be read, or the folder not written.
    """
    source = agent.resolve()
    folder = out or source.with_name(f"{source.name}-{to}{'-int8' if int8 else ''}")
    if folder.resolve() == source:
        raise InvalidInput(f"{folder} is the agent itself; give another --out")
    loaded = DecisionAgent.load(source, acting=acting)
    (to_c if to == "c" else to_onnx)(loaded.model, loaded.card, folder, int8)
    file = checkpoint.EXPORTED_SOURCE if to == "c" else checkpoint.EXPORTED_GRAPH
    return Export(loaded, folder, folder / file, checkpoint.read_json(folder / CARD))


def exported_agent(folder: Path, acting: str | None = None, renew: int = 0) -> CAgent | OnnxAgent:
    """The agent of an exported folder, whichever form it has; C of the folder is compiled and run.

    Raises:
        CheckpointError: the folder is not as it was exported.
        InvalidInput: what runs it is missing, or it cannot act so.
    """
    kind = CAgent if (folder / checkpoint.EXPORTED_SOURCE).exists() else OnnxAgent
    return kind(folder, acting=acting, renew=renew)


def compare(exported: Export, episodes: int) -> dict[str, Any]:
    """Evaluates an agent and its export by the same protocol, and adds both results to export.json.

    Args:
        exported: the agent and its export.
        episodes: whole episodes of each.

    Returns:
        Results of evaluation (see `aaren_rl.envs.evaluation.result`), by "torch" and "exported".

    Raises:
        CheckpointError: export.json cannot be written.
    """
    card = exported.agent.card
    spec = environment_of(card)
    found = find_reference(spec, card.reference, card.environment)
    protocol = Protocol(spec, episodes, 0, card.target_returns[0], found.reference, reference_reason=found.reason)

    def measured(name: str, actor: Actor) -> dict[str, Any]:
        about = {"checkpoint": name, "source": card.source, "dataset": card.dataset_id}
        with progress(episodes, "episode", name) as advance:
            return result(evaluate(actor, protocol, advance), protocol, **about)

    results = {
        "torch": measured("torch", exported.agent),
        "exported": measured("exported", exported_agent(exported.folder)),
    }
    file = exported.folder / CARD
    try:
        replace_file(file, json.dumps({**exported.described, "evaluation": results}, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{file} could not be written: {error}") from error
    return results
