"""Generated C on this machine: compiled into a shared library and called."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aaren_rl.checkpoint import EXPORTED_SOURCE
from aaren_rl.data.packed import numbers_of
from aaren_rl.data.spaces import Packed, Space
from aaren_rl.ops.numpy_layers import Array
from aaren_rl.stepping.exported import ExportFailed, Run

FLAGS = ("-std=c99", "-O3", "-march=native")
"""Of the library: for speed on this machine."""


def find_compiler() -> list[str] | None:
    """Words of the command of the C compiler: what CC says, else cc, gcc or clang; None if there is none."""
    commands = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    return next((command for command in commands if command and shutil.which(command[0])), None)


def version_of(compiler: list[str]) -> str:
    """The first line of what a compiler says of itself."""
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return (said.stdout.splitlines() or [Path(compiler[0]).name])[0]


class Library:
    """The functions of a compiled agent.c.

    Args:
        file: the shared library.

    Attributes:
        steps: `agent_steps`, of a number of environments and the addresses of its arrays.
    """

    def __init__(self, file: Path) -> None:
        self.steps = ctypes.CDLL(str(file)).agent_steps
        self.steps.restype = None
        self.steps.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]

    @classmethod
    def build(
        cls, files: Mapping[str, bytes], folder: Path, compiler: Sequence[str], flags: Sequence[str] = FLAGS
    ) -> Library:
        """Compiles an agent.

        Args:
            files: agent.h and agent.c.
            folder: for them and the library.
            compiler: words of the compiler's command.
            flags: of the compiler.

        Raises:
            ExportFailed: it does not compile; the message is the compiler's.
        """
        for name, content in files.items():
            (folder / name).write_bytes(content)
        out = folder / "agent.so"
        command = [*compiler, *flags, "-shared", "-fPIC", "-o", str(out), str(folder / EXPORTED_SOURCE), "-lm"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            lines = said.stderr.strip().splitlines() or ["no message"]
            hint = "; CC names this compiler, which has to be one for this machine" if os.environ.get("CC") else ""
            raise ExportFailed(f"{shlex.join(command)} failed: {lines[0]}{hint}")
        return cls(out)

    def run(self, observation: Array, reward: Array, state: Array, actions: int) -> tuple[Array, Array]:
        """A step of several environments.

        Args:
            observation: packed numbers, (environments, numbers).
            reward: (environments,).
            state: (environments, state size).
            actions: numbers of an action.

        Returns:
            The actions, (environments, actions) float32, and the new states.
        """
        rows = len(state)
        observed = np.ascontiguousarray(observation.reshape(rows, -1), np.float32)
        rewards = np.ascontiguousarray(reward, np.float32)
        after, acted = np.array(state, np.float64, order="C"), np.empty((rows, actions), np.float32)
        self.steps(rows, after.ctypes.data, observed.ctypes.data, rewards.ctypes.data, acted.ctypes.data)
        return acted, after

    def run_packed(self, space: Space) -> Run:
        """The same with packed observations, and actions of a space."""

        def run(observation: Packed, reward: Array, state: Array) -> tuple[Array, Array]:
            acted, after = self.run(numbers_of(observation), reward, state, space.size)
            return acted.reshape(len(acted), *space.shape), after

        return run
