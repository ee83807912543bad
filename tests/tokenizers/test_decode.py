"""Decoding codes: every shape they come in, padding, and codes that are missing."""

import pytest
import torch
from einops import rearrange

from meshgpt_pytorch.mesh import discretize, undiscretize
from meshgpt_pytorch.tokenizers.outputs import DecodedFaces, DiscreteFaces
from tests.tokenizers.models import ATTENTION, KINDS, batch_for, tiny_autoencoder


@pytest.fixture
def batch(furniture):
    return batch_for("lfq", furniture)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_may_be_flat_or_by_vertex_or_by_face(kind, furniture):
    autoencoder = tiny_autoencoder(kind)
    codes = autoencoder.tokenize(*batch_for(kind, furniture))
    decoded = autoencoder.decode_from_codes_to_faces(codes)
    nvf = autoencoder.num_vertices_per_face
    flat = rearrange(codes, "b n q -> b (n q)")
    by_face = rearrange(codes, "b (nf nvf) q -> b nf nvf q", nvf=nvf)
    for shaped in (flat, by_face, codes.int()):
        assert_same(autoencoder.decode_from_codes_to_faces(shaped), decoded)


def test_results_are_named_and_unpack(batch):
    autoencoder = tiny_autoencoder()
    codes = autoencoder.tokenize(*batch)
    decoded = autoencoder.decode_from_codes_to_faces(codes)
    assert isinstance(decoded, DecodedFaces)
    face_coords, face_mask = decoded
    assert face_coords is decoded.face_coords
    assert torch.equal(face_mask, (batch[1] != -1).all(dim=-1))

    discrete = autoencoder.decode_from_codes_to_faces(codes, return_discrete_codes=True)
    assert isinstance(discrete, DiscreteFaces)
    same_coords, bins, same_mask = discrete
    assert_same((same_coords, same_mask), (face_coords, face_mask))
    centres = undiscretize(bins, continuous_range=(-1.0, 1.0), num_discrete=32)
    assert torch.equal(face_coords[face_mask], centres[face_mask])


def test_coordinates_are_bin_centres_of_the_range(batch):
    autoencoder = tiny_autoencoder(coor_continuous_range=(-3.0, 5.0))
    face_coords, face_mask = autoencoder.decode_from_codes_to_faces(autoencoder.tokenize(*batch))
    found = face_coords[face_mask]
    bins = discretize(found, continuous_range=(-3.0, 5.0), num_discrete=32)
    torch.testing.assert_close(found, (bins + 0.5) / 32 * 8 - 3)
    assert found.max() > 1


@pytest.mark.parametrize("shape", [(2, 0), (2, 0, 2), (2, 0, 3, 2)])
def test_no_codes_are_no_faces(shape):
    autoencoder = tiny_autoencoder(**ATTENTION)
    empty = torch.zeros(shape, dtype=torch.long)
    decoded = autoencoder.decode_from_codes_to_faces(empty, return_discrete_codes=True)
    assert decoded.face_coords.shape == decoded.discrete_coords.shape == (2, 0, 3, 3)
    assert decoded.face_mask.shape == (2, 0)
    assert decoded.face_mask.dtype == torch.bool
    assert decoded.face_coords.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_padding_alone_has_no_faces_and_changes_no_other(kind, furniture):
    autoencoder = tiny_autoencoder(kind)
    codes = autoencoder.tokenize(*batch_for(kind, furniture))
    expected = autoencoder.decode_from_codes_to_faces(codes)
    codes[1] = -1
    face_coords, face_mask = autoencoder.decode_from_codes_to_faces(codes)
    assert not face_mask[1].any()
    assert face_coords[1].isnan().all()
    for row in (0, 2):
        assert_same(face_coords[row], expected.face_coords[row])


@pytest.mark.parametrize("kind", ["lfq, attention", "rvq, attention"])
def test_a_given_mask_cuts_faces_as_padding_does(kind, furniture):
    autoencoder = tiny_autoencoder(kind)
    vertices, faces = batch_for(kind, furniture)
    codes = autoencoder.tokenize(vertices, faces)
    face_mask = (faces != -1).all(dim=-1)
    face_mask[:, 8:] = False
    decoded = autoencoder.decode_from_codes_to_faces(codes, face_mask)
    codes[:, 8 * 3 :] = -1
    assert_same(decoded, autoencoder.decode_from_codes_to_faces(codes))
    assert torch.equal(decoded.face_mask, face_mask)


@pytest.mark.parametrize("pad_id", [-1, -2])
@pytest.mark.parametrize("kind", ["lfq", "rvq"])
def test_quantizers_without_codes_add_nothing_where_a_mask_keeps_the_face(kind, pad_id, batch):
    autoencoder = tiny_autoencoder(kind, pad_id=pad_id)
    vertices, faces = batch[0], batch[1].masked_fill(batch[1] == -1, pad_id)
    codes = autoencoder.tokenize(vertices, faces)[:1, :36]
    face_mask = torch.ones(1, 12, dtype=torch.bool)
    coarse = codes.clone()
    coarse[..., 1] = pad_id
    found = autoencoder.decode_from_codes_to_faces(coarse, face_mask, return_discrete_codes=True)

    # the first codebook alone
    book = autoencoder.quantizer.codebooks[0]
    quantized = autoencoder.quantizer.project_out(book[codes[..., 0]])
    autoencoder.eval()
    logits = autoencoder.to_coor_logits(
        autoencoder.decode(rearrange(quantized, "b (nf nvf) d -> b nf (nvf d)", nvf=3), face_mask)
    )
    expected = rearrange(logits.argmax(dim=-1), "b nf (nvf c) -> b nf nvf c", c=3)
    assert torch.equal(found.discrete_coords, expected)
    # without a mask, a face that lacks codes is padding
    assert not autoencoder.decode_from_codes_to_faces(coarse).face_mask.any()


def test_decoding_is_in_eval_mode(batch):
    options = {**ATTENTION, "attn_dropout": 0.5, "ff_dropout": 0.5, "resnet_dropout": 0.5}
    autoencoder = tiny_autoencoder(**options)
    codes = autoencoder.tokenize(*batch)
    expected = autoencoder.eval().decode_from_codes_to_faces(codes)
    assert_same(autoencoder.train().decode_from_codes_to_faces(codes), expected)


def test_decoding_leaves_its_codes_as_they_are(batch):
    autoencoder = tiny_autoencoder()
    codes = autoencoder.tokenize(*batch)
    before = codes.clone()
    autoencoder.decode_from_codes_to_faces(codes)
    assert torch.equal(codes, before)


def test_codes_decide_the_faces(batch):
    # so that equal reconstructions above show something
    autoencoder = tiny_autoencoder()
    codes = autoencoder.tokenize(*batch)[:1, :36]
    decoded = autoencoder.decode_from_codes_to_faces(codes).face_coords
    other = autoencoder.decode_from_codes_to_faces(codes.roll(3, dims=1)).face_coords
    assert not torch.equal(decoded, other)
    assert len(decoded.flatten(0, 1).unique(dim=0)) > 4
