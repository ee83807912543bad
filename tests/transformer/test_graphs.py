"""A function that is recorded and replayed does what it does when it is called."""

import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from meshgpt_pytorch.transformer.graphs import GraphedFunction, backend_of, has_cuda_graphs
from tests.simulated_device import NAME, SimulatedDevice
from tests.simulated_graph import SimulatedGraph


@pytest.fixture(autouse=True)
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        SimulatedGraph.made.clear()
        yield device


def graphed(generator: torch.Generator | None = None) -> GraphedFunction:
    return GraphedFunction(torch.device(NAME), generator)


class Counting:
    """Counts calls twice: on the device, and in Python, where recording sees it once."""

    def __init__(self) -> None:
        self.on_device = torch.zeros(2, device=NAME)
        self.in_python = 0

    def __call__(self) -> Tensor:
        self.in_python += 1
        self.on_device[1:].add_(1)
        return self.on_device * 10 + self.in_python


def test_each_call_does_the_work_once_to_the_same_memory():
    count = Counting()
    function = graphed()
    results = [function(count).tolist() for _ in range(4)]
    # called, recorded and replayed, replayed: from then on Python counts no more
    assert results == [[1, 11], [2, 22], [2, 32], [2, 42]]
    assert count.on_device.tolist() == [0, 4]
    assert [graph.num_replays for graph in SimulatedGraph.made] == [3]


def test_after_other_memory_came_it_is_recorded_anew():
    count = Counting()
    function = graphed()
    for _ in range(3):
        function(count)
    count.on_device = count.on_device.clone()
    function.forget()
    assert [function(count).tolist()[1] for _ in range(3)] == [43, 54, 64]
    assert [graph.num_replays for graph in SimulatedGraph.made] == [2, 2]


def test_a_graph_is_let_go_of_with_its_function():
    function = graphed()
    for _ in range(2):
        function(Counting())
    graph = weakref.ref(function.graph)
    SimulatedGraph.made.clear()
    del function
    assert graph() is None


@pytest.mark.parametrize("has_own", [True, False])
def test_random_numbers_are_those_of_calls_without_a_graph(has_own):
    def numbers(seed: int, *, is_graphed: bool) -> Tensor:
        torch.manual_seed(seed)
        generator = torch.Generator(NAME).manual_seed(seed) if has_own else None

        def draw() -> Tensor:
            return torch.rand(2, device=NAME, generator=generator) + 1

        function = graphed(generator)
        return torch.cat([function(draw).clone() if is_graphed else draw() for _ in range(4)])

    assert torch.equal(numbers(0, is_graphed=True), numbers(0, is_graphed=False))
    assert not torch.equal(numbers(0, is_graphed=True), numbers(1, is_graphed=True))


def test_the_cpu_has_no_cuda_graphs():
    assert has_cuda_graphs(torch.device(NAME)) and has_cuda_graphs(torch.device("cuda"))
    assert not has_cuda_graphs(torch.device("cpu"))


# the simulated graph itself


def test_a_recording_computes_nothing():
    total = torch.zeros(2, device=NAME)
    graph = SimulatedGraph()
    state = torch.default_generator.get_state()
    backend = backend_of(torch.device(NAME))
    with backend.graph(graph, stream=backend.Stream(), capture_error_mode="global"):
        total.add_(torch.rand(2, device=NAME))
        view, result = total[:1], total * 2
    assert total.tolist() == view.tolist() * 2 == [0, 0]
    assert result.isnan().all()
    assert torch.equal(torch.default_generator.get_state(), state)
    graph.replay()
    assert total[0] == view[0] > 0 and torch.equal(result, total * 2)


WAITING = {
    "item": lambda tensor: tensor.sum().item(),
    "bool": lambda tensor: bool(tensor.any()),
    "tolist": lambda tensor: tensor.tolist(),
    "nonzero": lambda tensor: tensor.nonzero(),
    "mask": lambda tensor: tensor[tensor > 0],
    "to the CPU": lambda tensor: tensor.cpu(),
    "from the CPU": lambda tensor: torch.tensor([1.0], device=tensor.device),
}


@pytest.mark.parametrize("kind", WAITING)
def test_a_recording_refuses_what_waits(kind):
    tensor = torch.ones(2, device=NAME)
    function = graphed()
    function(lambda: tensor + 1)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        function(lambda: (WAITING[kind](tensor), tensor + 1)[1])
    assert SimulatedGraph.current is None


def test_a_recording_refuses_tensors_of_the_cpu():
    tensor = torch.ones(2, device=NAME)
    function = graphed()
    function(lambda: tensor + 1)
    with pytest.raises(RuntimeError, match="same device"):
        function(lambda: tensor + torch.ones(2))


def test_a_recording_refuses_a_generator_that_is_not_registered():
    generator = torch.Generator(NAME)
    function = graphed()
    draw = partial(torch.rand, 2, device=NAME, generator=generator)
    function(draw)
    with pytest.raises(RuntimeError, match="not registered"):
        function(draw)
