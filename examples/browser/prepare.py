"""Exports agents for the page: `python prepare.py ../../runs/hopper/last ../../runs/t-maze/last`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium.envs.mujoco
import numpy as np
import tyro

from aaren_rl.agents import DecisionAgent
from aaren_rl.envs.environments import environment_of, registered_limit
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.memory import T_MAZE
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.console import run, say
from aaren_rl.experiments.exporting import export

HERE = Path(__file__).parent
HOPPER = "Hopper-v5"
FOLDERS = {HOPPER: "hopper", T_MAZE: "t-maze"}
"""Folder of the agent that acts in an environment."""

STEPS = 200
"""Steps at most of the episode that the page compares its actions with."""


@dataclass(frozen=True)
class Arguments:
    """Export agents for the page."""

    agents: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of agents for Hopper-v5 and for the T-maze, as runs/RUN/last."""
    acting: str | None = None
    """Way of acting, stream or reset:STEPS; by default the agent's."""


def prepare(agent: Path, acting: str | None) -> None:
    """Writes the export of an agent, an episode of it in Python, and what its tab needs beside them."""
    loaded = DecisionAgent.load(agent, acting=acting)
    spec = environment_of(loaded.card)
    if spec.id not in FOLDERS:
        raise InvalidInput(f"{agent} acts in {spec.id}; this page has {' and '.join(FOLDERS)}")
    changed = spec.kwargs if spec.id == HOPPER else {}
    if changed or spec.wrappers or spec.max_episode_steps not in (None, registered_limit(spec.id)):
        raise InvalidInput(f"{agent} acts in {spec}; this page has {spec.id} as it is registered")
    folder = HERE / "agents" / FOLDERS[spec.id]
    exported = export(agent, folder / "step", acting)
    (folder / "check.json").write_text(json.dumps(episode(loaded)))
    if spec.id == HOPPER:
        shutil.copy(Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "hopper.xml", folder)
    say(f"{agent}: exported to {folder}, {exported.step.stat().st_size / 2**10:.0f} KiB")


def episode(agent: DecisionAgent) -> dict[str, Any]:
    """Observations, rewards before them, and actions of an episode, at most `STEPS` steps, in Python."""
    protocol = Protocol(environment_of(agent.card), episodes=1, seed=0, target_return=None, reference=None)
    (played,) = evaluate(agent, protocol, record=True).recorded
    rows = {
        "observations": played.observations[:-1],
        "rewards": np.concatenate([[0.0], played.rewards[:-1]]),
        "actions": played.actions,
    }
    return {name: values[:STEPS].tolist() for name, values in rows.items()}


def main(arguments: Arguments) -> None:
    """Exports each agent whose folder is given."""
    if not arguments.agents:
        raise InvalidInput(
            f"no agent is given; expected folders of agents for {' or '.join(FOLDERS)}, as runs/RUN/last"
        )
    for agent in arguments.agents:
        prepare(agent, arguments.acting)


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
