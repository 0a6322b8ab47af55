"""Data that a reader takes from its files bit by bit, and what may become of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from aaren_rl.data.converted import Counts, Rows
from aaren_rl.data.spaces import Space
from aaren_rl.data.trajectories import Trajectories


@dataclass(frozen=True)
class Streamed:
    """Data before they are read.

    Attributes:
        id: of the dataset.
        files: that hold it.
        variant: what else determines its steps, as options of the reader.
        counts: of steps and episodes.
        bytes: of memory that all of it takes.
        spaces: of observations and actions; None for numbers.
        rows: reads all steps, with no more of them in memory at once than a block or an episode.
        whole: reads all steps into memory.
    """

    id: str
    files: tuple[Path, ...]
    variant: str
    counts: Counts
    bytes: int
    spaces: tuple[Space | None, Space | None]
    rows: Callable[[], Iterator[Rows]]
    whole: Callable[[], Trajectories]


Keep: TypeAlias = Callable[[Streamed], Trajectories]
"""Makes trajectories of data, in memory or on disk."""


def in_memory(streamed: Streamed) -> Trajectories:
    """The trajectories in memory."""
    return streamed.whole()
