"""What a run writes down while it trains: metrics.jsonl, TensorBoard events and a picture of the learning curve."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from aaren_rl.errors import CheckpointError, DataError
from aaren_rl.figures import drawn
from aaren_rl.folders import replace_file

METRICS = "metrics.jsonl"

CHECKING = "throughput/seconds_checking"
"""Metric that every evaluation logs, whatever else it finds."""


class RunLog:
    """Appends metrics to a run folder: a callback.

    Args:
        folder: of the run; made if need be.
        update: where the run stands; what was logged after it, before an interruption, is dropped.
        evaluates: True if the run evaluates that update again; what was logged of its evaluation is dropped too.

    Raises:
        CheckpointError: here and later, where nothing can be written, on a full disk for instance.
    """

    def __init__(self, folder: Path, update: int = 0, evaluates: bool = False) -> None:
        self._folder = folder
        with _writing(folder):
            self._open(folder, update, evaluates)

    def _open(self, folder: Path, update: int, evaluates: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = [point for point in read_metrics(folder) if point["update"] <= update] if update else []
        if evaluates:
            kept = [point for point in kept if point["update"] < update or CHECKING not in point]
        replace_file(folder / METRICS, "".join(json.dumps(point) + "\n" for point in kept))
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._board = _board(folder, purge_step=update + 1 if update else None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with _writing(self._folder):
                self._file.close()
                self._board.close()
        except CheckpointError:
            # What broke off the run says more.
            if kind is None:
                raise

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an update, each under its name as TensorBoard's tag."""
        if not metrics:
            return
        with _writing(self._folder):
            self._file.write(json.dumps({"update": update, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add_scalar(name, value, update)


def _board(folder: Path, **options: Any) -> SummaryWriter:
    """TensorBoard's writer, whose thread prints no traceback of errors: it hands them to the next call anyway."""
    if threading.excepthook is not _skip_board:
        _skip_board.before = threading.excepthook  # type: ignore[attr-defined]
        threading.excepthook = _skip_board
    return SummaryWriter(str(folder), **options)


def _skip_board(args: threading.ExceptHookArgs) -> None:
    if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
        _skip_board.before(args)  # type: ignore[attr-defined]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says of an error in writing what was to be written, and how to go on."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the log in {folder} cannot be written: {error}; make room, and go on from the last checkpoint with "
            f"--resume {folder} (in Python resume=True)"
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged points of a run, in order; lines that are cut off or damaged are left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    points = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            point = json.loads(line)
            if _is_point(point):
                points.append(point)
    return points


def _is_point(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("update"), int):
        return False
    return all(isinstance(value, int | float) for value in found.values())


def log_hyperparameters(folder: Path, parameters: dict[str, Any], outcome: dict[str, float]) -> None:
    """Adds the run to TensorBoard's table of hyperparameters."""
    flat = {
        name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in parameters.items()
    }
    with _writing(folder):
        board = _board(folder)
        board.add_hparams(flat, outcome, run_name=".")
        board.close()


def draw_curve(folder: Path, title: str, behaviour_return: float | None = None) -> Path:
    """Draws loss and returns over updates into learning-curve.png.

    Args:
        folder: of the run.
        title: above the picture.
        behaviour_return: mean return of the data, drawn as a line to compare with.

    Returns:
        The picture's path.

    Raises:
        DataError: nothing was logged.
    """
    points = read_metrics(folder)
    if not points:
        raise DataError(f"{folder / METRICS} holds no points to draw; train first")
    path = folder / "learning-curve.png"
    with drawn(path, 9, 3.4) as figure:
        losses, returns = figure.subplots(1, 2)
        # Where there is nothing to learn, the loss is 0 from the start.
        positive = any(point.get("train/loss", 0.0) > 0 for point in points)
        for name, label, marker in (("train/loss", "training", ""), ("validation/loss", "held out", "o")):
            own = [(point["update"], point[name]) for point in points if name in point]
            if own:
                losses.plot(*zip(*own, strict=True), marker=marker, label=label)
        losses.set(xlabel="update", ylabel="loss", yscale="log" if positive else "linear")
        losses.legend(frameon=False)
        name = "evaluation/return"
        own = [(point["update"], point[name]) for point in points if name in point]
        if own:
            returns.plot(*zip(*own, strict=True), marker="o", label="agent")
        if behaviour_return is not None:
            returns.axhline(behaviour_return, color="grey", linestyle="--", label="mean return of the data")
        returns.set(xlabel="update", ylabel="return")
        if own or behaviour_return is not None:
            returns.legend(frameon=False)
        figure.suptitle(title)
    return path
