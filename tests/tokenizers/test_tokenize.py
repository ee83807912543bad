"""Tokenising: eval mode and no other, the mode put back, one mesh or a batch."""

import pytest
import torch

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from tests.tokenizers.models import (
    ATTENTION,
    KINDS,
    PLAIN_RVQ,
    batch_for,
    small_furniture,
    tiny_autoencoder,
)

DROPOUT = {"attn_dropout": 0.5, "ff_dropout": 0.5, "resnet_dropout": 0.5}
UNINITIALISED = {**PLAIN_RVQ, "rvq_kwargs": {"kmeans_init": True}}


@pytest.fixture
def batch(furniture):
    return batch_for("lfq", furniture)


def modes(autoencoder):
    return {name: part.training for name, part in autoencoder.named_modules()}


def with_some_parts_frozen(autoencoder):
    autoencoder.train()
    autoencoder.quantizer.eval()
    autoencoder.decoders[0].eval()
    return autoencoder


USES = {
    "tokenize": lambda autoencoder, vertices, faces: autoencoder.tokenize(vertices, faces),
    "return_codes": lambda autoencoder, vertices, faces: autoencoder(
        vertices=vertices, faces=faces, return_codes=True
    ),
    "decode": lambda autoencoder, vertices, faces: autoencoder.decode_from_codes_to_faces(
        autoencoder.tokenize(vertices, faces)
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_part_keeps_its_mode(batch, use):
    autoencoder = with_some_parts_frozen(tiny_autoencoder(**ATTENTION))
    before = modes(autoencoder)
    assert {True, False} == set(before.values())
    use(autoencoder, *batch)
    assert modes(autoencoder) == before


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_part_keeps_its_mode_after_an_error(batch, use):
    vertices, faces = batch
    autoencoder = with_some_parts_frozen(tiny_autoencoder())
    before = modes(autoencoder)
    with pytest.raises(ValueError, match="faces must hold indices"):
        use(autoencoder, vertices[:, :5], faces)
    assert modes(autoencoder) == before


def test_decoding_keeps_modes_after_an_error():
    autoencoder = with_some_parts_frozen(tiny_autoencoder(**UNINITIALISED))
    before = modes(autoencoder)
    with pytest.raises(RuntimeError, match="codes need a codebook"):
        autoencoder.decode_from_codes_to_faces(torch.zeros(1, 6, dtype=torch.long))
    assert modes(autoencoder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_a_model_in_training_are_those_of_eval_mode(kind, furniture):
    vertices, faces = batch_for(kind, furniture)
    autoencoder = tiny_autoencoder(kind, num_quantizers=3, **DROPOUT)
    expected = autoencoder.eval()(vertices=vertices, faces=faces, return_codes=True)
    autoencoder.train()
    assert torch.equal(autoencoder.tokenize(vertices, faces), expected)
    codes = autoencoder(vertices=vertices, faces=faces, return_codes=True)
    assert torch.equal(codes, expected)


def test_tokenising_leaves_weights_and_codebooks_as_they_are(batch):
    autoencoder = tiny_autoencoder(**PLAIN_RVQ)
    before = {name: t.clone() for name, t in autoencoder.state_dict().items()}
    autoencoder.tokenize(*batch)
    autoencoder.decode_from_codes_to_faces(torch.zeros(1, 12, dtype=torch.long))
    torch.testing.assert_close(autoencoder.state_dict(), before, rtol=0, atol=0)


def test_codes_have_a_place_for_each_corner_and_quantizer(batch):
    vertices, faces = batch
    codes = tiny_autoencoder(num_quantizers=3).tokenize(vertices, faces)
    assert codes.shape == (4, faces.shape[1] * 3, 3)
    assert codes.dtype == torch.int64
    assert codes.max() < 64


def test_one_mesh_gives_the_codes_of_a_batch_of_one(furniture):
    autoencoder = tiny_autoencoder(**ATTENTION)
    for vertices, faces in small_furniture(furniture):
        expected = autoencoder.tokenize(vertices[None], faces[None])[0]
        assert torch.equal(autoencoder.tokenize(vertices, faces), expected)
        edges = derive_face_edges_from_faces(faces)
        assert torch.equal(autoencoder.tokenize(vertices, faces, edges), expected)


def test_tokenising_twice_gives_the_same(batch):
    autoencoder = tiny_autoencoder(**ATTENTION, **DROPOUT)
    assert torch.equal(autoencoder.tokenize(*batch), autoencoder.tokenize(*batch))


def test_the_first_training_batch_initialises_a_codebook(batch):
    autoencoder = tiny_autoencoder(**UNINITIALISED)
    autoencoder(vertices=batch[0], faces=batch[1])
    codes = autoencoder.tokenize(*batch)
    assert len(codes[codes >= 0].unique()) > 4
