"""Record what a function starts on a CUDA device, and start all of it at once from then on.

What is recorded are operations on memory: the function must read and write the same memory each
time, and may neither wait for the device nor decide by what Python has counted. Replayed, it does
again what it did with that memory. (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def has_cuda_graphs(device: torch.device) -> bool:
    """Tell whether a device can record and replay what it does."""
    return hasattr(backend_of(device), "CUDAGraph")


def backend_of(device: torch.device) -> Any:
    """Return the part of torch that works a device: ``torch.cuda``."""
    return getattr(torch, device.type, None)


@cache
def recording_stream(device: torch.device) -> Any:
    """Return the stream of a device that records: one, since libraries keep memory for each."""
    return backend_of(device).Stream(device=device)


class GraphedFunction:
    """Call a function without arguments: first as it is, then recorded, from then on replayed.

    Each of these calls does the function's work once. The first, on the stream that will record,
    lets libraries and kernels allocate and load what they need, which a recording may not.

    Args:
        device: where the function works.
        generator: which it draws random numbers from, if not the device's own.
    """

    def __init__(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.device = device
        self.generator = generator
        self.backend = backend_of(device)
        self.stream = recording_stream(device)
        self.is_warm = False
        self.graph: Any = None
        self.result: Tensor | None = None

    def forget(self) -> None:
        """Let go of the recording, because the function will work on other memory."""
        self.is_warm, self.graph, self.result = False, None, None

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """Do the work of the function, the same one each time.

        Returns:
            what it returns; what was returned before may be overwritten.
        """
        if not self.is_warm:
            self.is_warm = True
            return self._run_beside(function)
        if self.graph is None:
            self._record(function)
        self.graph.replay()
        assert self.result is not None, "a recording has a result"
        return self.result

    def _run_beside(self, function: Callable[[], Tensor]) -> Tensor:
        """Run the function on the stream that records, between what comes before and after."""
        current = self.backend.current_stream(self.device)
        self.stream.wait_stream(current)
        with self.backend.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def _record(self, function: Callable[[], Tensor]) -> None:
        graph = self.backend.CUDAGraph()
        if self.generator is not None:
            graph.register_generator_state(self.generator)
        # other threads, such as those that load data, may go on with what a recording may not do
        with self.backend.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.result = function()
        self.graph = graph
