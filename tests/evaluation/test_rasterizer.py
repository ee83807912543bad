"""The triangle seen at a pixel is the nearest one there, whatever the order of the triangles."""

import numpy as np
import pytest

from meshgpt_pytorch.evaluation.camera import aim_camera
from meshgpt_pytorch.evaluation.rasterizer import rasterize
from meshgpt_pytorch.evaluation.shading import split_into_triangles

SIZE = 32


def nearness_naive(corners, size):
    """Nearness of each triangle at each pixel, -inf where it is not, by barycentric weights."""
    column, row = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    nearness = np.full((len(corners), size, size), -np.inf)
    for index, (a, b, c) in enumerate(corners):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-9:
            continue
        to_b = ((column - a[0]) * (c[1] - a[1]) - (row - a[1]) * (c[0] - a[0])) / area
        to_c = ((b[0] - a[0]) * (row - a[1]) - (b[1] - a[1]) * (column - a[0])) / area
        inside = (to_b >= 0) & (to_c >= 0) & (to_b + to_c <= 1)
        plane = a[2] + to_b * (b[2] - a[2]) + to_c * (c[2] - a[2])
        nearness[index] = np.where(inside, plane, -np.inf)
    return nearness


def assert_nearest_is_seen(corners, size):
    seen = rasterize(corners, np.ones(len(corners), dtype=bool), size)
    nearness = nearness_naive(corners, size)
    nearest = nearness.max(axis=0)
    assert np.array_equal(seen >= 0, np.isfinite(nearest))
    row, column = np.nonzero(seen >= 0)
    # where two surfaces meet within the depth buffer's step, either is right
    span = np.ptp(corners[..., 2])
    at_seen = nearness[seen[row, column], row, column]
    assert np.all(at_seen >= nearest[row, column] - 1e-7 * span)
    return seen


def big_triangle(*nearness):
    places = ((-40.0, -10.0), (60.0, -10.0), (16.0, 90.0))
    return [(*place, value) for place, value in zip(places, nearness, strict=True)]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_nearer_triangle_is_seen_whatever_the_order(order):
    triangles = np.array([big_triangle(0.0, 0.0, 0.0), big_triangle(1.0, 1.0, 1.0)])
    seen = rasterize(triangles[order], np.ones(2, dtype=bool), SIZE)
    assert np.unique(seen).tolist() == [order.index(1)]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_triangles_that_pass_through_each_other_are_cut_where_they_meet(order):
    # the second is nearer to the right of column 10, where both planes meet
    flat = big_triangle(0.0, 0.0, 0.0)
    tilted = [(column, row, (column - 10) * 0.01) for column, row, _ in flat]
    seen = rasterize(np.array([flat, tilted])[order], np.ones(2, dtype=bool), SIZE)
    expected = np.where(np.arange(SIZE) + 0.5 > 10, order.index(1), order.index(0))
    assert np.array_equal(seen, np.broadcast_to(expected, (SIZE, SIZE)))


def test_the_front_is_seen_where_front_and_back_coincide():
    triangles = np.array([big_triangle(0.1, 0.2, 0.7)] * 2)
    for is_front in ([True, False], [False, True]):
        seen = rasterize(triangles, np.array(is_front), SIZE)
        assert np.unique(seen).tolist() == [is_front.index(True)]


def test_random_triangles_equal_a_naive_depth_test():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(-10, SIZE + 10, size=(30, 3, 3))
        corners[..., 2] = rng.uniform(0, 1, size=(30, 3))
        assert_nearest_is_seen(corners, SIZE)


def test_real_meshes_equal_a_naive_depth_test(furniture):
    one = np.ones(3)
    for mesh in furniture[::90]:
        camera = aim_camera(-one, one, size=48, azimuth=35.3, elevation=25.7, field_of_view=24.0)
        corners = camera.project(split_into_triangles(mesh).corners.reshape(-1, 3))
        seen = assert_nearest_is_seen(corners.reshape(-1, 3, 3), 48)
        assert (seen >= 0).any()


def test_triangles_outside_or_without_area_or_none_at_all_leave_the_picture_empty():
    outside = np.array([big_triangle(0.0, 0.0, 0.0)]) + np.array((1000.0, 0.0, 0.0))
    line = np.array([[(1.0, 1.0, 0.0), (9.0, 9.0, 0.0), (5.0, 5.0, 0.0)]])
    for corners in (outside, line, np.zeros((0, 3, 3))):
        seen = rasterize(corners, np.ones(len(corners), dtype=bool), SIZE)
        assert np.unique(seen).tolist() == [-1]


def test_no_cracks_between_triangles_that_share_an_edge():
    rng = np.random.default_rng(1)
    for _ in range(50):
        angles = np.linspace(0, 2 * np.pi, 6, endpoint=False) + rng.uniform(0, 1)
        ring = [(100 * np.cos(a) + 16, 100 * np.sin(a) + 16, 0.5) for a in angles]
        middle = (*rng.uniform(7, 25, size=2), 0.5)
        fan = np.array([(middle, ring[i], ring[(i + 1) % 6]) for i in range(6)])
        assert (rasterize(fan, np.ones(6, dtype=bool), SIZE) >= 0).all()
