"""What is counted in a mesh."""

import pytest
import torch

from meshgpt_pytorch.mesh import Mesh, clean_mesh, inspect_mesh
from meshgpt_pytorch.mesh.cleaning import weld_vertices
from tests.helpers import box_mesh, pyramid_mesh


def test_a_box_has_nothing_wrong():
    for mesh in (box_mesh(), box_mesh(quads=True)):
        report = inspect_mesh(mesh)
        assert report.is_watertight and report.is_coherent and not report.is_flat
        assert report.num_vertices == 8 and report.num_components == 1
        assert report.num_duplicate_faces == report.num_degenerate_faces == 0
        assert report.size == pytest.approx((2, 1, 1.5))


def test_each_fault_is_counted():
    box = box_mesh()
    open_box = Mesh(box.vertices, box.faces[2:])
    assert inspect_mesh(open_box).num_boundary_edges == 4
    assert not inspect_mesh(open_box).is_watertight

    turned = Mesh(box.vertices, torch.cat((box.faces[:1].flip(1), box.faces[1:])))
    assert inspect_mesh(turned).num_incoherent_edges == 3

    twice = Mesh(box.vertices, torch.cat((box.faces, box.faces[:2].roll(1, dims=1))))
    report = inspect_mesh(twice)
    assert report.num_duplicate_faces == 2 and report.num_nonmanifold_edges == 5

    repeated = torch.tensor([[0, 0, 1]])
    flat = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), torch.tensor([[0, 1, 2]]))
    assert inspect_mesh(Mesh(box.vertices, torch.cat((box.faces, repeated)))).is_watertight
    assert inspect_mesh(flat).num_degenerate_faces == 1 and inspect_mesh(flat).is_flat


def test_parts_are_counted_by_the_vertices_that_they_share():
    first, second = box_mesh(), pyramid_mesh()
    faces = torch.cat((first.faces, second.faces + 8))
    apart = Mesh(torch.cat((first.vertices, second.vertices + 5)), faces)
    touching = Mesh(
        torch.cat((first.vertices, second.vertices - second.vertices[4] + first.vertices[0])), faces
    )
    assert inspect_mesh(apart).num_components == 2
    assert inspect_mesh(touching).num_components == 1


def test_equal_positions_count_as_one_vertex_and_unused_ones_do_not_count():
    box = box_mesh()
    soup = Mesh(box.vertices[box.faces].reshape(-1, 3), torch.arange(36).reshape(12, 3))
    assert inspect_mesh(soup) == inspect_mesh(box)
    far = Mesh(torch.cat((box.vertices, torch.full((1, 3), 9.0))), box.faces)
    assert inspect_mesh(far) == inspect_mesh(box)


def test_a_slanted_plane_is_flat():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    assert inspect_mesh(mesh).is_flat
    corners[3] += torch.tensor([0.1, 0, 0])
    assert not inspect_mesh(Mesh(corners, mesh.faces)).is_flat


def test_cleaning_centres_scales_welds_and_drops():
    box = box_mesh()
    shaken = box.vertices[box.faces].reshape(-1, 3) * 40 + 7
    shaken = shaken + 1e-6 * torch.randn(36, 3, generator=torch.Generator().manual_seed(0))
    faces = torch.arange(36).reshape(12, 3)
    extra = torch.stack((faces[0].roll(1), faces[1], torch.tensor([0, 0, 1])))
    clean = clean_mesh(Mesh(shaken, torch.cat((faces, extra))), weld_tolerance=1e-5)
    assert inspect_mesh(clean).is_watertight
    assert len(clean.faces) == 12 and len(clean.vertices) == 8
    assert clean.vertices.amin() == pytest.approx(-1) and clean.vertices.amax() == pytest.approx(1)


@pytest.mark.parametrize("tolerance", [0, 1e-20, 1e-300])
def test_a_tiny_tolerance_merges_equal_positions_alone(tolerance):
    box = box_mesh()
    soup = Mesh(box.vertices[box.faces].reshape(-1, 3), torch.arange(36).reshape(12, 3))
    clean = clean_mesh(soup, weld_tolerance=tolerance)
    assert len(clean.vertices) == 8 and inspect_mesh(clean).is_watertight
    near = torch.where(torch.arange(36)[:, None] == 0, soup.vertices * 0.9999, soup.vertices)
    assert len(clean_mesh(Mesh(near, soup.faces), weld_tolerance=tolerance).vertices) == 9


@pytest.mark.parametrize("tolerance", [-1e-6, float("nan")])
def test_a_tolerance_below_zero_is_refused(tolerance):
    with pytest.raises(ValueError, match="weld_tolerance must be 0 or more, got"):
        clean_mesh(box_mesh(), weld_tolerance=tolerance)


def test_opposite_faces_stay_and_quads_stay_quads():
    box = box_mesh(quads=True)
    both = Mesh(box.vertices, torch.cat((box.faces, box.faces.flip(1), box.faces.roll(1, 1))))
    assert clean_mesh(both).faces.shape == (12, 4)


def test_a_mesh_of_which_nothing_is_left_is_refused():
    line = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="none of the 1 faces has an area"):
        clean_mesh(line)
    with pytest.raises(ValueError, match="all vertices are at one point"):
        clean_mesh(Mesh(line.vertices * 0, line.faces))
    assert len(weld_vertices(box_mesh(), 10.0).faces) == 0
