"""A program in another interpreter that answers lines of JSON with lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from aaren_rl.errors import InvalidInput

D3RLPY = "make an environment with: python -m venv d3 && d3/bin/pip install d3rlpy; then pass --d3rlpy d3/bin/python"
"""How to come by an interpreter with d3rlpy, which pins another gymnasium."""


class Worker:
    """The other program; its first line, before any order, holds its `versions`.

    Args:
        process: process of the program.
        errors: file that receives its standard error.

    Raises:
        InvalidInput: the program ended, for instance because the interpreter lacks a package.
    """

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors
        self.versions: dict[str, str] = self._answer(f"; {D3RLPY}")["versions"]

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer to an order.

        Raises:
            InvalidInput: the program ended; the message is its last line.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words say more
        return self._answer()

    def _answer(self, hint: str = "") -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip()
            if not hint:
                # Into the log of the run, of which the message is the last line.
                print(said, file=sys.stderr)
            raise InvalidInput(f"d3rlpy's worker ended: {(said.splitlines() or ['no message'])[-1]}{hint}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def start(python: Path, program: Path, settings: dict[str, Any]) -> Iterator[Worker]:
    """Runs a program while the context lasts.

    Args:
        python: interpreter with d3rlpy.
        program: file of the program, which gets the settings as JSON in its first argument.
        settings: of the program.

    Raises:
        InvalidInput: the interpreter does not exist, or cannot run d3rlpy.
    """
    # -I keeps the program's folder off the path, where module names could hide those of d3rlpy.
    command = [str(python), "-I", str(program), json.dumps(settings)]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        except OSError as error:
            raise InvalidInput(f"--d3rlpy {python} cannot be run ({error}); {D3RLPY}") from error
        # Leaving closes its input and waits for it; in the midst of a training it would go on for minutes.
        with process:
            try:
                yield Worker(process, errors)
            finally:
                process.kill()
