"""The agent that acts with an exported graph, by onnxruntime and NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.states import ActingState, Array, Rows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.spaces import space_from_json
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.stepping import onnx as export


class OnnxAgent(Agent):
    """Acts like `DecisionAgent`, from the folder that `aaren_rl.stepping.onnx.to_onnx` wrote.

    Args:
        folder: with agent.onnx and export.json.
        threads: that onnxruntime may use; for models of this size one is the fastest.
        acting: "stream" or "reset:STEPS"; None for what the card says.
        renew: as for `DecisionAgent`.

    Raises:
        CheckpointError: a file is missing, altered or of another version.
        InvalidInput: onnxruntime is not installed, or the exported step cannot act so.
    """

    def __init__(self, folder: str | Path, threads: int = 1, acting: str | None = None, renew: int = 0) -> None:
        folder = Path(folder)
        described = checkpoint.read_json(folder / export.CARD)
        if described.get("format") != export.FORMAT:
            raise CheckpointError(
                f"{folder / export.CARD} has format {described.get('format')}; this version reads {export.FORMAT}"
            )
        export.require_packages("onnxruntime")
        try:
            graph = (folder / export.GRAPH).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / export.GRAPH} cannot be read: {error}") from error
        digests = described.get("sha256")
        known = digests if isinstance(digests, dict) else {}
        altered = known.get(export.GRAPH) != checkpoint.digest(graph)
        if altered or known.get(export.CARD) != checkpoint.card_digest(described, export.GRAPH):
            raise CheckpointError(f"{folder} is not as it was exported; export the agent again")
        self.session = export.session(graph, threads)
        card = AgentCard.from_json(described)
        observations, actions = (space_from_json(described[f"{name}_space"]) for name in ("observation", "action"))
        super().__init__(card, observations, actions, described["longest_episode"], acting, renew)
        if self.acting.mode == "window":
            raise InvalidInput(f"an exported agent has a single step, it cannot act by {self.acting}; pass stream")
        self.start = np.array(described["state_start"], dtype=np.float64)
        self.mixed, self.int8 = int(described["mixers_at"]), bool(described["int8"])

    def _begin(self, rows: int) -> ActingState:
        return Rows(self._run, self.start, self.mixed, rows)

    def _run(self, observation: Array, reward: Array, state: Array) -> tuple[Array, Array]:
        action, state = self.session.run(None, {"observation": observation, "reward": reward, "state": state})
        return action, state
