"""A peer in another process: d3rlpy's Decision Transformer, which pins another gymnasium."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import torch

import setting
from aaren_rl.errors import InvalidInput
from aaren_rl.experiments.measuring import Side

STEPS = 100_000
"""Steps of its made-up data, which it keeps as Python objects."""

HOW = "make an environment with: python -m venv d3 && d3/bin/pip install d3rlpy; then pass --d3rlpy d3/bin/python"
LEFT_OUT = "no --d3rlpy was given"


class D3rlpy:
    """The worker under another interpreter, for rounds that alternate with ours.

    Args:
        process: process of the worker.
        errors: file that receives its standard error.

    Raises:
        InvalidInput: the worker ended, for instance because d3rlpy is missing.
    """

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors
        self.versions: dict[str, str] = self._answer()["versions"]

    def side(self, do: Literal["step", "update"], calls: int) -> Side:
        """A side of a comparison, timed by the worker."""

        def play() -> float:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, "calls": calls}) + "\n")
            self._process.stdin.flush()
            return float(self._answer()["seconds"])

        return play

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["no message"]
            raise InvalidInput(f"d3rlpy's worker ended: {said[-1]}; {HOW}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def start(python: Path) -> Iterator[D3rlpy]:
    """Runs the worker while the context lasts.

    Args:
        python: interpreter with d3rlpy.

    Raises:
        InvalidInput: the interpreter does not exist, or cannot run d3rlpy.
    """
    shape, schedule = setting.MODEL, setting.TRAINING
    sizes = {
        "threads": torch.get_num_threads(),
        "observation": setting.OBSERVATION_SIZE,
        "action": setting.ACTION_SIZE,
        "width": shape.width,
        "blocks": shape.blocks,
        "heads": shape.heads,
        "dropout": shape.dropout,
        "context": setting.CONTEXT,
        "episode": setting.EPISODE,
        "steps": STEPS,
        "batch": schedule.batch_size,
        "learning_rate": schedule.learning_rate,
        "weight_decay": schedule.weight_decay,
        "clip": schedule.clip,
    }
    # -I keeps this folder off the path, where module names could hide those of d3rlpy.
    command = [str(python), "-I", str(Path(__file__).with_name("d3rlpy_worker.py")), json.dumps(sizes)]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        except OSError as error:
            raise InvalidInput(f"--d3rlpy {python} cannot be run ({error}); {HOW}") from error
        # Leaving closes its input, which ends the worker, and waits for it.
        with process:
            yield D3rlpy(process, errors)
