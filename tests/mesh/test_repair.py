"""Winding after repair: coherent, outward, and nothing but winding changed."""

import numpy as np
import pytest
import torch

from meshgpt_pytorch.mesh import Mesh, canonicalize_mesh, inspect_mesh, repair_winding
from tests.helpers import box_mesh, pyramid_mesh, signed_volume, tetrahedron_mesh


def scrambled(mesh, seed):
    """Turn a random half of the faces."""
    turn = torch.rand(len(mesh.faces), generator=torch.Generator().manual_seed(seed)) < 0.5
    return Mesh(mesh.vertices, torch.where(turn[:, None], mesh.faces.flip(1), mesh.faces))


def rotated_to_lowest(faces):
    return {
        tuple(face[face.index(min(face)) :] + face[: face.index(min(face))])
        for face in faces.tolist()
    }


SOLIDS = [box_mesh(), box_mesh(quads=True), pyramid_mesh(), tetrahedron_mesh()]


@pytest.mark.parametrize("mesh", SOLIDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_closed_mesh_becomes_outward_however_its_faces_were_turned(mesh, seed):
    repaired = repair_winding(scrambled(mesh, seed))
    assert rotated_to_lowest(repaired.faces) == rotated_to_lowest(mesh.faces)
    assert signed_volume(repaired) == pytest.approx(signed_volume(mesh))
    assert inspect_mesh(repaired).is_watertight


@pytest.mark.parametrize("mesh", SOLIDS)
def test_an_inside_out_mesh_is_turned_and_an_outward_one_left_alone(mesh):
    inside_out = Mesh(mesh.vertices, mesh.faces.flip(1))
    assert signed_volume(repair_winding(inside_out)) > 0
    assert torch.equal(repair_winding(mesh).faces, mesh.faces)


@pytest.mark.parametrize("seed", range(5))
def test_an_open_box_looks_outward(seed):
    box = box_mesh()
    open_box = Mesh(box.vertices, box.faces[2:])
    repaired = repair_winding(scrambled(open_box, seed))
    assert rotated_to_lowest(repaired.faces) == rotated_to_lowest(open_box.faces)


def test_each_part_is_turned_by_itself():
    first, second = box_mesh(), pyramid_mesh()
    vertices = torch.cat((first.vertices, second.vertices + 5))
    faces = torch.cat((first.faces, second.faces.flip(1) + len(first.vertices)))
    repaired = repair_winding(Mesh(vertices, faces))
    expected = torch.cat((first.faces, second.faces + len(first.vertices)))
    assert rotated_to_lowest(repaired.faces) == rotated_to_lowest(expected)


def test_both_sides_of_a_thin_wall_stay():
    wall = torch.tensor([[0, 1, 2], [0, 2, 3]])
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    both = Mesh(corners, torch.cat((wall, wall.flip(1))))
    assert rotated_to_lowest(repair_winding(both).faces) == rotated_to_lowest(both.faces)


def test_vertices_listed_twice_do_not_tear_a_patch():
    mesh = box_mesh()
    corners = mesh.vertices[scrambled(mesh, 0).faces]
    soup = Mesh(corners.reshape(-1, 3), torch.arange(36).reshape(12, 3))
    assert signed_volume(repair_winding(soup)) == pytest.approx(signed_volume(mesh))


def test_real_meshes_become_coherent_and_keep_their_faces(furniture):
    worse = 0
    for index, mesh in enumerate(furniture[::12]):
        before = inspect_mesh(mesh).num_incoherent_edges
        repaired = repair_winding(scrambled(mesh, index))
        after = inspect_mesh(repaired).num_incoherent_edges
        # what is torn cannot be mended on a one-sided surface
        worse += after > before
        assert torch.equal(repaired.vertices, mesh.vertices)
        assert torch.equal(repaired.faces.sort(dim=1).values, mesh.faces.sort(dim=1).values)
        assert repaired.faces.dtype == mesh.faces.dtype
    assert worse <= 1


def test_a_one_sided_surface_is_left_with_a_tear():
    angles = np.linspace(0, 2 * np.pi, 13)[:-1]
    centre = np.stack((np.cos(angles), np.sin(angles), 0 * angles), axis=1)
    half = np.stack((np.cos(angles / 2), np.sin(angles / 2)), axis=1) * 0.3
    offset = np.stack((half[:, 0] * centre[:, 0], half[:, 0] * centre[:, 1], half[:, 1]), axis=1)
    vertices = np.concatenate((centre + offset, centre - offset))
    faces = []
    for index in range(12):
        low, high = index, index + 12
        next_low, next_high = (12, 0) if index == 11 else (index + 1, index + 13)
        faces += [[low, next_low, high], [next_low, next_high, high]]
    strip = Mesh(torch.from_numpy(vertices).float(), torch.tensor(faces))
    assert inspect_mesh(repair_winding(strip)).num_incoherent_edges > 0


def test_canonical_meshes_stay_canonical_once_ordered_again(furniture):
    mesh = canonicalize_mesh(repair_winding(furniture[3]))
    assert torch.equal(canonicalize_mesh(repair_winding(mesh)).vertices, mesh.vertices)


def test_a_broken_mesh_is_refused():
    with pytest.raises(ValueError, match="vertices must be finite"):
        repair_winding(Mesh(box_mesh().vertices / 0, box_mesh().faces))
