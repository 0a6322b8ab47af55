"""The agent that acts by its exported torch program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from aaren_rl import checkpoint
from aaren_rl.agents.exported_agent import ExportedAgent
from aaren_rl.agents.states import Array
from aaren_rl.data.spaces import Packed, Space
from aaren_rl.errors import CheckpointError
from aaren_rl.stepping import torch_program


class TorchAgent(ExportedAgent):
    """Acts like `DecisionAgent`, from the folder that `aaren_rl.stepping.torch_program.to_torch` wrote.

    torch runs what a program's file tells it to as it loads it, so the folder has to be from somebody whom you would
    let run programs. The agent can be copied and pickled, also in mid-episode: the copy loads the program anew.

    Args:
        folder: with agent.pt2 and export.json.
        acting: "stream" or "reset:STEPS"; None for what the card says.
        renew: as for `DecisionAgent`.

    Raises:
        CheckpointError: a file is missing, altered or of another version; this torch cannot load the program; it is
            not the one that the card describes, or its first step is not finite.
        InvalidInput: the exported step cannot act so.
    """

    step_file: ClassVar[str] = checkpoint.EXPORTED_PROGRAM
    files: ClassVar[tuple[str, ...]] = (checkpoint.EXPORTED_PROGRAM,)
    runtime: ClassVar[str] = "torch.export"
    code: ClassVar[str | None] = "a torch program, which can run code as it is loaded"

    def __init__(self, folder: str | Path, acting: str | None = None, renew: int = 0) -> None:
        super().__init__(Path(folder), acting, renew)

    def __getstate__(self) -> dict[str, Any]:
        """All but the loaded program, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._step = torch_program.running(self._program)

    def _prepare(self, contents: Mapping[str, bytes], described: Mapping[str, Any]) -> None:
        self._program = contents[checkpoint.EXPORTED_PROGRAM]
        try:
            self._step = torch_program.running(self._program)
        # Whatever torch raises for a program of another version.
        except Exception as error:
            reason, version = (checkpoint.shortened(str(text)) for text in (error, described.get("torch")))
            raise CheckpointError(
                f"torch cannot load {checkpoint.EXPORTED_PROGRAM}: {type(error).__name__}: {reason}; it was exported "
                f"by torch {version}, this is {torch.__version__}"
            ) from error

    def _open(self, contents: Mapping[str, bytes], observations: Space, actions: Space) -> None:
        self._images = observations.images()

    def _image_dtype(self, key: str) -> type[np.generic]:
        return np.uint8 if key in self._images and self._images[key].dtype == "uint8" else np.float32

    def _run(self, observation: Packed, reward: Array, state: Array, noise: Array | None = None) -> tuple[Array, Array]:
        return self._step(observation, reward, state)
