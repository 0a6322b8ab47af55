"""What is called while a run trains: the contract, the calls, early stopping and the progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from tqdm import tqdm

from aaren_rl.errors import InvalidInput

Better = Literal["lower", "higher"]


class Callback(Protocol):
    """Called by a run after every update, and again where metrics of that update come later, as an evaluation's do.

    A callback that has something to close is a context manager: the run enters it at its start and leaves it at its
    end.
    """

    def __call__(self, update: int, metrics: MutableMapping[str, float], /) -> bool | None:
        """Looks at an update.

        Args:
            update: number of updates made.
            metrics: by TensorBoard's tag (docs/metrics.md); empty between two logged points. With several seeds, their
                means. A metric that is added here is seen by the callbacks after this one, and goes into metrics.jsonl
                and TensorBoard; with several seeds, into those of each.

        Returns:
            True to end the run after this update, as if it had been the last.
        """
        ...


def call_all(callbacks: Sequence[Callback], update: int, metrics: Mapping[str, float]) -> tuple[bool, dict[str, float]]:
    """Calls callbacks in order, each with the run's metrics and those that the ones before it added.

    All are called, whoever ends the run.

    Returns:
        Whether one of them ends the run, and the metrics that they added.

    Raises:
        InvalidInput: a callback changed a metric that was there, added one that is no number, or returned neither a
            bool nor None.
    """
    known, ends = dict(metrics), False
    for callback in callbacks:
        point: dict[str, Any] = dict(known)
        ended = callback(update, point)
        # A logger's return value would end the run unasked.
        if not isinstance(ended, bool | np.bool_ | None):
            raise InvalidInput(
                f"a callback returned a {type(ended).__name__}; expected True to end the run, or None (metrics are "
                'added to the mapping that it is given, as metrics["mine/norm"] = norm)'
            )
        ends |= bool(ended)
        known |= _added(known, point)
    return ends, {name: value for name, value in known.items() if name not in metrics}


def _added(known: Mapping[str, float], point: Mapping[Any, Any]) -> dict[str, float]:
    """What a callback added to the metrics that it was given, as numbers."""
    for name, value in known.items():
        # A NaN is not equal to itself.
        if name not in point or not (point[name] is value or point[name] == value):
            raise InvalidInput(f"a callback changed the metric {name!r}; add one of another name")
    found = {}
    for name, value in point.items():
        if name in known:
            continue
        if not isinstance(name, str) or name in ("", "update"):
            raise InvalidInput(f"a callback added a metric named {name!r}; expected a tag, as 'mine/norm'")
        found[name] = _number(name, value)
    return found


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    # The last: a tensor of several numbers.
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"a callback added the metric {name!r} with the value {value!r}; expected a number"
        ) from error


class EarlyStop:
    """A callback that ends the run once a metric has not improved for a number of its points.

    A resumed run begins to count anew.

    Args:
        metric: its tag, as "validation/loss", which comes every `evaluate_every` updates.
        better: "lower" or "higher".
        patience: points in a row without a new best one, after which the run ends.

    Raises:
        InvalidInput: `better` or the patience is out of range.
    """

    def __init__(self, metric: str, better: Better, patience: int) -> None:
        if better not in get_args(Better):
            raise InvalidInput(f"better is {better!r}; expected one of {', '.join(get_args(Better))}")
        if patience < 1:
            raise InvalidInput(f"patience is {patience}; expected at least 1 point")
        self.metric, self.better, self.patience = metric, better, patience
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self._without, self._seen = 0, False

    def __enter__(self) -> EarlyStop:
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and not self._seen:
            warnings.warn(
                f"the run ended without a metric {self.metric!r}, so nothing could stop it early; docs/metrics.md "
                "lists the metrics, and callbacks that add one stand before this one",
                RuntimeWarning,
                stacklevel=2,
            )

    def __call__(self, update: int, metrics: Mapping[str, float]) -> bool:
        """See `Callback`."""
        if self.metric not in metrics:
            return False
        value, self._seen = metrics[self.metric], True
        sign = 1 if self.better == "higher" else -1
        if not np.isnan(value) and (self.best is None or sign * value > sign * self.best):
            self.best, self._without = value, 0
        else:
            self._without += 1
        return self._without >= self.patience


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
