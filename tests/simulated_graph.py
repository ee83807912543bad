"""CUDA graphs of the simulated device: what was recorded is done again to the same memory.

As on CUDA, a recording does nothing but allocate: what an operation would write stays unwritten
until the graph is replayed, and then it reads and writes the memory that it had when recorded.
Numbers of Python are those of the recording forever. What makes the CPU wait raises, and so do
random numbers of a generator that was not registered. It cannot show errors of the recording
itself: kernels that are loaded or libraries that allocate while it runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


@dataclass
class Recorded:
    """An operation, and the memory that it reads and writes."""

    op: Any
    args: Any
    kwargs: dict[str, Any]
    result: Any


@dataclass
class SimulatedGraph:
    """Records what a simulated device would do, and does it when replayed.

    recorded: the operations, in order.
    generators: sources of random numbers that were registered; the device's own always is.
    num_replays: how often it was replayed.
    """

    recorded: list[Recorded] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    num_replays: int = 0

    # the one that is recording
    current: ClassVar["SimulatedGraph | None"] = None
    # all that were made, to be looked at
    made: ClassVar[list["SimulatedGraph"]] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def record(self, op: Any, args: Any, kwargs: dict[str, Any], *, waits: bool) -> Any:
        """Take note of an operation on CPU data; return the memory of its result."""
        if waits:
            raise RuntimeError(f"operation not permitted when stream is capturing ({op})")
        generator = kwargs.get("generator")
        # an operation sees the same source as another object
        registered = {each._cdata for each in self.generators}
        if generator is not None and generator._cdata not in registered:
            raise RuntimeError(f"the generator is not registered with the graph ({op})")
        if writes(op):
            result = argument_written_by(op, args, kwargs)
        else:
            # what an operation makes of values that are not there yet is not looked at: it is only
            # run for the shape and the memory of its result
            result = op(*args, **kwargs)
        self.recorded.append(Recorded(op, args, kwargs, result))
        return result

    def replay(self) -> None:
        self.num_replays += 1
        # on the data itself: what the device checks was checked when it was recorded
        with _disable_current_modes():
            for each in self.recorded:
                result = each.op(*each.args, **each.kwargs)
                if not writes(each.op):
                    for memory, values in zip(flat(each.result), flat(result), strict=True):
                        memory.copy_(values)


@contextmanager
def recording(
    graph: SimulatedGraph, *, stream: "SimulatedStream", capture_error_mode: str
) -> Iterator[None]:
    """Record into a graph, as ``torch.cuda.graph`` does."""
    assert stream is not None and capture_error_mode in ("global", "thread_local", "relaxed")
    states = [each.get_state() for each in (torch.default_generator, *graph.generators)]
    SimulatedGraph.current = graph
    SimulatedGraph.made.append(graph)
    try:
        yield
    finally:
        SimulatedGraph.current = None
        # nothing was drawn yet, and nothing computed
        for generator, state in zip(
            (torch.default_generator, *graph.generators), states, strict=True
        ):
            generator.set_state(state)
        with _disable_current_modes():
            for each in graph.recorded:
                if not writes(each.op) and not is_view(each):
                    for memory in flat(each.result):
                        spoil(memory)


def spoil(memory: Tensor) -> None:
    """Make sure that nobody takes what was not computed for a result."""
    memory.fill_(torch.nan if memory.is_floating_point() else 1)


def writes(op: Any) -> bool:
    """Tell whether an operation changes what it is given."""
    return bool(op._schema.is_mutable)


def argument_written_by(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operation changes, which is its result."""
    declared = op._schema.arguments
    given = {argument.name: value for argument, value in zip(declared, args, strict=False)}
    given.update(kwargs)
    written = [
        given[each.name] for each in declared if each.alias_info and each.alias_info.is_write
    ]
    assert len(written) == 1, f"{op} changes one tensor"
    return written[0]


def is_view(recorded: Recorded) -> bool:
    """Tell whether the result lies in memory of what an operation was given."""
    before = {t.untyped_storage().data_ptr() for t in flat((recorded.args, recorded.kwargs))}
    return any(t.untyped_storage().data_ptr() in before for t in flat(recorded.result))


def flat(value: Any) -> list[Tensor]:
    """List the tensors in a value."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class SimulatedStream:
    """A stream on which nothing is late."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: "SimulatedStream") -> None:
        assert isinstance(other, SimulatedStream)


@contextmanager
def on_stream(stream: SimulatedStream) -> Iterator[None]:
    """Do work on a stream, as ``torch.cuda.stream`` does."""
    assert isinstance(stream, SimulatedStream)
    yield


GRAPH_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "CUDAGraph": SimulatedGraph,
    "graph": recording,
    "Stream": SimulatedStream,
    "current_stream": SimulatedStream,
    "stream": on_stream,
}
