"""The agent that acts with an exported graph, by onnxruntime and NumPy alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from aaren_rl import checkpoint
from aaren_rl.agents.exported_agent import ExportedAgent
from aaren_rl.agents.states import Array
from aaren_rl.data.packed import arrays_of
from aaren_rl.data.spaces import Packed, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.stepping import onnx as export

OTHER_FILES = re.compile(rb"\n(\x08|\x88\x80*\x00)location")
"""Key, as protobuf writes it, under which a graph names a file that holds weights of it."""


class OnnxAgent(ExportedAgent):
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

    step_file: ClassVar[str] = checkpoint.EXPORTED_GRAPH
    files: ClassVar[tuple[str, ...]] = (checkpoint.EXPORTED_GRAPH,)
    runtime: ClassVar[str] = "onnxruntime"

    def __init__(self, folder: str | Path, threads: int = 1, acting: str | None = None, renew: int = 0) -> None:
        export.require_packages("onnxruntime")
        self._threads = threads
        super().__init__(Path(folder), acting, renew)

    def __getstate__(self) -> dict[str, Any]:
        """All but the session, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.session = export.session(self._graph, self._threads)

    def _open(self, contents: Mapping[str, bytes], observations: Space, actions: Space) -> None:
        self._graph = contents[checkpoint.EXPORTED_GRAPH]
        if OTHER_FILES.search(self._graph):
            raise InvalidInput("the graph takes weights from other files, which an export never does")
        self.session = export.session(self._graph, self._threads)
        named = export.graph_inputs(observations)
        expected = {name: list(shape) for name, (_, shape) in named.items()}
        expected |= {"reward": [], "state": list(self.start.shape)}
        found = {given.name: given.shape[1:] for given in self.session.get_inputs()}
        if found != expected:
            raise InvalidInput(f"the graph takes {found}, the card describes {expected}")
        self._keys = {name: key for name, (key, _) in named.items()}
        types = {given.name: given.type for given in self.session.get_inputs()}
        self._bytes = {key for name, key in self._keys.items() if types[name] == "tensor(uint8)"}

    def _image_dtype(self, key: str) -> type[np.generic]:
        return np.uint8 if key in self._bytes else np.float32

    def _run(self, observation: Packed, reward: Array, state: Array, noise: Array | None = None) -> tuple[Array, Array]:
        arrays = arrays_of(observation)
        observed = {name: arrays[key] for name, key in self._keys.items()}
        action, state = self.session.run(None, {**observed, "reward": reward, "state": state})
        return action, state
