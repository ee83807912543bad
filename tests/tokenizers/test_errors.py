"""Every refusal of the autoencoder, by its message: what was wanted, what came, the remedy."""

import inspect
import warnings

import pytest
import torch

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder, check_options
from meshgpt_pytorch.tokenizers.checks import check_code_ids
from tests.helpers import box_mesh, pad_batch, tetrahedron_mesh
from tests.tokenizers.models import ATTENTION, PLAIN_RVQ, TINY, tiny_autoencoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"codebook_size": 60},
            r"power of two with use_residual_lfq=True, got 60; use 64, or use_residual_lfq=False",
        ),
        ({"codebook_size": 1}, r"codebook_size must be a power of two .* got 1; use 2"),
        ({"init_decoder_conv_kernel": 6}, r"kernel must be odd, .* got 6; use 5 or 7"),
        (
            {**PLAIN_RVQ, "checkpoint_quantizer": True},
            r"checkpoint_quantizer needs use_residual_lfq=True.*pass checkpoint_quantizer=False",
        ),
        (
            {"quantizer": "fsq", "fsq_levels": (4, 4), "codebook_size": 64},
            r"product of fsq_levels \(4, 4\), 16, .* got 64; pass codebook_size=16",
        ),
        (
            {"coor_continuous_range": (1.0, -1.0)},
            r"coor_continuous_range must be \(low, high\), got \(1.0, -1.0\); the usual range is",
        ),
        ({"coor_continuous_range": (1.0, 1.0)}, r"must be \(low, high\), got \(1.0, 1.0\)"),
        ({"coor_continuous_range": (-1.0, 0.0, 1.0)}, r"\(low, high\), got \(-1.0, 0.0, 1.0\)"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeshAutoencoder(**{**TINY, **options})


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(ValueError, match=r"one of \('lfq', 'rvq', 'fsq', 'simvq'\), .* got 'vq'"):
        check_options((-1.0, 1.0), "vq", False, -1)


def test_a_codebook_of_any_size_may_be_learned():
    assert tiny_autoencoder(**{**PLAIN_RVQ, "codebook_size": 60}).codebook_size == 60


def test_a_window_size_given_twice_is_refused():
    with pytest.raises(TypeError, match="window_size"):
        tiny_autoencoder(**ATTENTION, local_attn_kwargs={"window_size": 4})


@pytest.fixture
def batch():
    return pad_batch([box_mesh(), tetrahedron_mesh()])


def break_vertices(value):
    def change(vertices, faces):
        vertices[1, 2, 1] = value

    return change


def break_faces(place, value):
    def change(vertices, faces):
        faces[place] = torch.as_tensor(value)

    return change


BAD_VALUES = {
    "nan": (break_vertices(float("nan")), r"vertices must be finite, got .* at vertices\[1, 2\]"),
    "infinite": (break_vertices(-float("inf")), r"vertices must be finite, got .*-inf"),
    "index too high": (
        break_faces((0, 3, 1), 8),
        r"from 0 to 7, or -1 for padding, got 8 at faces\[0, 3, 1\]; check that each face",
    ),
    "index too low": (break_faces((1, 0, 2), -2), r"got -2 at faces\[1, 0, 2\]"),
    "part of a face": (
        break_faces((0, 5, 2), -1),
        r"padded whole or not at all, got .* at faces\[0, 5\]; set all of it to -1",
    ),
    "no faces in a row": (
        break_faces((1,), -1),
        r"at least one face, got only padding \(-1\) in row 1; leave empty meshes out",
    ),
}


@pytest.mark.parametrize("change, message", BAD_VALUES.values(), ids=BAD_VALUES)
@pytest.mark.parametrize("kind", ["lfq", "rvq, attention"])
def test_bad_meshes_are_refused_before_any_number(batch, kind, change, message):
    vertices, faces = batch
    change(vertices, faces)
    autoencoder = tiny_autoencoder(kind)
    with pytest.raises(ValueError, match=message):
        autoencoder(vertices=vertices, faces=faces)
    with pytest.raises(ValueError, match=message):
        autoencoder.tokenize(vertices, faces)


def test_a_mesh_without_faces_is_refused(batch):
    vertices, faces = batch
    autoencoder = tiny_autoencoder()
    with pytest.raises(ValueError, match="the mesh is empty: got 8 vertices and 0 faces"):
        autoencoder(vertices=vertices, faces=faces[:, :0])
    with pytest.raises(ValueError, match="the mesh is empty: got 8 vertices and 0 faces"):
        autoencoder.tokenize(vertices[0], faces[0, :0])


def test_edges_out_of_range_are_refused(batch):
    vertices, faces = batch
    edges = derive_face_edges_from_faces(faces)
    edges[0, 0, 1] = 12
    with pytest.raises(ValueError, match=r"face_edges must hold .* got \[0, 12\]"):
        tiny_autoencoder()(vertices=vertices, faces=faces, face_edges=edges)


def test_vertices_out_of_range_are_clamped_with_a_warning(batch):
    vertices, faces = batch
    autoencoder = tiny_autoencoder(coor_continuous_range=(-1.0, 0.6))
    with pytest.warns(UserWarning, match=r"lie outside coor_continuous_range \(-1.0, 0.6\)"):
        encoded, _ = autoencoder._encode_mesh(vertices, faces, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, _ = autoencoder._encode_mesh(vertices.clamp(-1.0, 0.6), faces, None)
    assert torch.equal(encoded.face_coordinates, expected.face_coordinates)


def unchecked(method):
    """The method as it runs where TYPECHECK is not set, without checks of shapes by annotation."""
    return inspect.unwrap(method)


@pytest.mark.parametrize(
    ("vertices_shape", "faces_shape", "quads", "message"),
    [
        ((8, 3), (12, 3), False, r"vertices must be batched, .* add a batch axis"),
        ((1, 8, 3), (12, 3), False, r"faces must be batched, .* with faces\[None\]"),
        ((1, 8, 3), (1, 6, 4), False, r"\(quads=False\), got .* pass quads=True for quads"),
        ((1, 8, 3), (1, 12, 3), True, r"\(quads=True\), got .* pass quads=False for triangles"),
        ((2, 8, 3), (1, 12, 3), False, r"must have the same batch size"),
        ((1, 8, 2), (1, 12, 3), False, r"vertices must have 3 coordinates each"),
    ],
)
def test_wrong_shapes_are_refused(vertices_shape, faces_shape, quads, message):
    vertices, faces = torch.zeros(vertices_shape), torch.zeros(faces_shape, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        unchecked(MeshAutoencoder.forward)(
            tiny_autoencoder(quads=quads), vertices=vertices, faces=faces
        )


def test_swapped_arguments_are_refused(batch):
    with pytest.raises(ValueError, match="the two arguments look swapped"):
        unchecked(MeshAutoencoder.forward)(tiny_autoencoder(), vertices=batch[1], faces=batch[0])


@pytest.mark.parametrize("axes", [(3, 2), (2, 3), (3, 3, 2), (1, 1), (4, 4)])
def test_some_inputs_batched_and_others_not_are_refused(batch, axes):
    tensors = (*batch, derive_face_edges_from_faces(batch[1]))
    inputs = []
    for tensor, ndim in zip(tensors, axes, strict=False):
        while tensor.ndim > ndim:
            tensor = tensor[0]
        inputs.append(tensor.reshape((1,) * (ndim - tensor.ndim) + tensor.shape))
    with pytest.raises(ValueError, match=r"all have a batch axis, or all none, got \["):
        unchecked(MeshAutoencoder.tokenize)(tiny_autoencoder(), *inputs)


@pytest.mark.parametrize("training", [True, False])
def test_a_codebook_that_was_never_initialised_is_refused(batch, training):
    autoencoder = tiny_autoencoder(**{**PLAIN_RVQ, "rvq_kwargs": {"kmeans_init": True}})
    autoencoder.train(training)
    with pytest.raises(RuntimeError, match=r"codes need a codebook, .* train or load"):
        autoencoder.tokenize(*batch)
    with pytest.raises(RuntimeError, match=r"codes need a codebook, .* train or load"):
        autoencoder.decode_from_codes_to_faces(torch.zeros(1, 6, dtype=torch.long))
    if not training:
        with pytest.raises(RuntimeError, match="codes need a codebook"):
            autoencoder(vertices=batch[0], faces=batch[1])


@pytest.mark.parametrize("bad_id", [64, 1000, -2])
@pytest.mark.parametrize("kind", ["lfq", "rvq"])
def test_code_ids_outside_the_codebook_are_refused(kind, bad_id):
    autoencoder = tiny_autoencoder(kind, codebook_size=64)
    codes = torch.zeros(2, 6, 2, dtype=torch.long)
    codes[1, 4, 1] = bad_id
    message = rf"must be in \[0, 64\), or -1 for padding, got {bad_id} in row 1 at \(9,\); these"
    with pytest.raises(ValueError, match=message):
        autoencoder.decode_from_codes_to_faces(codes)


def test_code_ids_are_checked_in_their_own_shape():
    codes = torch.zeros(2, 3, 2, dtype=torch.long)
    check_code_ids(codes, 4, -1)
    check_code_ids(codes[:, :0], 4, -1)
    codes[1, 2, 0] = 4
    with pytest.raises(ValueError, match=r"got 4 in row 1 at \(2, 0\)"):
        check_code_ids(codes, 4, -1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 7), r"3 vertices x 2 quantizers = 6, got 7 codes a row; cut them to a multiple of 6"),
        ((2, 4, 2), r"got 8 codes a row"),
        ((36, 2), r"got 2 codes a row"),
    ],
)
def test_parts_of_faces_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_autoencoder().decode_from_codes_to_faces(torch.zeros(shape, dtype=torch.long))


def test_a_mask_of_other_faces_is_refused():
    codes = torch.zeros(2, 12, dtype=torch.long)
    for shape in ((2, 3), (1, 2)):
        mask = torch.ones(shape, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"face_mask must have an entry .* \(2, 2\), got"):
            unchecked(MeshAutoencoder.decode_from_codes_to_faces)(tiny_autoencoder(), codes, mask)
