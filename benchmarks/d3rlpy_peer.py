"""A peer in another process: d3rlpy's Decision Transformer, which pins another gymnasium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

import setting
from aaren_rl.experiments.measuring import Side
from aaren_rl.experiments.peers import worker

STEPS = 100_000
"""Steps of its made-up data, which it keeps as Python objects."""

LEFT_OUT = "no --d3rlpy was given"


class D3rlpy:
    """The worker under another interpreter, for rounds that alternate with ours.

    Args:
        peer: the worker.
    """

    def __init__(self, peer: worker.Worker) -> None:
        self._peer, self.versions = peer, peer.versions

    def side(self, do: Literal["step", "update"], calls: int) -> Side:
        """A side of a comparison, timed by the worker."""
        return lambda: float(self._peer.ask({"do": do, "calls": calls})["seconds"])


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
    with worker.start(python, Path(__file__).with_name("d3rlpy_worker.py"), sizes) as peer:
        yield D3rlpy(peer)
