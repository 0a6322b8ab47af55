"""The agent that acts with an exported graph, by onnxruntime and NumPy alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.agents.agent import Agent
from aaren_rl.agents.states import ActingState, Array, Rows
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.spaces import NUMBERS, Packed, Space, space_from_json
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.stepping import onnx as export

OTHER_FILES = re.compile(rb"\n(\x08|\x88\x80*\x00)location")
"""Key, as protobuf writes it, under which a graph names a file that holds weights of it."""


class OnnxAgent(Agent):
    """Acts like `DecisionAgent`, from the folder that `aaren_rl.stepping.onnx.to_onnx` wrote.

    It can be copied and pickled, also in mid-episode: the copy makes a session of its own from the graph's bytes.

    Args:
        folder: with agent.onnx and export.json.
        threads: that onnxruntime may use; for models of this size one is the fastest.
        acting: "stream" or "reset:STEPS"; None for what the card says.
        renew: as for `DecisionAgent`.

    Raises:
        CheckpointError: a file is missing, altered or of another version; the graph is not the one that the card
            describes, or its first step is not finite.
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
            self._graph = (folder / export.GRAPH).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / export.GRAPH} cannot be read: {error}") from error
        digests = described.get("sha256")
        known = digests if isinstance(digests, dict) else {}
        altered = known.get(export.GRAPH) != checkpoint.digest(self._graph)
        if altered or known.get(export.CARD) != checkpoint.card_digest(described, export.GRAPH):
            raise CheckpointError(f"{folder} is not as it was exported; export the agent again")
        if OTHER_FILES.search(self._graph):
            raise CheckpointError(f"{folder / export.GRAPH} takes weights from other files, which an export never does")
        with checkpoint.described_by(folder, export.CARD):
            card = AgentCard.from_json(described)
            checkpoint.check_types(card)
            observations, actions = (space_from_json(described[f"{name}_space"]) for name in ("observation", "action"))
            longest = described["longest_episode"]
            if not isinstance(longest, int | None):
                raise InvalidInput(f"longest_episode is {longest!r}; expected a number of steps, or null")
            greatest = described["greatest_return"]
            if not isinstance(greatest, int | float | None) or not (greatest is None or greatest > 0):
                raise InvalidInput(f"greatest_return is {greatest!r}; expected a number above 0, or null")
            # Exports of before have none.
            reaches = described.get("reach", False)
            if not isinstance(reaches, bool):
                raise InvalidInput(f"reach is {reaches!r}; expected true or false")
            self.start = np.array(described["state_start"], dtype=np.float64)
            self.mixed, self.int8 = int(described["mixers_at"]), bool(described["int8"])
            self._threads = threads
            self.session = export.session(self._graph, threads)
            self._try_step(observations, actions)
        super().__init__(card, observations, actions, longest, greatest, reaches, acting, renew)
        if self.acting.mode == "window":
            raise InvalidInput(f"an exported agent has a single step, it cannot act by {self.acting}; pass stream")

    def __getstate__(self) -> dict[str, Any]:
        """All but the session, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.session = export.session(self._graph, self._threads)

    def _try_step(self, observations: Space, actions: Space) -> None:
        """Runs the first step of an episode: onnxruntime shows shapes, and weights by what they compute only.

        Raises:
            InvalidInput: shapes are not those of the card, or the step is not finite.
        """
        if self.start.ndim != 1 or not np.isfinite(self.start).all() or not 0 < self.mixed <= len(self.start):
            raise InvalidInput("state_start is no row of finite numbers, or mixers_at lies outside of it")
        named = export.graph_inputs(observations)
        expected = {name: list(shape) for name, (_, shape) in named.items()}
        expected |= {"reward": [], "state": list(self.start.shape)}
        found = {given.name: given.shape[1:] for given in self.session.get_inputs()}
        if found != expected:
            raise InvalidInput(f"the graph takes {found}, the card describes {expected}")
        self._keys = {name: key for name, (key, _) in named.items()}
        types = {given.name: given.type for given in self.session.get_inputs()}
        dtypes = {name: np.uint8 if types[name] == "tensor(uint8)" else np.float32 for name in named}
        arrays = {key: np.zeros((1, *shape), dtypes[name]) for name, (key, shape) in named.items()}
        observation = arrays if observations.images() else arrays[NUMBERS]
        action, state = self._run(observation, np.zeros(1, dtype=np.float32), self.start[None].copy())
        if action.shape[1:] != actions.shape or state.shape[1:] != self.start.shape:
            raise InvalidInput(f"the graph gives actions of shape {action.shape[1:]}, expected {actions.shape}")
        if not (np.isfinite(action).all() and np.isfinite(state).all()):
            raise InvalidInput("the graph's first step gives a NaN or an infinite value")

    def _begin(self, rows: int) -> ActingState:
        return Rows(self._run, self.start, self.mixed, rows)

    def _run(self, observation: Packed, reward: Array, state: Array, noise: Array | None = None) -> tuple[Array, Array]:
        arrays = arrays_of(observation)
        observed = {name: arrays[key] for name, key in self._keys.items()}
        action, state = self.session.run(None, {**observed, "reward": reward, "state": state})
        return action, state
