"""An update recorded once as a CUDA graph, and replayed without Python or launch overhead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

WARM_UP = 5
"""Calls before recording, in which libraries, compilers and the optimiser set themselves up."""


class Captured(Generic[Result]):
    """Calls a function; on a GPU, from the seventh call on, by replaying what it did.

    The function must take nothing, never wait for the device, and always work on tensors of the same shapes at the same
    places. What it returns lies where it lay at the recording: use it before the next call.

    Args:
        function: to call.
        generators: random generators it draws from, besides the device's own.
        device: whose work is recorded; on a CPU the function is simply called.
    """

    def __init__(
        self, function: Callable[[], Result], generators: Sequence[torch.Generator], device: torch.device
    ) -> None:
        self.function, self.generators, self.device = function, generators, device
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result

    def __call__(self) -> Result:
        """The function's result."""
        self.calls += 1
        if self.device.type != "cuda":
            return self.function()
        if self.calls <= WARM_UP:
            # Work on another stream than the default one may be recorded later.
            aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(aside):
                result = self.function()
            torch.cuda.current_stream(self.device).wait_stream(aside)
            return result
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self._graph.register_generator_state(generator)
            # Recording does not execute.
            with torch.cuda.graph(self._graph):
                self._result = self.function()
        self._graph.replay()
        return self._result
