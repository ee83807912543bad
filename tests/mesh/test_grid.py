"""Discretising: the rule, its ties and ends, and its inverse."""

import math
from fractions import Fraction

import pytest
import torch

from meshgpt_pytorch.mesh import discretize, undiscretize

RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.3, 4.0), (0.0, math.pi), (-1, 1)]


def naive_bin(value, low, high, num_discrete):
    """The rule in exact arithmetic: Python rounds halves to even."""
    position = (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low)) * num_discrete
    return min(max(round(position - Fraction(1, 2)), 0), num_discrete - 1)


@pytest.mark.parametrize("num_discrete", [1, 7, 128])
def test_discretize_equals_the_rule_in_exact_arithmetic(num_discrete):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bins = discretize(values, continuous_range=(-1.0, 1.0), num_discrete=num_discrete)
    assert bins.dtype == torch.long
    assert bins.tolist() == [naive_bin(v, -1, 1, num_discrete) for v in values.tolist()]


def test_ties_go_to_the_even_bin_and_the_ends_are_clamped():
    # the edges between bins of the range (0, 8) are whole numbers
    values = torch.tensor([-5.0, 0.0, 1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 99.0])
    bins = discretize(values, continuous_range=(0.0, 8.0), num_discrete=8)
    assert bins.tolist() == [0, 0, 0, 2, 2, 4, 6, 7, 7]
    known = discretize(torch.tensor([0.0, -1.0, 1.0]), continuous_range=(-1.0, 1.0))
    assert known.tolist() == [64, 0, 127]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_however_large_go_to_the_end_bins_and_nan_to_the_first(dtype):
    large = torch.tensor([1e3, 1e16, 1e18, 1e20, 1e38, math.inf], dtype=dtype)
    assert discretize(large, continuous_range=(-1.0, 1.0)).tolist() == [127] * 6
    assert discretize(-large, continuous_range=(-1.0, 1.0)).tolist() == [0] * 6
    nan = torch.tensor([math.nan], dtype=dtype)
    assert discretize(nan, continuous_range=(-1.0, 1.0)).tolist() == [0]


@pytest.mark.parametrize("continuous_range", RANGES)
@pytest.mark.parametrize("num_discrete", [2, 37, 128, 1024])
def test_each_bin_is_the_bin_of_its_centre(continuous_range, num_discrete):
    options = {"continuous_range": continuous_range, "num_discrete": num_discrete}
    bins = torch.arange(num_discrete)
    centres = undiscretize(bins, **options)
    assert centres.dtype == torch.float32
    assert torch.equal(discretize(centres, **options), bins)
    low, high = continuous_range
    width = (high - low) / num_discrete
    assert centres[0].item() == pytest.approx(low + width / 2, abs=1e-5)
    assert centres[-1].item() == pytest.approx(high - width / 2, abs=1e-5)


def test_a_value_is_within_half_a_bin_of_the_centre_of_its_bin():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bins = discretize(values, continuous_range=(-1.0, 1.0))
    centres = undiscretize(bins, continuous_range=(-1.0, 1.0))
    assert (values - centres).abs().max() <= 1 / 128 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_computed_as_its_exact_values(dtype):
    values = (torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(dtype)
    bins = discretize(values, continuous_range=(-1.0, 1.0))
    assert torch.equal(bins, discretize(values.double(), continuous_range=(-1.0, 1.0)))


def test_the_input_is_left_as_it_was():
    values, bins = torch.rand(10), torch.arange(10.0)
    values_before, bins_before = values.clone(), bins.clone()
    discretize(values, continuous_range=(-1.0, 1.0))
    undiscretize(bins, continuous_range=(-1.0, 1.0))
    assert torch.equal(values, values_before) and torch.equal(bins, bins_before)


def test_undiscretize_takes_integers_and_floats():
    bins = torch.arange(128)
    centres = undiscretize(bins, continuous_range=(-1.0, 1.0))
    for dtype in (torch.int32, torch.uint8, torch.float32, torch.float64):
        assert torch.equal(undiscretize(bins.to(dtype), continuous_range=(-1.0, 1.0)), centres)


@pytest.mark.parametrize("function", [discretize, undiscretize])
def test_an_impossible_grid_is_refused(function):
    with pytest.raises(ValueError, match=r"low < high, got \(1.0, -1.0\)"):
        function(torch.zeros(1), continuous_range=(1.0, -1.0))
    with pytest.raises(ValueError, match="at least 1 bin, got 0"):
        function(torch.zeros(1), continuous_range=(0.0, 1.0), num_discrete=0)
