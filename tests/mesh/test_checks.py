"""Bad batches are refused with what was wanted, what came and the remedy."""

import warnings

import numpy as np
import pytest
import torch

from meshgpt_pytorch.mesh import (
    Mesh,
    check_mesh,
    check_mesh_batch,
    check_mesh_shapes,
    derive_face_edges_from_faces,
)
from tests.helpers import box_mesh, pad_batch, pyramid_mesh, tetrahedron_mesh
from tests.simulated_device import SimulatedDevice


@pytest.fixture
def batch():
    return pad_batch([box_mesh(), pyramid_mesh(), tetrahedron_mesh()])


def test_good_batches_pass(batch, furniture):
    for vertices, faces in (batch, pad_batch(furniture[:4])):
        for integer in (torch.int32, torch.int64):
            faces = faces.to(integer)
            edges = derive_face_edges_from_faces(faces)
            check_mesh_shapes(vertices, faces, num_vertices_per_face=3)
            check_mesh_batch(vertices, faces, edges, coor_continuous_range=(-1.0, 1.0))
            check_mesh_batch(vertices, faces, edges[:, :0])


def test_a_wholly_padded_face_in_the_middle_passes(batch):
    vertices, faces = batch
    faces[0, 3] = -1
    check_mesh_batch(vertices, faces, derive_face_edges_from_faces(faces))


def test_another_pad_id_is_padding_and_minus_one_is_then_wrong(batch):
    vertices, faces = batch
    with pytest.raises(ValueError, match=r"or -2 for padding, got -1 at faces\[1, 6, 0\]"):
        check_mesh_batch(vertices, faces, pad_id=-2)
    check_mesh_batch(vertices, faces.masked_fill(faces == -1, -2), pad_id=-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_vertices_that_are_not_finite_are_named(batch, value):
    vertices, faces = batch
    vertices[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"finite, got \[.*\] at vertices\[1, 2\]; drop that mesh"):
        check_mesh_batch(vertices, faces)


@pytest.mark.parametrize("index", [8, -2, 1000])
def test_an_index_out_of_range_is_named(batch, index):
    vertices, faces = batch
    faces[2, 1, 0] = index
    message = rf"from 0 to 7, or -1 for padding, got {index} at faces\[2, 1, 0\]; check"
    with pytest.raises(ValueError, match=message):
        check_mesh_batch(vertices, faces)


def test_a_partially_padded_face_is_named(batch):
    vertices, faces = batch
    faces[1, 4] = torch.tensor([1, 2, -1])
    message = r"whole or not at all, got \[1, 2, -1\] at faces\[1, 4\]; set all of it to -1"
    with pytest.raises(ValueError, match=message):
        check_mesh_batch(vertices, faces)


def test_a_row_without_faces_is_named(batch):
    vertices, faces = batch
    faces[1] = -1
    with pytest.raises(ValueError, match=r"only padding \(-1\) in row 1; leave empty meshes out"):
        check_mesh_batch(vertices, faces)


def test_an_empty_batch_of_faces_or_vertices_is_refused(batch):
    vertices, faces = batch
    with pytest.raises(ValueError, match="mesh is empty: got 8 vertices and 0 faces"):
        check_mesh_batch(vertices, faces[:, :0])
    with pytest.raises(ValueError, match="mesh is empty: got 0 vertices and 12 faces"):
        check_mesh_batch(vertices[:, :0], faces)


def test_faces_of_floats_are_refused(batch):
    vertices, faces = batch
    with pytest.raises(ValueError, match=r"integers, got torch.float32; convert with faces.long"):
        check_mesh_batch(vertices, faces.float())


def test_face_edges_out_of_range_are_named(batch):
    vertices, faces = batch
    edges = derive_face_edges_from_faces(faces)
    for edge in ([0, 12], [-2, 0], [0, -1]):
        wrong = edges.clone()
        wrong[0, 5] = torch.tensor(edge)
        message = rf"from 0 to 11, or -1 twice .*got \[{edge[0]}, {edge[1]}\] at face_edges\[0, 5\]"
        with pytest.raises(ValueError, match=message):
            check_mesh_batch(vertices, faces, wrong)


def test_face_edges_into_padded_faces_are_named(batch):
    vertices, faces = batch
    edges = derive_face_edges_from_faces(faces)
    edges[2, 3] = torch.tensor([0, 11])
    with pytest.raises(ValueError, match=r"not padding, got \[0, 11\] at face_edges\[2, 3\]"):
        check_mesh_batch(vertices, faces, edges)


def test_a_device_asserts_that_batches_are_good_and_nothing_waits_for_it(batch):
    vertices, faces = batch
    edges = derive_face_edges_from_faces(faces)
    with SimulatedDevice() as device:
        vertices, faces, edges = (each.to(device.name) for each in (vertices, faces, edges))
        device.waits.clear()
        check_mesh_batch(vertices, faces, edges, coor_continuous_range=(-0.1, 0.1))
        assert not device.waits
        faces[0, 0, 0] = 8
        with pytest.raises(RuntimeError, match="bad mesh batch: vertex index out of range"):
            check_mesh_batch(vertices, faces, edges)


def test_vertices_outside_the_range_are_warned_of_with_their_share(batch):
    vertices, faces = batch
    vertices[0, 0, 1] = 3.0
    # 17 vertices are in use
    with pytest.warns(UserWarning, match=r"5\.9% .*_range \(-1\.0, 1\.0\) .*canonicalize_mesh"):
        check_mesh_batch(vertices, faces, coor_continuous_range=(-1.0, 1.0))


def test_padded_and_unused_vertices_are_not_warned_of(batch):
    vertices, faces = batch
    vertices[1, 5:] = -7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_mesh_batch(vertices, faces, coor_continuous_range=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("vertices_shape", "faces_shape", "message"),
    [
        (
            (8, 3),
            (1, 12, 3),
            r"vertices must be batched, \(b, nv, 3\), got .*\(8, 3\); add a batch",
        ),
        ((1, 8, 3), (12, 3), r"faces must be batched, .* add a batch axis with faces\[None\]"),
        ((1, 1, 8, 3), (1, 12, 3), r"vertices must be batched, .*got shape \(1, 1, 8, 3\)$"),
        ((1, 8, 2), (1, 12, 3), r"vertices must have 3 coordinates each, got shape \(1, 8, 2\)"),
        ((2, 8, 3), (1, 12, 3), r"same batch size, got shapes \(2, 8, 3\) and \(1, 12, 3\)"),
        ((2, 8, 3), (2, 6, 4), r"3 vertices each \(quads=False\), got .*; pass quads=True"),
        ((2, 8, 3), (2, 6, 5), r"3 vertices each \(quads=False\), got shape \(2, 6, 5\)$"),
    ],
)
def test_wrong_shapes_are_refused_with_the_remedy(vertices_shape, faces_shape, message):
    vertices, faces = torch.zeros(vertices_shape), torch.zeros(faces_shape, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        check_mesh_shapes(vertices, faces, num_vertices_per_face=3)


def test_triangles_are_refused_by_a_quad_model(batch):
    with pytest.raises(ValueError, match=r"4 vertices each \(quads=True\), .*pass quads=False"):
        check_mesh_shapes(*batch, num_vertices_per_face=4)


def test_swapped_arguments_are_refused(batch):
    vertices, faces = batch
    with pytest.raises(ValueError, match="the two arguments look swapped"):
        check_mesh_shapes(faces, vertices, num_vertices_per_face=3)


def test_a_single_mesh_is_checked():
    mesh = box_mesh()
    check_mesh(mesh)
    with pytest.raises(ValueError, match="has no faces"):
        check_mesh(Mesh(mesh.vertices, mesh.faces[:0]))
    with pytest.raises(ValueError, match=r"\(nf, 3\) or \(nf, 4\), got shape \(12, 2\)"):
        check_mesh(Mesh(mesh.vertices, mesh.faces[:, :2]))
    with pytest.raises(ValueError, match=r"from 0 to 6, got 0 to 7; .* lacks, which has 7"):
        check_mesh(Mesh(mesh.vertices[:7], mesh.faces))
    with pytest.raises(ValueError, match=r"from 0 to 7, got -1 to 6; remove padding with"):
        check_mesh(Mesh(mesh.vertices, mesh.faces - 1))
    with pytest.raises(ValueError, match=r"integers, got torch.float32; convert with faces.long"):
        check_mesh(Mesh(mesh.vertices, mesh.faces.float()))
    mesh.vertices[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"finite, got .* at vertices\[3\]"):
        check_mesh(mesh)


@pytest.mark.parametrize("unsigned", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_faces_of_unsigned_integers_are_checked(unsigned):
    mesh = box_mesh()
    check_mesh(Mesh(mesh.vertices, mesh.faces.to(unsigned)))
    with pytest.raises(ValueError, match="from 0 to 7, got 0 to 8; they refer to vertices"):
        check_mesh(Mesh(mesh.vertices, torch.where(mesh.faces == 7, 8, mesh.faces).to(unsigned)))


@pytest.mark.parametrize("wrong", [None, [[0.0, 0.0, 0.0]], np.zeros((1, 4, 3))], ids=repr)
def test_what_is_no_tensor_is_refused(wrong):
    faces = torch.zeros(1, 2, 3, dtype=torch.long)
    kind = type(wrong).__name__
    with pytest.raises(ValueError, match=f"vertices must be a tensor, got a {kind}; convert with"):
        check_mesh_shapes(wrong, faces, num_vertices_per_face=3)
    with pytest.raises(ValueError, match=f"faces must be a tensor, got a {kind}; convert with"):
        check_mesh_shapes(torch.zeros(1, 4, 3), wrong, num_vertices_per_face=3)


def test_vertices_that_are_integers_are_refused():
    integers = torch.zeros(1, 4, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"vertices must be floats, got torch.int64; convert with"):
        check_mesh_shapes(integers, integers, num_vertices_per_face=3)


def test_a_batch_without_a_mesh_is_refused():
    with pytest.raises(ValueError, match=r"at least one mesh, got vertices of shape \(0, 4, 3\)"):
        check_mesh_shapes(
            torch.zeros(0, 4, 3), torch.zeros(0, 2, 3, dtype=torch.long), num_vertices_per_face=3
        )


def test_faces_that_are_bools_are_refused():
    with pytest.raises(ValueError, match=r"faces must be integers, got torch.bool"):
        check_mesh_batch(torch.zeros(1, 4, 3), torch.ones(1, 2, 3, dtype=torch.bool))
