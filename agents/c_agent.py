"""The agent that acts by its exported C, compiled on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from aaren_rl import checkpoint
from aaren_rl.agents.exported_agent import ExportedAgent
from aaren_rl.agents.states import Array
from aaren_rl.data.spaces import Packed, Space
from aaren_rl.errors import InvalidInput
from aaren_rl.stepping.c import compiled


class CAgent(ExportedAgent):
    """Acts like `DecisionAgent`, from the folder that `aaren_rl.stepping.c.export.to_c` wrote.

    Its code is compiled and run, so the folder has to be from somebody whom you would let run programs. It can be
    copied and pickled, also in mid-episode: the copy compiles the code anew.

    Args:
        folder: with agent.h, agent.c and export.json.
        acting: "stream" or "reset:STEPS"; None for what the card says.
        renew: as for `DecisionAgent`.

    Raises:
        CheckpointError: a file is missing, altered or of another version, or the first step is not finite.
        ExportFailed: the code does not compile.
        InvalidInput: there is no C compiler, or the exported step cannot act so.
    """

    step_file: ClassVar[str] = checkpoint.EXPORTED_SOURCE
    files: ClassVar[tuple[str, ...]] = (checkpoint.EXPORTED_HEADER, checkpoint.EXPORTED_SOURCE)
    runtime: ClassVar[str] = "c"
    code: ClassVar[str | None] = "an agent in C, which would be compiled and run"

    def __init__(self, folder: str | Path, acting: str | None = None, renew: int = 0) -> None:
        super().__init__(Path(folder), acting, renew)
        if str(self.acting) != self.written_acting:
            raise InvalidInput(
                f"this code acts by {self.written_acting}, which is written into it, and not by {self.acting}; export "
                f"the agent with --acting {self.acting}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """All but the library, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_library"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._library = _built(self._contents)

    def _prepare(self, contents: Mapping[str, bytes], described: Mapping[str, Any]) -> None:
        self._contents = dict(contents)
        self._library = _built(self._contents)

    def _open(self, contents: Mapping[str, bytes], observations: Space, actions: Space) -> None:
        self._actions = actions

    def _run(self, observation: Packed, reward: Array, state: Array, noise: Array | None = None) -> tuple[Array, Array]:
        return self._library.run_packed(self._actions)(observation, reward, state)


def _built(contents: Mapping[str, bytes]) -> compiled.Library:
    compiler = compiled.find_compiler()
    if compiler is None:
        raise InvalidInput("an agent in C needs a C compiler here; install gcc or clang, or set CC to its path")
    # A loaded library outlives its file.
    with TemporaryDirectory() as folder:
        return compiled.Library.build(contents, Path(folder), compiler)
