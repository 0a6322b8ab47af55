"""Captures a function once as a CUDA graph, and replays it without the overhead of Python and launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

WARM_UP = 5
"""Calls before the capture; libraries, compilers and the optimiser initialise in them."""


class CudaGraph(Generic[Result]):
    """Calls a function; on a GPU, every call from the sixth on replays a CUDA graph of it.

    The function takes no arguments and never waits for the device. Its tensors have the same shapes and addresses at
    every call. Results live in the graph's static buffers; the next call overwrites them.

    Args:
        function: to call.
        generators: random generators that it draws from, besides the device's default one.
        device: device whose work is captured; on a CPU the function is called as it is.
    """

    def __init__(
        self, function: Callable[[], Result], generators: Sequence[torch.Generator], device: torch.device
    ) -> None:
        self.function, self.generators, self.device = function, generators, device
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result

    def __call__(self) -> Result:
        """Returns the function's result."""
        if self.device.type != "cuda":
            return self.function()
        self.calls += 1
        with torch.cuda.device(self.device):
            if self._graph is not None:
                self._graph.replay()
                return self._result
            if self.calls == 1:
                # A capture needs work that warmed up on a stream other than the default one.
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
            # A capture does not execute.
            graph.replay()
            return self._result
