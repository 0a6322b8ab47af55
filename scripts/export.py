"""Exports an agent for machines without torch: `python scripts/export.py runs/hopper/last --to onnx`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from aaren_rl import checkpoint
from aaren_rl.actor import Actor
from aaren_rl.agents import DecisionAgent, OnnxAgent
from aaren_rl.envs import catalogue
from aaren_rl.envs.environments import EnvironmentSpec
from aaren_rl.envs.evaluation import Protocol, evaluate, result
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments.console import describe, run, say
from aaren_rl.stepping.onnx import CARD, to_onnx


@dataclass(frozen=True)
class Arguments:
    """Export an agent as one graph of a single step."""

    agent: Annotated[Path, tyro.conf.Positional]
    """Folder of an agent, as runs/<run>/last."""
    to: Literal["onnx"] = "onnx"
    """Form of the graph."""
    out: Path | None = None
    """Folder to write agent.onnx and export.json into; by default beside the agent, with -onnx or -onnx-int8 added."""
    acting: str | None = None
    """How the exported agent acts, stream or reset:STEPS; by default as the agent was trained to."""
    int8: bool = False
    """Store the perceptrons' weights in 8 bits: a third of the size, not the same actions."""
    episodes: int | None = None
    """Episodes to evaluate the agent and its export by; by default 100 with --int8, else none."""

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 0:
            raise InvalidInput(f"episodes is {self.episodes}; expected at least 0")


def main() -> None:
    """Entry point of `aaren-export`."""
    run(lambda: export(tyro.cli(Arguments, prog="export", config=(tyro.conf.FlagCreatePairsOff,))))


def export(arguments: Arguments) -> dict[str, Any]:
    """Exports as the arguments say and returns what export.json holds."""
    source = arguments.agent.resolve()
    folder = arguments.out or source.with_name(source.name + ("-onnx-int8" if arguments.int8 else "-onnx"))
    if folder.resolve() == source:
        raise InvalidInput(f"{folder} is the agent itself; give another --out")
    agent = DecisionAgent.load(source, acting=arguments.acting)
    file = to_onnx(agent.model, agent.card, folder, arguments.int8)
    described = checkpoint.read_json(folder / CARD)
    say(
        f"graph:      {file}, {file.stat().st_size / 2**10:.0f} KiB{', int8' if arguments.int8 else ''}\n"
        f"card:       {folder / CARD}\n"
        f"actions:    within {described['largest_difference']:.1e} of torch's, as a share of their half range"
    )
    episodes = arguments.episodes if arguments.episodes is not None else 100 if arguments.int8 else 0
    if episodes:
        described["evaluation"] = _compare(agent, OnnxAgent(folder), episodes)
        try:
            checkpoint.replace_file(folder / CARD, json.dumps(described, indent=2) + "\n")
        except OSError as error:
            raise CheckpointError(f"{folder / CARD} could not be written: {error}") from error
    return described


def _compare(agent: DecisionAgent, exported: OnnxAgent, episodes: int) -> dict[str, Any]:
    """Evaluates both by the same protocol and prints what exporting changed."""
    card = agent.card
    spec = EnvironmentSpec(card.env_id, card.env_kwargs)
    protocol = Protocol(spec, episodes, 0, card.target_returns[0], catalogue.reference_of(spec.id))

    def measured(name: str, actor: Actor) -> dict[str, Any]:
        with tqdm(total=episodes, unit="episode", desc=name, mininterval=1.0) as bar:
            about = {"checkpoint": name, "source": card.source, "dataset": card.dataset_id}
            figures = result(evaluate(actor, protocol, bar.update), protocol, **about)
        say(describe(name, figures))
        return figures

    before, after = measured("torch", agent), measured("exported", exported)
    say(f"change:     return {after['mean'] - before['mean']:+.1f}")
    return {"torch": before, "exported": after}


if __name__ == "__main__":
    main()
