"""Distances of surfaces: known shapes, brute force, and what they do not depend on."""

import numpy as np
import pytest
import torch

from meshgpt_pytorch.mesh import Mesh, sample_surface, surface_distance
from meshgpt_pytorch.mesh.distance import distances_to_surface, squared_distances, triangle_corners
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh


def square(height, size=1.0):
    corners = [[0, height, 0], [size, height, 0], [size, height, size], [0, height, size]]
    return Mesh(torch.tensor(corners).float(), torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_parallel_squares_are_as_far_apart_as_they_are():
    distance = surface_distance(square(0), square(0.25))
    assert distance.hausdorff == pytest.approx(0.25)
    assert distance.chamfer == pytest.approx(0.25)


def test_equal_surfaces_are_not_apart_whatever_their_faces():
    distance = surface_distance(box_mesh(), box_mesh(quads=True))
    assert distance.hausdorff < 5e-3 and distance.chamfer < 1e-5


def test_a_part_that_is_missing_counts_from_either_side():
    small, large = square(0, size=1.0), square(0, size=2.0)
    for first, second in ((small, large), (large, small)):
        distance = surface_distance(first, second)
        # to the far corner of the large square, from below: as near as a point was drawn to it
        assert 2**0.5 - 0.05 < distance.hausdorff <= 2**0.5
        assert 0.05 < distance.chamfer < 0.5


def test_a_seed_repeats_the_points():
    first, second = box_mesh(), pyramid_mesh()
    assert surface_distance(first, second, seed=1) == surface_distance(first, second, seed=1)
    assert surface_distance(first, second, seed=1) != surface_distance(first, second, seed=2)
    assert torch.equal(sample_surface(first, 100, seed=3), sample_surface(first, 100, seed=3))


def test_points_lie_on_the_surface_and_everywhere_alike():
    points = sample_surface(box_mesh(), 6000)
    size = torch.tensor([1.0, 0.5, 0.75])
    on_side = (points.abs() - size).abs() < 1e-6
    assert on_side.any(dim=1).all() and (points.abs() <= size + 1e-6).all()
    areas = torch.tensor([4 * 0.5 * 0.75, 4 * 1.0 * 0.75, 4 * 1.0 * 0.5]) * 2
    share = on_side.float().mean(dim=0)
    torch.testing.assert_close(share, areas / areas.sum(), atol=0.01, rtol=0)


def nearest_by_hand(point, corners):
    """Distance to a triangle by trying a fine grid of its points."""
    steps = np.linspace(0, 1, 201)
    u, v = (each.ravel() for each in np.meshgrid(steps, steps))
    u, v = u[u + v <= 1 + 1e-9], v[u + v <= 1 + 1e-9]
    origin, first, second = corners
    points = origin + u[:, None] * (first - origin) + v[:, None] * (second - origin)
    return np.linalg.norm(points - point, axis=1).min()


def test_the_distance_to_a_triangle_is_that_of_its_nearest_point():
    generator = np.random.default_rng(0)
    points, corners = generator.normal(size=(60, 3)), generator.normal(size=(60, 3, 3))
    corners[:5, 2] = corners[:5, 1]
    fast = np.sqrt(squared_distances(points, corners))
    slow = [nearest_by_hand(*pair) for pair in zip(points, corners, strict=True)]
    np.testing.assert_allclose(fast, slow, atol=0.02)


def test_the_nearest_triangle_is_found_among_all(furniture):
    mesh = furniture[0]
    corners = triangle_corners(mesh)
    points = np.random.default_rng(0).uniform(-1, 1, size=(200, 3))
    every = squared_distances(
        points.repeat(len(corners), axis=0), np.tile(corners, (len(points), 1, 1))
    )
    exact = np.sqrt(every.reshape(len(points), -1).min(axis=1))
    found = distances_to_surface(points, corners)
    assert (found >= exact - 1e-9).all()
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_a_mesh_without_area_is_measured_too():
    line = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), torch.tensor([[0, 1, 2]]))
    assert surface_distance(line, line).hausdorff == pytest.approx(0, abs=1e-9)


def test_broken_meshes_are_refused():
    box, broken = box_mesh(), tetrahedron_mesh()
    broken = Mesh(broken.vertices, broken.faces + 1)
    for pair in ((box, broken), (broken, box)):
        with pytest.raises(ValueError, match="indices from 0 to 3, got 1 to 4"):
            surface_distance(*pair)
    with pytest.raises(ValueError, match="indices from 0 to 3"):
        sample_surface(broken, 10)
