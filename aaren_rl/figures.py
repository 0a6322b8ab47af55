"""Draws and saves every picture of this library in one style."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yields a figure to draw into, and saves it when the block ends.

    Args:
        path: file of the picture; its folder is made if it is missing.
        width: in inches.
        height: in inches.
    """
    # Imported here, since it takes seconds, and without pyplot, which looks for a window system.
    import matplotlib
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=150)
