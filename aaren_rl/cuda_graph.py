"""A function captured once as a CUDA graph, and replayed without Python or launch overhead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

WARM_UP = 5
"""Calls before the capture, in which libraries, compilers and the optimiser set themselves up."""


class CudaGraph(Generic[Result]):
    """Calls a function; on a GPU, from the sixth call on, by replaying what it did.

    The function takes no arguments, never waits for the device, and works on tensors of the same shapes at the same
    addresses every time. Results live in the graph's static buffers; the next call overwrites them.

    Args:
        function: to call.
        generators: random generators it draws from, besides the device's default one.
        device: whose work is captured; on a CPU the function is simply called.
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
                # What ran on another stream than the default one may be captured later.
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
            # The capture did not execute.
            graph.replay()
            return self._result
