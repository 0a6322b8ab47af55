"""An update recorded once as a CUDA graph, and replayed without Python or launch overhead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

WARM_UP = 5
"""Calls before recording, in which libraries, compilers and the optimiser set themselves up."""


class Captured(Generic[Result]):
    """Calls a function; on a GPU, from the sixth call on, by replaying what it did.

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
        if self.device.type != "cuda":
            return self.function()
        self.calls += 1
        with torch.cuda.device(self.device):
            if self._graph is not None:
                self._graph.replay()
                return self._result
            if self.calls == 1:
                # What ran on another stream than the default one may be recorded later.
                self._aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            if self.calls <= WARM_UP:
                self._aside.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(self._aside):
                    result = self.function()
                torch.cuda.current_stream(self.device).wait_stream(self._aside)
                return result
            graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, stream=self._aside):
                self._result = self.function()
            self._graph = graph
            # Recording did not execute.
            graph.replay()
            return self._result
