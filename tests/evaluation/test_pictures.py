"""A picture shows the mesh as it stands in space, however it is numbered."""

import math

import numpy as np
import pytest
import torch

from meshgpt_pytorch.evaluation import render_mesh
from meshgpt_pytorch.evaluation.pictures import PAPER
from meshgpt_pytorch.mesh import Mesh
from tests.helpers import box_mesh, pyramid_mesh

FRONT = {"azimuth": 0, "elevation": 0, "field_of_view": 0}
EMPTY = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))


def covered(picture):
    return (picture != np.array(PAPER, dtype=np.uint8)).any(axis=-1)


def moved(mesh, *offset):
    return Mesh(mesh.vertices + torch.tensor(offset), mesh.faces)


def joined(*meshes):
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + int(start) for mesh, start in zip(meshes, starts, strict=False)]
    return Mesh(torch.cat([mesh.vertices for mesh in meshes]), torch.cat(faces))


def test_silhouette_of_a_cube_has_its_area():
    cube = box_mesh(size=(1.0, 1.0, 1.0))
    assert covered(render_mesh(cube, size=100, **FRONT)).sum() == 92 * 92
    # seen along its diagonal a cube of side 2 is a hexagon of area 4 sqrt(3), height 4 sqrt(2/3)
    along_diagonal = math.degrees(math.atan(1 / math.sqrt(2)))
    picture = render_mesh(
        cube, size=200, azimuth=45, elevation=along_diagonal, field_of_view=0, outline=False
    )
    pixels_per_unit = 0.92 * 200 / (4 * math.sqrt(2 / 3))
    # a pixel that the border cuts counts as covered: a little more than the area
    area = 4 * math.sqrt(3) * pixels_per_unit**2
    assert area < covered(picture).sum() < 1.02 * area


@pytest.mark.parametrize("field_of_view", [0, 24])
def test_right_is_x_up_is_y_and_the_viewer_at_z_sees_the_front(field_of_view):
    view = {**FRONT, "field_of_view": field_of_view, "size": 64}
    small = box_mesh(size=(0.2, 0.2, 0.2))
    for offset, is_inside in (
        ((0.7, 0.0, 0.0), lambda row, column: column.min() > 32),
        ((-0.7, 0.0, 0.0), lambda row, column: column.max() < 32),
        ((0.0, 0.7, 0.0), lambda row, column: row.max() < 32),
        ((0.0, -0.7, 0.0), lambda row, column: row.min() > 32),
    ):
        assert is_inside(*np.nonzero(covered(render_mesh(moved(small, *offset), **view))))


@pytest.mark.parametrize("field_of_view", [0, 24])
def test_the_nearer_of_two_parts_hides_the_farther(field_of_view):
    view = {**FRONT, "field_of_view": field_of_view, "outline": False}
    corners = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]])
    upright = Mesh(corners, torch.tensor([[0, 1, 2]]))
    sloping = Mesh(corners + corners[:, 1:2] * torch.tensor([0.0, 0.0, 1.0]), upright.faces)
    for nearer, farther in ((upright, sloping), (sloping, upright)):
        nearer, farther = moved(nearer, 0.0, 0.0, 0.6), moved(farther, 0.0, 0.0, -0.6)
        alone = render_mesh(nearer, **view)
        assert not np.array_equal(alone, render_mesh(farther, **view))
        for both in (joined(nearer, farther), joined(farther, nearer)):
            assert np.array_equal(render_mesh(both, **view), alone)


def test_growing_azimuth_shows_the_side_at_x_and_growing_elevation_the_top():
    plate_at_x = Mesh(
        torch.tensor([[0.5, -0.5, -0.5], [0.5, -0.5, 0.5], [0.5, 0.5, 0.0]]),
        torch.tensor([[0, 2, 1]]),  # faces +X
    )
    area = [
        covered(render_mesh(plate_at_x, size=64, azimuth=azimuth)).sum() for azimuth in (5, 45, 90)
    ]
    assert area == sorted(area)
    for azimuth, is_red in ((60, False), (-60, True)):
        picture = render_mesh(
            plate_at_x, size=64, azimuth=azimuth, tint_back_faces=True, outline=False
        )
        red, _, blue = picture[covered(picture)].astype(int).mean(axis=0)
        assert (red > blue) == is_red


def test_a_picture_does_not_depend_on_numbering_or_winding(furniture):
    generator = torch.Generator().manual_seed(0)
    for mesh in (box_mesh(quads=True), pyramid_mesh(), *furniture[::150]):
        picture = render_mesh(mesh, size=96)
        order = torch.randperm(len(mesh.vertices), generator=generator)
        number = torch.empty_like(order)
        number[order] = torch.arange(len(order))
        faces = number[mesh.faces][torch.randperm(len(mesh.faces), generator=generator)]
        assert np.array_equal(render_mesh(Mesh(mesh.vertices[order], faces), size=96), picture)
        corners = mesh.vertices[mesh.faces]
        soup = torch.arange(corners.shape[0] * corners.shape[1]).view(corners.shape[:2])
        assert np.array_equal(render_mesh(Mesh(corners.flatten(0, 1), soup), size=96), picture)
        if mesh.faces.shape[1] == 3:
            turned = Mesh(mesh.vertices, mesh.faces.roll(1, dims=1))
            assert np.array_equal(render_mesh(turned, size=96), picture)


def test_inverted_faces_are_lit_like_others_unless_they_are_tinted():
    for mesh in (box_mesh(), pyramid_mesh()):
        inverted = Mesh(mesh.vertices, mesh.faces.flip(1))
        assert np.array_equal(render_mesh(inverted), render_mesh(mesh))
        tinted = {"tint_back_faces": True, "outline": False}
        picture = render_mesh(inverted, **tinted)
        assert (picture[..., 0] > picture[..., 2])[covered(picture)].all()
        assert np.array_equal(render_mesh(mesh, **tinted), render_mesh(mesh, outline=False))


def test_a_moved_mesh_gives_a_moved_picture():
    # 46 pixels a unit: 92 of 100 pixels show the cube from -1 to 1
    mesh = Mesh(pyramid_mesh().vertices * 0.413, pyramid_mesh().faces)
    picture = render_mesh(mesh, size=100, **FRONT)
    right_and_up = render_mesh(moved(mesh, 12 / 46, 7 / 46, 0.0), size=100, **FRONT)
    assert np.array_equal(np.roll(picture, (-7, 12), axis=(0, 1)), right_and_up)


def test_quads_are_drawn_as_their_triangles_without_the_diagonals():
    quads, triangles = box_mesh(quads=True), box_mesh()
    plain = [render_mesh(mesh, outline=False) for mesh in (quads, triangles)]
    assert np.array_equal(*plain)
    with_lines, with_diagonals = (render_mesh(mesh).astype(int) for mesh in (quads, triangles))
    assert (with_diagonals <= with_lines).all()
    assert (with_diagonals < with_lines).any()


def test_edges_are_darker_than_faces_and_creases_darker_than_edges_in_a_plane():
    lines = render_mesh(box_mesh(size=(1, 1, 1)), size=128, **FRONT).astype(int).sum(axis=-1)
    face = render_mesh(box_mesh(), size=128, outline=False, **FRONT).astype(int)[64, 64].sum()
    diagonal = min(np.diagonal(lines)[40:60].min(), np.diagonal(lines[::-1])[40:60].min())
    border = lines[:, 64][covered(render_mesh(box_mesh(size=(1, 1, 1)), size=128, **FRONT))[:, 64]]
    assert border.min() < diagonal < face


def test_hidden_edges_are_not_drawn():
    plate = box_mesh(size=(0.8, 0.8, 0.05))
    behind = moved(box_mesh(size=(0.3, 0.3, 0.1)), 0.0, 0.0, -0.5)
    assert np.array_equal(render_mesh(joined(plate, behind), **FRONT), render_mesh(plate, **FRONT))


def test_a_mesh_without_visible_faces_gives_an_empty_picture():
    point = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2], [0, 0, 1]]))
    for mesh in (EMPTY, point, EMPTY._replace(faces=torch.zeros(0, 4, dtype=torch.long))):
        picture = render_mesh(mesh, size=17)
        assert picture.shape == (17, 17, 3)
        assert picture.dtype == np.uint8
        assert not covered(picture).any()


def test_a_mesh_outside_the_bounds_is_still_in_the_picture():
    far = moved(pyramid_mesh(), 30.0, -5.0, 80.0)
    picture = covered(render_mesh(joined(far, pyramid_mesh()), size=256))
    assert picture.any()
    assert not picture[0].any() and not picture[:, 0].any()
    assert not picture[-1].any() and not picture[:, -1].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16])
def test_indices_of_any_type_give_the_same_picture(dtype):
    mesh = pyramid_mesh()
    picture = render_mesh(Mesh(mesh.vertices, mesh.faces.to(dtype)), size=32)
    assert np.array_equal(picture, render_mesh(mesh, size=32))


def test_bounds_fill_the_picture():
    small = Mesh(pyramid_mesh().vertices * 0.1, pyramid_mesh().faces)
    points = small.vertices.double().numpy()
    bounds = points.min(axis=0), points.max(axis=0)
    filled = covered(render_mesh(small, size=64, bounds=bounds)).sum()
    assert filled > 50 * covered(render_mesh(small, size=64)).sum()


@pytest.mark.parametrize(
    ("mesh", "options", "message"),
    [
        (pyramid_mesh(), {"size": 0}, "size must be at least 1 pixel, got 0"),
        (pyramid_mesh(), {"field_of_view": -1}, "field_of_view must be 0 to 120 degrees, got -1"),
        (pyramid_mesh(), {"field_of_view": 180}, "field_of_view must be 0 to 120"),
        (Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 3]])), {}, "from 0 to 2, got 0 to 3"),
        (Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, -1]])), {}, "remove padding with"),
        (Mesh(torch.full((3, 3), math.nan), torch.tensor([[0, 1, 2]])), {}, "must be finite"),
        (
            Mesh(torch.zeros(3, 3), torch.tensor([[0, 1]])),
            {},
            r"\(nf, 3\) or \(nf, 4\), got shape \(1, 2",
        ),
    ],
)
def test_bad_input_is_named(mesh, options, message):
    with pytest.raises(ValueError, match=message):
        render_mesh(mesh, **options)
