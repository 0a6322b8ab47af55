"""Exports an agent as one graph of a single step, and evaluates what exporting changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaren_rl import checkpoint
from aaren_rl.actor import Actor
from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.envs.environments import environment_of
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.envs.references import find_reference
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments.console import progress
from aaren_rl.folders import replace_file
from aaren_rl.stepping.onnx import CARD, to_onnx


@dataclass(frozen=True)
class Export:
    """An agent and its exported graph.

    Attributes:
        agent: the agent that was exported.
        folder: folder of agent.onnx and export.json.
        graph: file of the graph.
        described: contents of export.json.
    """

    agent: DecisionAgent
    folder: Path
    graph: Path
    described: dict[str, Any]


def export(agent: Path, out: Path | None = None, acting: str | None = None, int8: bool = False) -> Export:
    """Writes an agent's graph and its description.

    Args:
        agent: folder of the agent.
        out: folder to write; None for the agent's, with -onnx or -onnx-int8 added.
        acting: way in which the exported agent acts, stream or reset:STEPS; None for the agent's.
        int8: stores the perceptrons' weights in 8 bits.

    Raises:
        InvalidInput: the folder is the agent's, or the agent's state grows.
        CheckpointError: the agent cannot be read, or the folder not written.
    """
    source = agent.resolve()
    folder = out or source.with_name(source.name + ("-onnx-int8" if int8 else "-onnx"))
    if folder.resolve() == source:
        raise InvalidInput(f"{folder} is the agent itself; give another --out")
    loaded = DecisionAgent.load(source, acting=acting)
    graph = to_onnx(loaded.model, loaded.card, folder, int8)
    return Export(loaded, folder, graph, checkpoint.read_json(folder / CARD))


def compare(exported: Export, episodes: int) -> dict[str, Any]:
    """Evaluates an agent and its graph by the same protocol, and adds both results to export.json.

    Args:
        exported: the agent and its graph.
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
        "exported": measured("exported", OnnxAgent(exported.folder)),
    }
    file = exported.folder / CARD
    try:
        replace_file(file, json.dumps({**exported.described, "evaluation": results}, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{file} could not be written: {error}") from error
    return results
