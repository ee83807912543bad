"""Codes of finite scalar quantisation are the digits of a cell, coarse to fine."""

import pytest
import torch
from torch import nn

from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer


def quantizer_without_projections(levels, num_quantizers):
    """The cube itself: positions in, positions out."""
    quantizer = FiniteScalarQuantizer(
        len(levels), levels=levels, num_quantizers=num_quantizers
    ).double()
    for linear in (quantizer.project_in, quantizer.project_out):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return quantizer


def naive_codes(position, levels, num_quantizers):
    """Walk down: in each code, find the part of the cell that the position is in."""
    codes, low, width = [], [-1.0] * len(levels), [2.0] * len(levels)
    for _ in range(num_quantizers):
        code, basis = 0, 1
        for axis, count in enumerate(levels):
            width[axis] /= count
            digit = min(max(int((position[axis] - low[axis]) // width[axis]), 0), count - 1)
            low[axis] += digit * width[axis]
            code, basis = code + digit * basis, basis * count
        codes.append(code)
    centre = [start + side / 2 for start, side in zip(low, width, strict=True)]
    return codes, centre


@pytest.mark.parametrize(
    ("levels", "num_quantizers"), [((4, 4, 4), 2), ((8, 3, 5), 2), ((6,), 1), ((3, 2), 4)]
)
def test_codes_and_centres_equal_a_walk_down_the_cells(levels, num_quantizers):
    torch.manual_seed(0)
    positions = torch.rand(1, 50, len(levels), dtype=torch.float64) * 2.4 - 1.2
    quantizer = quantizer_without_projections(levels, num_quantizers)
    quantized, codes, _ = quantizer(positions)
    for position, found, centre in zip(
        positions[0].tolist(), codes[0].tolist(), quantized[0], strict=True
    ):
        expected_codes, expected_centre = naive_codes(position, levels, num_quantizers)
        assert found == expected_codes
        torch.testing.assert_close(centre, centre.new_tensor(expected_centre))


def test_looking_codes_up_gives_what_was_quantised():
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(12, levels=(24, 24, 24), num_quantizers=2)
    quantized, codes, _ = quantizer(torch.randn(2, 30, 12))
    torch.testing.assert_close(quantizer.get_output_from_indices(codes), quantized)
    assert codes.min() >= 0
    assert codes.max() < quantizer.codebook_size == 24**3


def test_every_code_is_found_again():
    quantizer = quantizer_without_projections((3, 4), 1)
    every = torch.arange(12).reshape(1, 12, 1)
    _, codes, _ = quantizer(quantizer.get_output_from_indices(every))
    assert torch.equal(codes, every)


def test_a_missing_fine_code_gives_the_middle_of_the_coarse_cell():
    quantizer = quantizer_without_projections((4,), 2)
    position = quantizer.get_output_from_indices(torch.tensor([[[3, -1], [3, 0], [3, 3]]]))
    assert position[0, 0, 0] == 0.75
    assert position[0, 1:, 0].mean() == 0.75


def test_gradients_go_straight_through_inside_the_cube_and_back_to_it_outside():
    quantizer = quantizer_without_projections((4, 4), 1)
    positions = torch.tensor([[[0.3, 1.5]]], dtype=torch.float64, requires_grad=True)
    quantized, _, commit_loss = quantizer(positions)
    (gradient,) = torch.autograd.grad(quantized.sum(), positions, retain_graph=True)
    assert gradient.tolist() == [[[1.0, 0.0]]]
    assert commit_loss.tolist() == [0.125]
    (gradient,) = torch.autograd.grad(commit_loss.sum(), positions)
    assert gradient.tolist() == [[[0.0, 0.5]]]


def test_a_straight_map_to_coordinates_is_learned_exactly():
    # through the tanh of the library's ResidualFSQ, a third of the bins is still wrong then
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(32, levels=(16, 16), num_quantizers=2)
    model = nn.ModuleList([nn.Linear(2, 32), quantizer, nn.Linear(32, 2)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 300)
    grid = torch.linspace(-1, 1, 33)
    points = torch.cartesian_prod(grid, grid)[None]
    for _ in range(300):
        quantized, _, commit_loss = quantizer(model[0](points))
        error = model[2](quantized) - points
        loss = error.square().mean() + commit_loss.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert (error.abs() < 1 / 32).float().mean() > 0.98


@pytest.mark.parametrize("levels", [(1, 4), (2000, 2)])
def test_levels_that_no_grid_has_are_refused(levels):
    with pytest.raises(ValueError, match=r"fsq_levels must be at least 2.*\(24, 24, 24\) with 2"):
        FiniteScalarQuantizer(8, levels=levels, num_quantizers=2)
