"""Exports an agent as a single step, and evaluates what exporting changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from huggingface_hub import HfApi

from aaren_rl import checkpoint
from aaren_rl.actor import Actor
from aaren_rl.agents import CAgent, DecisionAgent, OnnxAgent, TorchAgent
from aaren_rl.agents.exported_agent import ExportedAgent
from aaren_rl.agents.hub import find, push_to_hub
from aaren_rl.envs.environments import environment_of
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.envs.references import find_reference
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments.console import progress, say
from aaren_rl.folders import replace_file
from aaren_rl.stepping.c.export import to_c
from aaren_rl.stepping.exported import CARD
from aaren_rl.stepping.onnx import to_onnx
from aaren_rl.stepping.torch_program import to_torch

Form: TypeAlias = Literal["onnx", "c", "torch"]

NAMES = {"onnx": "graph", "c": "code", "torch": "program"}
"""What the step's file is, by form."""

AGENTS: dict[Form, type[ExportedAgent]] = {"c": CAgent, "torch": TorchAgent, "onnx": OnnxAgent}
"""The class of agent for each form."""


@dataclass(frozen=True)
class Export:
    """An agent and its exported step.

    Attributes:
        agent: the agent that was exported.
        folder: folder of export.json and of the step's files.
        step: file of the step, agent.onnx, agent.c or agent.pt2.
        described: contents of export.json.
        form: of the step.
    """

    agent: DecisionAgent
    folder: Path
    step: Path
    described: dict[str, Any]
    form: Form

    def __str__(self) -> str:
        """What was written, line by line."""
        within = self.described["largest_difference"]
        checked = "not checked: this machine has no C compiler"
        if within is not None:
            checked = f"within {within:.1e} of torch's, as a share of their half range"
        size = f"{self.step.stat().st_size / 2**10:.0f} KiB{', int8' if self.described['int8'] else ''}"
        lines = [f"{NAMES[self.form]}:".ljust(12) + f"{self.step}, {size}"]
        if self.form == "c":
            sizes = (f"{self.described[f'{name}_bytes']:,} bytes of {name}" for name in ("weight", "state", "scratch"))
            lines.append(f"memory:     {', '.join(sizes)}")
        return "\n".join([*lines, f"card:       {self.folder / CARD}", f"actions:    {checked}"])


@dataclass(frozen=True)
class HubOptions:
    """Where on the Hugging Face Hub an agent is put, and how."""

    repo: str | None = None
    """Repository, as user/repo; it is made if there is none."""
    licence: str | None = None
    """Licence of the agent, as mit or cc-by-4.0; by default none, which its card says."""
    private: bool = False
    """Make the repository private, if there is none yet."""

    def push(self, agent: str) -> str:
        """Puts an agent there (see `aaren_rl.agents.hub.push_to_hub`), and says where it is."""
        assert self.repo is not None
        address = push_to_hub(agent, self.repo, licence=self.licence, private=self.private)
        return f"hub:        {HfApi().endpoint}/{self.repo}\nagent:      aaren_rl.load({address!r})"


def export(
    agent: str | Path, out: Path | None = None, acting: str | None = None, int8: bool = False, to: Form = "onnx"
) -> Export:
    """Writes an agent's step and its description.

    Args:
        agent: folder of the agent, or its name on the Hub.
        out: folder to write; None for the agent's, with the form added, as -onnx or -c-int8; for an agent of the Hub it
            lies under runs/hub/.
        acting: way in which the exported agent acts, stream or reset:STEPS; None for the agent's.
        int8: stores weights in 8 bits: those of the perceptrons in a graph, those of all large products in C.
        to: form of the step.

    Raises:
        InvalidInput: the folder is the agent's, the agent's step cannot be exported so, or 8 bits in a torch program.
        ExportFailed: what was exported does not compute what the agent does.
        CheckpointError: the agent cannot be read, or the folder not written.
    """
    source = find(agent, say)
    folder = out or source.beside / f"{source.name}-{to}{'-int8' if int8 else ''}"
    if folder.resolve() == source.folder:
        raise InvalidInput(f"{folder} is the agent itself; give another --out")
    if int8 and to == "torch":
        raise InvalidInput("a torch program has its weights in float32; leave out --int8, or export to onnx or c")
    loaded = DecisionAgent.load(source.folder, acting=acting)
    if to == "torch":
        to_torch(loaded.model, loaded.card, folder)
    else:
        (to_c if to == "c" else to_onnx)(loaded.model, loaded.card, folder, int8)
    return Export(loaded, folder, folder / AGENTS[to].step_file, checkpoint.read_json(folder / CARD), to)


def exported_form(folder: Path) -> type[ExportedAgent]:
    """The class of agent for the exported step in a folder. Nothing of the folder is run."""
    found = [one for one in AGENTS.values() if (folder / one.step_file).exists()]
    # Of a folder with several steps, one that runs code decides, since such a folder needs trust.
    return min(found, key=lambda one: one.code is None, default=OnnxAgent)


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
        "exported": measured("exported", AGENTS[exported.form](exported.folder, acting=None, renew=0)),
    }
    file = exported.folder / CARD
    try:
        replace_file(file, json.dumps({**exported.described, "evaluation": results}, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{file} could not be written: {error}") from error
    return results
