"""Vertex-consistent decoding: one vertex, one position, whatever the batch around it."""

import pytest
import torch
from einops import rearrange

from meshgpt_pytorch.mesh import faces_to_mesh
from meshgpt_pytorch.tokenizers.consistency import average_over_corners
from tests.tokenizers.models import batch_for, tiny_autoencoder

CONSISTENT = ("lfq, consistent", "fsq, shortcut, consistent", "quads, fsq, shortcut, consistent")


def naive_average(logits, ids, face_mask):
    """Compare each corner with each other corner of its mesh."""
    nvf = ids.shape[2]
    corners = rearrange(logits, "b nf (nvf c) bins -> b nf nvf c bins", nvf=nvf)
    averaged = corners.clone()
    for mesh in range(len(ids)):
        places = [
            (face, corner) for face in face_mask[mesh].nonzero()[:, 0] for corner in range(nvf)
        ]
        for place in places:
            same = [
                corners[mesh][other]
                for other in places
                if torch.equal(ids[mesh][other], ids[mesh][place])
            ]
            averaged[mesh][place] = torch.stack(same).mean(dim=0)
    return rearrange(averaged, "b nf nvf c bins -> b nf (nvf c) bins")


@pytest.mark.parametrize("num_ids", [1, 2])
def test_average_over_corners_equals_a_loop(num_ids):
    torch.manual_seed(0)
    ids = torch.randint(-1, 3, (2, 7, 3, num_ids))
    face_mask = torch.rand(2, 7) > 0.3
    logits = torch.randn(2, 7, 9, 5, dtype=torch.float64, requires_grad=True)
    naive_logits = logits.detach().clone().requires_grad_()
    averaged = average_over_corners(logits, ids, face_mask)
    expected = naive_average(naive_logits, ids, face_mask)
    torch.testing.assert_close(averaged, expected)

    weight = torch.randn_like(averaged)
    (averaged * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(logits.grad, naive_logits.grad)


def codes_of_random_vertices(autoencoder, num_faces=20, num_vertices=8):
    """Codes as a transformer may give them: few vertices, each in many faces."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, num_vertices, autoencoder.num_quantizers)
    vertices = torch.randint(0, autoencoder.codebook_size, shape, generator=generator)
    corners = torch.randint(
        0, num_vertices, (2, num_faces, autoencoder.num_vertices_per_face), generator=generator
    )
    return vertices[torch.arange(2)[:, None, None], corners], corners


@pytest.mark.parametrize("kind", CONSISTENT)
def test_shared_vertices_coincide(kind):
    autoencoder = tiny_autoencoder(kind)
    codes, corners = codes_of_random_vertices(autoencoder)
    face_coords, _ = autoencoder.decode_from_codes_to_faces(codes)
    for mesh in range(2):
        for vertex in corners[mesh].unique():
            assert len(face_coords[mesh][corners[mesh] == vertex].unique(dim=0)) == 1
        merged = faces_to_mesh(face_coords[mesh])
        assert len(merged.vertices) <= len(corners[mesh].unique())

    # decoded corner by corner they fall apart, so that the above shows something
    plain, _ = autoencoder.decode_from_codes_to_faces(codes, vertex_consistent=False)
    assert any(
        len(plain[0][corners[0] == vertex].unique(dim=0)) > 1 for vertex in corners[0].unique()
    )


def test_any_autoencoder_can_decode_consistently():
    codes, _ = codes_of_random_vertices(tiny_autoencoder("lfq"))
    plain, consistent = tiny_autoencoder("lfq"), tiny_autoencoder("lfq, consistent")
    found = plain.decode_from_codes_to_faces(codes, vertex_consistent=True)
    assert torch.equal(found.face_coords, consistent.decode_from_codes_to_faces(codes).face_coords)


@pytest.mark.parametrize("kind", CONSISTENT)
def test_without_shared_codes_decoding_is_as_before(kind):
    autoencoder = tiny_autoencoder(kind)
    n = 8 * autoencoder.num_vertices_per_face
    codes = torch.stack((torch.arange(n), torch.arange(n).flip(0)), dim=-1)[None]
    one = autoencoder.decode_from_codes_to_faces(codes, vertex_consistent=True)
    other = autoencoder.decode_from_codes_to_faces(codes, vertex_consistent=False)
    assert torch.equal(one.face_coords, other.face_coords)


@pytest.mark.parametrize("kind", CONSISTENT)
def test_a_mesh_is_decoded_alike_alone_in_a_batch_and_with_padding(kind):
    autoencoder = tiny_autoencoder(kind).double()
    codes, _ = codes_of_random_vertices(autoencoder)
    # both meshes have the codes of the first: they must not be averaged together
    codes = torch.stack((codes[0], codes[0].flip(0)))
    alone = autoencoder.decode_from_codes_to_faces(codes[:1]).face_coords[0]
    padded = torch.full((2, 25, *codes.shape[2:]), -1)
    padded[0, 3:23], padded[1, :20] = codes[0], codes[1]
    assert torch.equal(autoencoder.decode_from_codes_to_faces(codes).face_coords[0], alone)
    face_coords, face_mask = autoencoder.decode_from_codes_to_faces(padded)
    assert torch.equal(face_coords[0, 3:23], alone)
    assert face_mask.sum(dim=1).tolist() == [20, 20]


@pytest.mark.parametrize("kind", CONSISTENT)
def test_reconstruction_in_eval_mode_is_that_of_the_codes(kind, furniture):
    vertices, faces = batch_for(kind, furniture)
    autoencoder = tiny_autoencoder(kind).double().eval()
    codes = autoencoder.tokenize(vertices, faces)
    recon = autoencoder(vertices=vertices, faces=faces, only_return_recon_faces=True)
    decoded = autoencoder.decode_from_codes_to_faces(codes)
    assert torch.equal(recon[decoded.face_mask], decoded.face_coords[decoded.face_mask])


def test_the_training_loss_is_that_of_averaged_logits(furniture):
    vertices, faces = batch_for("lfq", furniture)
    autoencoder = tiny_autoencoder("lfq, consistent")
    recon = autoencoder(
        vertices=vertices, faces=faces, skip_quantizer=True, only_return_recon_faces=True
    )
    for mesh in range(len(faces)):
        for vertex in faces[mesh][faces[mesh] >= 0].unique():
            assert len(recon[mesh][faces[mesh] == vertex].unique(dim=0)) == 1
