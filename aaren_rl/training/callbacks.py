"""What is called while a run trains: the contract, and the progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tqdm import tqdm


class Callback(Protocol):
    """Called by a run after every update, and again where metrics of that update come later, as an evaluation's do.

    A callback that has something to close is a context manager: the run enters it at its start and leaves it at its
    end.
    """

    def __call__(self, update: int, metrics: Mapping[str, float], /) -> bool | None:
        """Looks at an update.

        Args:
            update: number of updates made.
            metrics: by TensorBoard's tag (docs/metrics.md); empty between two logged points. With several seeds, their
                means.

        Returns:
            True to end the run after this update, as if it had been the last.
        """
        ...


class Progress:
    """A progress bar on stderr.

    Args:
        updates: of the whole run.
        update: made so far.
    """

    def __init__(self, updates: int, update: int) -> None:
        self._bar = tqdm(total=updates, initial=update, unit="update", mininterval=1.0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._bar.update(update - self._bar.n)
        if "train/loss" in metrics:
            self._bar.set_postfix(loss=f"{metrics['train/loss']:.4f}")
