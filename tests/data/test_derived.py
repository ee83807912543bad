"""What a data set derives from its meshes: right, once, and anew when its maker changed."""

import pytest
import torch

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.mesh import Mesh, canonicalize_mesh, derive_face_edges_from_faces
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.data.encoders import CharacterEncoder
from tests.helpers import box_mesh, tetrahedron_mesh


class ModuleEncoder(torch.nn.Embedding):
    """A text encoder that is a module."""

    dim_latent = 4

    def __init__(self):
        super().__init__(128, 4)

    def embed(self, texts):
        ids = torch.tensor([[ord(text[0])] for text in texts])
        return self(ids), torch.ones(ids.shape, dtype=torch.bool)


def test_canonicalize_orders_every_mesh_and_leaves_the_original(small):
    ordered = small.canonicalize()
    for item, before in zip(ordered, small, strict=True):
        mesh = canonicalize_mesh(Mesh(before["vertices"], before["faces"]))
        assert torch.equal(item["vertices"], mesh.vertices)
        assert torch.equal(item["faces"], mesh.faces)
        assert item["texts"] == before["texts"]
    assert not torch.equal(ordered[0]["faces"], small[0]["faces"])


def test_canonicalize_leaves_behind_what_belongs_to_the_old_order(small):
    small.cache_face_edges()
    small.cache_text_encodings(CharacterEncoder())
    ordered = small.canonicalize()
    assert list(ordered[0]) == ["vertices", "faces", "texts", "text_encodings"]
    assert small.with_keys("face_edges").canonicalize().item_keys == ordered.item_keys


def test_cached_face_edges_are_those_of_each_mesh(small):
    small.cache_face_edges()
    for item in small:
        assert item["face_edges"].dtype == torch.int64
        assert torch.equal(item["face_edges"], derive_face_edges_from_faces(item["faces"]))


@pytest.mark.parametrize("with_edges", [False, True])
def test_cached_codes_are_those_of_each_mesh_alone_whatever_the_batch(
    small, autoencoder, with_edges
):
    if with_edges:
        small.cache_face_edges()
    small.cache_codes(autoencoder, batch_size=5)
    for item in small:
        alone = autoencoder.tokenize(item["vertices"], item["faces"])
        assert item["codes"].dtype == torch.int64
        assert torch.equal(item["codes"], alone) and len(alone) == item["faces"].numel()


def test_codes_are_made_once_and_after_training_refused_until_they_are_rebuilt(
    small, autoencoder, monkeypatch
):
    calls = []
    tokenize = autoencoder.tokenize
    monkeypatch.setattr(
        autoencoder, "tokenize", lambda **kwargs: calls.append(1) or tokenize(**kwargs)
    )
    small.cache_codes(autoencoder, batch_size=12)
    first = small.codes_fingerprint
    small.cache_codes(autoencoder, batch_size=12)
    assert len(calls) == 1 and small.codes_fingerprint == first

    with torch.no_grad():
        next(autoencoder.parameters()).add_(0.5)
    message = r"the codes of this data set must come from .*cache_codes\(autoencoder, rebuild=True"
    with pytest.raises(ValueError, match=message):
        small.cache_codes(autoencoder, batch_size=12)
    assert len(calls) == 1 and small.codes_fingerprint == first
    small.cache_codes(autoencoder, batch_size=12, rebuild=True)
    assert len(calls) == 2 and small.codes_fingerprint != first
    item = small[0]
    assert torch.equal(item["codes"], tokenize(item["vertices"], item["faces"]))


def test_the_fingerprint_knows_options_that_no_weight_shows(autoencoder):
    dataset = MeshDataset.from_meshes([tetrahedron_mesh()])
    dataset.cache_codes(autoencoder)
    other = MeshAutoencoder(**{**autoencoder.config, "coor_continuous_range": (-2.0, 2.0)})
    other.load_state_dict(autoencoder.state_dict())
    before = dataset.codes_fingerprint
    dataset.cache_codes(other, rebuild=True)
    assert dataset.codes_fingerprint != before


def test_each_distinct_text_is_encoded_once_and_stored_once(small):
    texts = ["a box", "chair", "a box", "lamp"] * 3
    dataset = MeshDataset.from_meshes(list(small), texts=texts)
    encoder = CharacterEncoder()
    dataset.cache_text_encodings(encoder, batch_size=2)
    assert encoder.seen == ["a box", "chair", "lamp"]
    for item in dataset:
        alone = encoder.embed([item["texts"]])[0][0]
        assert torch.equal(item["text_encodings"], alone) and len(alone) == len(item["texts"])
    stored = dataset._table.columns["text_encodings"].rows
    assert int(stored.lengths.sum()) == len("a box") + len("chair") + len("lamp")


def test_text_encodings_keep_the_dtype_of_the_encoder(small):
    small.cache_text_encodings(CharacterEncoder(dtype=torch.bfloat16))
    assert small[0]["text_encodings"].dtype == torch.bfloat16


def test_encodings_of_another_encoder_are_refused_until_they_are_rebuilt(small):
    encoder, same, other = CharacterEncoder(), CharacterEncoder(), CharacterEncoder(2.0)
    small.cache_text_encodings(encoder)
    small.cache_text_encodings(same)
    with pytest.raises(ValueError, match=r"anew with cache_text_encodings\(encoder, rebuild=True"):
        small.cache_text_encodings(other)
    assert encoder.seen and not same.seen and not other.seen
    small.cache_text_encodings(other, rebuild=True)
    assert "CharacterEncoder(2.0" in small.text_encodings_fingerprint
    alone = other.embed([small.captions[0]])[0][0]
    assert torch.equal(small[0]["text_encodings"], alone)


def test_an_encoder_that_is_a_module_is_known_by_its_weights(small):
    encoder = ModuleEncoder()
    small.cache_text_encodings(encoder)
    first = small.text_encodings_fingerprint
    small.cache_text_encodings(encoder)
    assert small.text_encodings_fingerprint == first
    with torch.no_grad():
        encoder.weight.add_(1.0)
    small.cache_text_encodings(encoder, rebuild=True)
    assert small.text_encodings_fingerprint != first
    assert not small[0]["text_encodings"].requires_grad


def test_an_encoder_without_a_name_never_passes_for_another(small):
    class Nameless(CharacterEncoder):
        __repr__ = object.__repr__

    encoder = Nameless()
    small.cache_text_encodings(encoder)
    for each in (encoder, Nameless()):
        with pytest.raises(ValueError, match="must come from what is asked for now"):
            small.cache_text_encodings(each)
    small.cache_text_encodings(encoder, rebuild=True)
    assert len(encoder.seen) == 2 * len(set(small.captions))


def test_progress_is_shown_for_every_long_step(small, autoencoder, capsys):
    small.cache_face_edges()
    small.cache_codes(autoencoder)
    small.cache_text_encodings(CharacterEncoder())
    small.canonicalize()
    progress = capsys.readouterr().err
    for description in ("face edges", "codes", "texts", "canonical order"):
        assert f"{description}: 100%" in progress


# bad input


def test_text_encodings_need_captions():
    with pytest.raises(ValueError, match="this data set has no caption"):
        MeshDataset.from_meshes([box_mesh()]).cache_text_encodings(CharacterEncoder())


def test_a_batch_size_below_one_is_refused(small, autoencoder):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        small.cache_codes(autoencoder, batch_size=0)


def test_a_mesh_of_which_nothing_is_left_is_named():
    flat = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    dataset = MeshDataset.from_meshes([box_mesh(), flat], names=["box", "point"])
    with pytest.raises(ValueError, match=r"mesh 1 \('point'\): "):
        dataset.canonicalize()


def test_an_encoder_with_a_wrong_mask_is_reported(small):
    class Wrong(CharacterEncoder):
        def embed(self, texts):
            embeddings, mask = super().embed(texts)
            return embeddings, mask[:, :-1]

    with pytest.raises(RuntimeError, match=r"embeddings \(b, n, d\) and a mask \(b, n\)"):
        small.cache_text_encodings(Wrong())


def test_an_autoencoder_that_leaves_codes_out_is_reported(small, autoencoder, monkeypatch):
    tokenize = autoencoder.tokenize
    monkeypatch.setattr(autoencoder, "tokenize", lambda **kwargs: tokenize(**kwargs)[:, :-3])
    with pytest.raises(RuntimeError, match=r"wanted \d+ codes for mesh \d+, got fewer"):
        small.cache_codes(autoencoder)
