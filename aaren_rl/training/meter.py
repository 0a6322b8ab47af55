"""Metrics between two logged points."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

WATCHED = ("loss", "gradient_norm")
"""Metrics that are finite as long as training goes well; "gradient_norm/<network>" likewise."""


class Meter:
    """Sums metrics on the device from one logged point to the next, and the time they took."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._updates = 0
        self._began, self._paused = time.perf_counter(), 0.0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds the metrics of an update."""
        self._updates += 1
        for name, value in metrics.items():
            self._counts[name] = self._counts.get(name, 0) + 1
            if name in self._sums:
                self._sums[name] += value
            else:
                self._sums[name] = value.detach().clone()

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not spent in updates."""
        self._paused += seconds

    def not_finite(self) -> dict[str, float]:
        """The sums since the last reading, of losses and gradient norms only, that are no finite numbers."""
        watched = {name: value for name, value in self._sums.items() if name.partition("/")[0] in WATCHED}
        bad = {name: value[~torch.isfinite(value)] for name, value in watched.items()}
        return {name: value.flatten()[0].item() for name, value in bad.items() if value.numel()}

    def read(self, models: int) -> tuple[list[dict[str, float]], int, float]:
        """Means of the metrics for each model, updates and seconds since the last reading; starts anew."""
        values = {name: value.expand(models).tolist() for name, value in self._sums.items()}
        points = [
            {name: value[number] / self._counts[name] for name, value in values.items()} for number in range(models)
        ]
        updates, seconds = self._updates, time.perf_counter() - self._began - self._paused
        self._restart()
        return points, updates, seconds
