"""The face graph against a loop over all pairs of faces, and against reference vectors."""

import pytest
import torch

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from tests.helpers import box_mesh, pad_batch, pyramid_mesh, read_golden, tetrahedron_mesh


def naive_edges(faces, pad_id=-1, neighbor_if_share_one_vertex=False, include_self=True):
    faces = faces.tolist()
    wanted = 1 if neighbor_if_share_one_vertex else 2
    edges = []
    for i, first in enumerate(faces):
        for j, second in enumerate(faces):
            if pad_id in first or pad_id in second:
                continue
            if include_self if i == j else len({*first} & {*second}) >= wanted:
                edges.append([i, j])
    return edges


def without_padding(edges, pad_id=-1):
    return edges[(edges != pad_id).all(dim=-1)].tolist()


def random_faces(generator, batch_size, num_faces, num_vertices_per_face, num_vertices):
    """Faces of distinct vertices, with some duplicate faces and some padding anywhere."""
    scores = torch.rand(batch_size, num_faces, num_vertices, generator=generator)
    faces = scores.argsort(dim=-1)[..., :num_vertices_per_face]
    if num_faces > 3:
        faces[:, 1] = faces[:, 3]
        faces[:, 2] = faces[:, 0].roll(1, dims=-1)
    faces[torch.rand(batch_size, num_faces, generator=generator) < 0.2] = -1
    return faces


@pytest.mark.parametrize("seed", range(300))
def test_edges_equal_a_naive_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    batch_size, num_faces = 1 + seed % 3, 1 + seed % 13
    num_vertices = 5 + seed % 9
    faces = random_faces(generator, batch_size, num_faces, 3 + seed % 2, num_vertices)
    if seed % 5 == 0:
        faces[:, -1, 0] = -1
    if seed % 7 == 0:
        faces = faces.int()
    for share_one in (False, True):
        for include_self in (False, True):
            edges = derive_face_edges_from_faces(
                faces, neighbor_if_share_one_vertex=share_one, include_self=include_self
            )
            assert edges.dtype == torch.long
            expected = [naive_edges(mesh, -1, share_one, include_self) for mesh in faces]
            assert [without_padding(row) for row in edges] == expected
            assert edges.shape == (batch_size, max(map(len, expected)), 2)


@pytest.mark.parametrize("case", ["ae_lfq", "ae_rvq", "ae_quads", "ae_attn"])
def test_edges_equal_the_reference_vectors_order_included(case):
    golden = read_golden(case)
    edges = derive_face_edges_from_faces(golden["in.ragged_faces"])
    assert torch.equal(edges, golden["out.face_edges"])


@pytest.mark.parametrize("num_vertices_per_face", [3, 4])
def test_degenerate_faces_give_a_symmetric_graph_of_distinct_shared_vertices(num_vertices_per_face):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        faces = torch.randint(0, 6, (9, num_vertices_per_face), generator=generator)
        for share_one in (False, True):
            edges = derive_face_edges_from_faces(faces, neighbor_if_share_one_vertex=share_one)
            assert edges.tolist() == naive_edges(faces, neighbor_if_share_one_vertex=share_one)
            assert edges.flip(-1).unique(dim=0).tolist() == edges.tolist()


def test_meshes_of_a_batch_have_the_edges_that_each_has_alone(furniture):
    meshes = [box_mesh(), furniture[0], pyramid_mesh(), furniture[400], tetrahedron_mesh()]
    _, faces = pad_batch(meshes)
    edges = derive_face_edges_from_faces(faces)
    for row, mesh in zip(edges, meshes, strict=True):
        assert without_padding(row) == derive_face_edges_from_faces(mesh.faces).tolist()


def test_each_face_of_a_closed_mesh_has_itself_and_one_neighbour_a_side():
    for mesh in (box_mesh(), box_mesh(quads=True), pyramid_mesh(), tetrahedron_mesh()):
        num_faces, num_vertices_per_face = mesh.faces.shape
        edges = derive_face_edges_from_faces(mesh.faces)
        assert edges[:, 0].bincount().tolist() == [1 + num_vertices_per_face] * num_faces


def test_padded_faces_keep_their_place_in_the_numbering():
    faces = torch.tensor([[0, 1, 2], [-1, -1, -1], [2, 1, 3], [3, -1, 4]])
    edges = derive_face_edges_from_faces(faces)
    assert edges.tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]


@pytest.mark.parametrize("pad_id", [-2, 0, 99])
def test_another_pad_id_marks_the_padding_of_faces_and_edges(pad_id):
    faces = torch.tensor([[[1, 2, 3], [3, 2, 4]], [[5, 6, 7], [pad_id] * 3]])
    edges = derive_face_edges_from_faces(faces, pad_id=pad_id)
    expected = [[[0, 0], [0, 1], [1, 0], [1, 1]], [[0, 0], [pad_id, pad_id]] + [[pad_id] * 2] * 2]
    assert edges.tolist() == expected


def test_nothing_gives_no_edges():
    assert derive_face_edges_from_faces(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 2)
    assert derive_face_edges_from_faces(torch.zeros(2, 0, 3, dtype=torch.long)).shape == (2, 0, 2)
    assert derive_face_edges_from_faces(torch.full((2, 5, 4), -1)).shape == (2, 0, 2)


def test_huge_indices_do_not_overflow():
    faces = torch.tensor([[0, 1, 2], [2, 1, 2**62], [2**62, 2**61, 2]])
    assert derive_face_edges_from_faces(faces).tolist() == naive_edges(faces)


def test_faces_with_too_many_axes_are_refused():
    with pytest.raises(
        ValueError, match=r"\(b, nf, nvf\) or \(nf, nvf\), got shape \(1, 1, 2, 3\)"
    ):
        derive_face_edges_from_faces(torch.zeros(1, 1, 2, 3, dtype=torch.long))
