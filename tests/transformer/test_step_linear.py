"""Products of few rows: near those of the layers in each precision, and never of old weights."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from meshgpt_pytorch.transformer import step_linear
from meshgpt_pytorch.transformer.step_linear import Precision, StepLinears, linears_of

# precision, and how far a product may be off: relative to the largest of it
PRECISIONS = {
    "as they are": (Precision(), 1e-6),
    "float32": (Precision(torch.float32), 1e-6),
    "float16": (Precision(torch.float16), 1e-3),
    "bfloat16": (Precision(torch.bfloat16), 1e-2),
    "int8": (Precision(quantize="int8"), 2e-2),
}
SHAPES = {"tall": (24, 80), "wide": (80, 24), "odd": (7, 33)}
FLOAT_KINDS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=PRECISIONS)
def precise(request):
    return PRECISIONS[request.param]


def make_linear(d_in=24, d_out=80, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(d_in, d_out, bias=bias)


def assert_near(actual, wanted, tolerance):
    assert actual.dtype == torch.promote_types(wanted.dtype, torch.float32)
    assert (actual - wanted).abs().max() <= tolerance * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_near_those_of_the_layer(precise, shape, rows, bias):
    precision, tolerance = precise
    linear = make_linear(*SHAPES[shape], bias=bias)
    step = StepLinears(precision).read(linear)
    x = torch.randn(rows, linear.in_features)
    assert_near(step(x), linear(x), tolerance)


@torch.no_grad()
@pytest.mark.parametrize("dtype", FLOAT_KINDS)
def test_weights_may_be_in_any_dtype(precise, dtype):
    precision, tolerance = precise
    linear = make_linear().to(dtype)
    x = torch.randn(3, linear.in_features)
    wanted = nn.functional.linear(x, linear.weight.float(), linear.bias.float())
    tolerance = max(tolerance, 1e-2 if dtype == torch.bfloat16 else 1e-3)
    assert_near(StepLinears(precision).read(linear)(x), wanted, tolerance)


@torch.no_grad()
def test_float64_stays():
    linear = make_linear().double()
    x = torch.randn(2, linear.in_features, dtype=torch.float64)
    torch.testing.assert_close(
        StepLinears(Precision()).read(linear)(x), linear(x), rtol=1e-12, atol=1e-12
    )


@torch.no_grad()
@pytest.mark.parametrize("biases", [(True, True), (False, True), (False, False)])
def test_layers_of_one_input_are_read_side_by_side(precise, biases):
    precision, tolerance = precise
    linears = [make_linear(24, d, bias=b, seed=d) for d, b in zip((40, 8), biases, strict=True)]
    x = torch.randn(3, 24)
    wanted = torch.cat([linear(x) for linear in linears], dim=1)
    assert_near(StepLinears(precision).read(*linears)(x), wanted, tolerance)


@torch.no_grad()
def test_a_row_in_int8_does_not_depend_on_the_others():
    linear = make_linear()
    step = StepLinears(Precision(quantize="int8")).read(linear)
    x = torch.randn(4, linear.in_features) * torch.tensor([[0.01], [1.0], [0.0], [300.0]])
    together = step(x)
    for row, alone in zip(x, together, strict=True):
        assert torch.equal(step(row[None])[0], alone)
    # the small row keeps its precision beside the large one, and a row of zeros is the bias
    assert_near(together[0] - linear.bias, linear(x)[0] - linear.bias, 2e-2)
    assert torch.equal(together[2], linear.bias)


@torch.no_grad()
def test_each_output_in_int8_has_a_scale_of_its_own():
    linear = make_linear(bias=False)
    linear.weight.mul_(torch.logspace(-6, 3, len(linear.weight))[:, None])
    linear.weight[5] = 0.0
    x = torch.randn(3, linear.in_features)
    ratio = StepLinears(Precision(quantize="int8")).read(linear)(x) / linear(x)
    others = torch.arange(len(linear.weight)) != 5
    assert (ratio[:, others].median(dim=0).values - 1).abs().max() < 0.1


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_takes_weights_beyond_those_of_float16(dtype, rows):
    linear = make_linear(bias=False)
    linear.weight[3, 5] = 1e6
    linear.to(dtype)
    x = torch.randn(rows, linear.in_features)
    wanted = nn.functional.linear(x, linear.weight.float())
    assert_near(StepLinears(Precision(torch.bfloat16)).read(linear)(x), wanted, 1e-2)


# which weights are used


CHANGES = {
    "in place": lambda weight: weight.mul_(2.0),
    "through data": lambda weight: weight.data.copy_(weight.data + 1.0),
    "one weight by the least": lambda weight: weight.data[3, 2:3].copy_(
        torch.nextafter(weight.data[3, 2:3], torch.tensor(9.0))
    ),
    "rows reversed": lambda weight: weight.data.copy_(weight.data.flip(0)),
    "columns reversed": lambda weight: weight.data.copy_(weight.data.flip(1)),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_is_seen(precise, change):
    precision, tolerance = precise
    linear = make_linear()
    linears = StepLinears(precision)
    x = torch.randn(2, linear.in_features)
    step = linears.read(linear)
    step(x)
    assert linears.read(linear) is step
    CHANGES[change](linear.weight)
    changed = linears.read(linear)
    assert changed is not step
    assert_near(changed(x), linear(x), tolerance)


@torch.no_grad()
def test_a_change_of_the_bias_is_seen(precise):
    linear = make_linear()
    linears = StepLinears(precise[0])
    x = torch.randn(2, linear.in_features)
    linears.read(linear)
    linear.bias.data[7] += 1.0
    assert_near(linears.read(linear)(x), linear(x), precise[1])


def test_layers_are_kept_with_their_model_alone():
    model = nn.Sequential(make_linear())
    linears = linears_of(model, Precision())
    assert linears_of(model, Precision()) is linears
    assert linears_of(copy.deepcopy(model), Precision()) is not linears
    assert linears_of(model, Precision(torch.bfloat16)) is not linears
    step = weakref.ref(linears_of(model, Precision()))
    del model, linears
    gc.collect()
    assert step() is None
    assert not any(kept is None for kept in step_linear.KEPT.values())


# errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.long])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"dtype must be one of torch.float32, .* got {dtype};"):
        Precision(dtype)


def test_other_quantisation_is_refused():
    with pytest.raises(ValueError, match="quantize must be 'int8' or None, got 'int4'"):
        Precision(quantize="int4")


def test_int8_takes_no_dtype():
    with pytest.raises(ValueError, match="pass one of the two"):
        Precision(torch.bfloat16, "int8")


def test_int8_is_for_the_processor():
    with pytest.raises(ValueError, match="quantize='int8' works on the CPU, got a model on cuda"):
        Precision(quantize="int8").check_model(torch.device("cuda"), torch.float32)


def test_int8_needs_its_kernels(monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(RuntimeError, match="needs fbgemm, which this torch has not"):
        Precision(quantize="int8").check_model(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("precision", [Precision(torch.float32), Precision(quantize="int8")])
def test_double_precision_is_not_narrowed(precision):
    with pytest.raises(ValueError, match="weights in float32 or less, got float64"):
        precision.check_model(torch.device("cpu"), torch.float64)


@torch.no_grad()
def test_half_precision_works_without_its_kernels(monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    linear = make_linear()
    x = torch.randn(3, linear.in_features)
    assert_near(StepLinears(Precision(torch.float16)).read(linear)(x), linear(x), 2e-3)
