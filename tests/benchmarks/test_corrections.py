"""Corrections tell all that codes leave open, and no more."""

from math import log2

import pytest
import torch

from benchmarks.corrections import bits_under_histogram, find_corrections

# two faces with a common edge
FACES = torch.tensor([0, 1, 2, 2, 1, 3])
BINS = torch.tensor([[10, 0, 0], [20, 0, 0], [30, 5, 0], [40, 0, 9]])[FACES]


def test_codes_that_tell_the_vertices_leave_nothing_open():
    codes = torch.stack((FACES, FACES), dim=1)
    found = find_corrections([(codes, BINS, BINS)] * 200)
    assert not found.errors.any()
    assert len(found.errors) == 200 * 4 * 3
    assert torch.equal(found.num_vertices, torch.ones(800, dtype=torch.long))
    assert (found.choices, found.num_faces) == (0, 400)
    assert found.bits_per_face(found, 128) == pytest.approx(0, abs=2)
    many = find_corrections([(codes, BINS, BINS)] * 5000)
    assert many.bits_per_face(many, 128) < found.bits_per_face(found, 128) / 4


def test_an_error_of_a_vertex_is_told_once():
    codes = FACES[:, None]
    decoded = BINS + torch.tensor([0, 0, 1])
    found = find_corrections([(codes, decoded, BINS)])
    assert found.errors.reshape(4, 3).tolist() == [[0, 0, -1]] * 4


def test_vertices_of_the_same_codes_are_told_apart_corner_by_corner():
    # vertices 1 and 3 have one code: of 6 corners, 3 have to choose between 2
    codes = torch.tensor([0, 1, 2, 1])[FACES][:, None]
    decoded = torch.tensor([[10, 0, 0], [30, 0, 4], [30, 5, 0]])[codes[:, 0]]
    found = find_corrections([(codes, decoded, BINS)])
    assert found.choices == 3
    assert sorted(found.num_vertices.tolist()) == [1, 1, 2]
    assert sorted(found.errors.reshape(4, 3).tolist()) == [
        [-10, 0, -4],
        [0, 0, 0],
        [0, 0, 0],
        [10, 0, 5],
    ]


def test_one_code_for_all_costs_as_much_as_the_mesh():
    codes = torch.zeros(6, 1, dtype=torch.long)
    found = find_corrections([(codes, torch.zeros_like(BINS), BINS)])
    assert found.choices == 6 * log2(4)
    assert found.num_vertices.tolist() == [4]
    assert sorted(found.errors.reshape(4, 3).tolist()) == sorted(BINS.unique(dim=0).tolist())


def test_bits_are_those_of_the_frequencies():
    known = torch.tensor([0, 0, 0, 1])
    # seen once more each: 4, 2, 1, 1 of 8
    bits = bits_under_histogram(torch.tensor([0, 1, 2, -1]), known, -1, 2)
    assert bits == pytest.approx(1 + 2 + 3 + 3)
