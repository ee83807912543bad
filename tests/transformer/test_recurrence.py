"""The gated sum is the naive loop, forward and backward, however it is cut up."""

import pytest
import torch
from gateloop_transformer import SimpleGateLoopLayer
from torch import Tensor

from meshgpt_pytorch.transformer import recurrence
from meshgpt_pytorch.transformer.layers import GateLoop
from meshgpt_pytorch.transformer.recurrence import gated_sum

LENGTHS = [1, 2, 3, 7, 24, 25, 26]
BATCH, DIM = 2, 3


def naive_sum(gate: Tensor, x: Tensor, initial: Tensor | None = None) -> Tensor:
    total = torch.zeros_like(x[:, 0]) if initial is None else initial
    sums = []
    for place in range(x.shape[1]):
        total = gate[:, place] * total + x[:, place]
        sums.append(total)
    return torch.stack(sums, dim=1)


def inputs(length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    gate = torch.rand(BATCH, length, DIM)
    # gates that let go of everything, and of nothing
    gate[0, ::3], gate[1, ::4] = 0.0, 1.0
    x, initial = torch.randn(BATCH, length, DIM), torch.randn(BATCH, DIM)
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (gate, x, initial))


@pytest.fixture(params=[1, 7, 1000])
def segments(request, monkeypatch):
    """At most as many segments."""
    monkeypatch.setattr(recurrence, "NUM_FEATURES_AT_ONCE", request.param * BATCH * DIM)


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_sum_and_gradients_are_those_of_a_loop(length, with_initial):
    gate, x, initial = inputs(length, torch.float64)
    arguments = (gate, x, initial) if with_initial else (gate, x)
    wanted, got = naive_sum(*arguments), gated_sum(*arguments)
    torch.testing.assert_close(got, wanted)
    grad_output = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got, arguments, grad_output),
        torch.autograd.grad(wanted, arguments, grad_output),
    )


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sum_of_narrow_numbers_is_rounded_once(dtype):
    gate, x, initial = inputs(26, dtype)
    got = gated_sum(gate, x, initial)
    wanted = naive_sum(gate.double(), x.double(), initial.double())
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-5)
    for gradient in torch.autograd.grad(got.sum(), (gate, x, initial)):
        assert gradient.dtype == dtype and gradient.isfinite().all()


@pytest.mark.parametrize("places", [10, 1000])
def test_longer_sequences_have_more_segments_up_to_what_a_cpu_takes_at_once(places):
    num_segments = recurrence.count_segments(torch.zeros(1, places, 2**12))
    assert num_segments == min(4, int(places**0.5))


def test_gate_loop_is_the_library_s():
    torch.manual_seed(0)
    library, ours = SimpleGateLoopLayer(DIM), GateLoop(DIM)
    ours.load_state_dict(library.state_dict(), strict=True)
    x = torch.randn(BATCH, 26, DIM)
    torch.testing.assert_close(ours(x), library(x))
    assert_same_gradients(ours, library, x)


def assert_same_gradients(ours, library, x):
    for layer in (ours, library):
        layer(x).square().sum().backward()
    wanted = {name: p.grad for name, p in library.named_parameters()}
    torch.testing.assert_close({name: p.grad for name, p in ours.named_parameters()}, wanted)


@torch.no_grad()
def test_gate_loop_goes_on_where_it_stopped():
    torch.manual_seed(0)
    layer = GateLoop(DIM)
    x = torch.randn(BATCH, 26, DIM)
    first, cache = layer(x[:, :10], return_cache=True)
    second, _ = layer(x[:, 10:], cache=cache, return_cache=True)
    torch.testing.assert_close(torch.cat((first, second), dim=1), layer(x))
