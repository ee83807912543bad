"""Laws of text in the transformer: its forms, padding, dropping, one text for all, errors."""

import pytest
import torch
import torch.nn.functional as F

from meshgpt_pytorch.transformer.conditioning import build_conditioner, match_batch
from meshgpt_pytorch.transformer.text import AutoModelEncoder, EncodedText, minilm_path
from tests.transformer.models import (
    TEXTS,
    LetterEncoder,
    logits_of,
    make_text_transformer,
    make_transformer,
    random_codes,
)

# every way by which a text reaches the logits
WAYS = {
    "coarse": {},
    "coarse, no memory": {"cross_attn_num_mem_kv": 0},
    "fine": {"fine_cross_attend_text": True},
    "fine, no memory": {"fine_cross_attend_text": True, "cross_attn_num_mem_kv": 0},
    "film": {"text_cond_with_film": True},
    "adaptive rmsnorm": {"coarse_adaptive_rmsnorm": True},
    "all, no flash": {
        "fine_cross_attend_text": True,
        "text_cond_with_film": True,
        "coarse_adaptive_rmsnorm": True,
        "cross_attn_num_mem_kv": 0,
        "flash_attn": False,
    },
}
LONG_TEXT = "a shelf of the same width as the table beside it"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=WAYS)
def model(request):
    return make_text_transformer(**WAYS[request.param])


@pytest.fixture(scope="module")
def simple_model():
    return make_text_transformer(fine_cross_attend_text=True)


@pytest.fixture
def codes(simple_model):
    return random_codes(simple_model, 3)


def all_forms(model, texts):
    (encoding,) = model.conditioner.encode(texts)
    embeds = model.conditioner.project([encoding])
    return {
        "texts": {"texts": texts},
        "embeds": {"text_embeds": model.embed_texts(texts)},
        "embeds, mask": {"text_embeds": embeds.embeddings, "text_mask": embeds.mask},
        "encodings": {"text_encodings": encoding.embeddings},
        "encodings, mask": {"text_encodings": encoding.embeddings, "text_mask": encoding.mask},
        "encodings of each encoder": {"text_encodings": [encoding.embeddings]},
    }


# the forms of a text


@torch.no_grad()
def test_logits_do_not_depend_on_the_form_of_the_text(model, codes):
    wanted = logits_of(model, codes, texts=TEXTS)
    assert (wanted - logits_of(model, codes, texts=TEXTS[::-1])).abs().max() > 1e-2
    for name, form in all_forms(model, TEXTS).items():
        torch.testing.assert_close(logits_of(model, codes, **form), wanted, msg=name)
        torch.testing.assert_close(model(codes=codes, **form), model(codes=codes, texts=TEXTS))


@torch.no_grad()
def test_rows_of_minus_one_and_a_mask_say_the_same(model, codes):
    (encoding,) = model.conditioner.encode(TEXTS)
    garbage = encoding.embeddings.masked_fill(~encoding.mask[..., None], 1e6)
    wanted = logits_of(model, codes, texts=TEXTS)
    masked = logits_of(model, codes, text_encodings=garbage, text_mask=encoding.mask)
    torch.testing.assert_close(masked, wanted)


@torch.no_grad()
def test_one_text_serves_all_meshes(model, codes):
    wanted = logits_of(model, codes, texts=[LONG_TEXT] * 3)
    for name, form in all_forms(model, [LONG_TEXT]).items():
        torch.testing.assert_close(logits_of(model, codes, **form), wanted, msg=name)
        loss = model(codes=codes, **form)
        torch.testing.assert_close(loss, model(codes=codes, texts=[LONG_TEXT] * 3), msg=name)


@pytest.mark.parametrize("form", ["texts", "encodings", "encodings, mask"])
def test_the_projection_trains_on_texts_and_encodings(simple_model, codes, form):
    simple_model.zero_grad()
    given = all_forms(simple_model, TEXTS)[form]
    simple_model(codes=codes, **given).backward()
    projection = simple_model.conditioner.to_latent_dims[0]
    assert projection.weight.grad.abs().sum() > 0
    assert projection.bias.grad.abs().sum() > 0


def test_the_projection_does_not_train_on_embeds(simple_model, codes):
    simple_model.zero_grad()
    embeds = simple_model.embed_texts(TEXTS)
    assert not embeds.requires_grad
    simple_model(codes=codes, text_embeds=embeds).backward()
    assert simple_model.conditioner.to_latent_dims[0].weight.grad is None


def test_texts_are_embedded_one_or_several(simple_model):
    several = simple_model.embed_texts(TEXTS)
    assert several.shape == (3, max(map(len, TEXTS)), 12)
    for row, text in enumerate(TEXTS):
        one = simple_model.embed_texts(text)
        assert one.shape == (len(text), 12)
        torch.testing.assert_close(several[row, : len(text)], one)
        assert (several[row, len(text) :] == -1).all()


@torch.no_grad()
def test_several_encoders_condition_together(codes):
    model = make_text_transformer(text_encoder=[LetterEncoder(4), LetterEncoder(6)])
    first, second = model.conditioner.encode(TEXTS)
    wanted = logits_of(model, codes, texts=TEXTS)
    both = [first.embeddings, second.embeddings]
    torch.testing.assert_close(logits_of(model, codes, text_encodings=both), wanted)
    swapped = [first.embeddings, second.embeddings.flip(0)]
    assert (logits_of(model, codes, text_encodings=swapped) - wanted).abs().max() > 1e-3


# padding and batches


@torch.no_grad()
def test_logits_of_a_text_do_not_depend_on_the_texts_beside_it(model, codes):
    texts = ["sofa", LONG_TEXT, "a"]
    together = logits_of(model, codes, texts=texts)
    for row, text in enumerate(texts):
        alone = logits_of(model, codes[row : row + 1], texts=[text])
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)


@torch.no_grad()
def test_padding_of_a_text_has_no_effect(model, codes):
    embeds = model.embed_texts(TEXTS)
    wanted = logits_of(model, codes, text_embeds=embeds)
    at_the_end = F.pad(embeds, (0, 0, 0, 7), value=-1.0)
    torch.testing.assert_close(logits_of(model, codes, text_embeds=at_the_end), wanted, **CLOSE)
    at_the_start = F.pad(embeds, (0, 0, 4, 0), value=-1.0)
    torch.testing.assert_close(logits_of(model, codes, text_embeds=at_the_start), wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
def test_logits_with_minilm_do_not_depend_on_the_texts_beside_it(cond_scale):
    model = make_text_transformer(
        text_encoder=AutoModelEncoder(minilm_path()), text_cond_with_film=True
    )
    codes = random_codes(model, 1.5)
    together = logits_of(model, codes, texts=["sofa", LONG_TEXT, ""], cond_scale=cond_scale)
    for row, text in enumerate(["sofa", LONG_TEXT, ""]):
        alone = logits_of(model, codes[row : row + 1], texts=[text], cond_scale=cond_scale)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


# dropped texts


@torch.no_grad()
def test_logits_of_a_dropped_text_do_not_depend_on_it(model, codes):
    dropped = logits_of(model, codes, texts=TEXTS, cond_drop_prob=1.0)
    other = logits_of(model, codes, texts=[LONG_TEXT], cond_drop_prob=1.0)
    assert dropped.isfinite().all()
    torch.testing.assert_close(dropped, other, rtol=0, atol=0)
    kept = logits_of(model, codes, texts=TEXTS, cond_drop_prob=0.0)
    assert (kept - dropped).abs().max() > 1e-2


def test_a_model_trains_on_dropped_texts(model, codes):
    model.zero_grad()
    model(codes=codes, texts=TEXTS, cond_drop_prob=1.0).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_texts_are_dropped_in_training_alone_as_often_as_asked_for(codes):
    def losses(model, **options):
        return {round(float(model(codes=codes, texts=TEXTS, **options)), 6) for _ in range(12)}

    always = make_text_transformer(text_condition_cond_drop_prob=1)
    never = make_text_transformer(text_condition_cond_drop_prob=0)
    half = make_text_transformer(text_condition_cond_drop_prob=0.5)
    (kept,) = losses(never.train())
    (dropped,) = losses(always.train())
    assert abs(kept - dropped) > 1e-3
    assert len(losses(half.train())) > 2
    # the argument goes before the model's own
    assert losses(half, cond_drop_prob=0) == {kept}
    assert losses(half, cond_drop_prob=1) == {dropped}
    assert losses(always.eval()) == losses(half.eval()) == {kept}
    assert losses(always, cond_drop_prob=1.0) == {dropped}


@torch.no_grad()
def test_logits_too_drop_texts_in_training(codes):
    model = make_text_transformer(text_condition_cond_drop_prob=1.0)
    kept = logits_of(model, codes, texts=TEXTS)
    dropped = logits_of(model, codes, texts=TEXTS, cond_drop_prob=1.0)
    torch.testing.assert_close(logits_of(model.train(), codes, texts=TEXTS), dropped)
    torch.testing.assert_close(logits_of(model, codes, texts=TEXTS, cond_drop_prob=0.0), kept)


@torch.no_grad()
def test_guided_logits_are_pushed_away_from_those_without_text(model, codes):
    with_text = logits_of(model, codes, texts=TEXTS)
    without = logits_of(model, codes, texts=TEXTS, cond_drop_prob=1.0)
    for cond_scale in (1, 2.5):
        guided = logits_of(model, codes, texts=TEXTS, cond_scale=cond_scale)
        wanted = without + (with_text - without) * cond_scale
        torch.testing.assert_close(guided, wanted, rtol=1e-4, atol=1e-4)


# errors


def test_texts_must_be_given_once(simple_model, codes):
    embeds = simple_model.embed_texts(TEXTS)
    message = r"exactly one of texts, text_embeds and text_encodings must be given .* got {}"
    with pytest.raises(ValueError, match=message.format("none")):
        simple_model(codes=codes)
    with pytest.raises(ValueError, match=message.format("texts and text_embeds")):
        simple_model(codes=codes, texts=TEXTS, text_embeds=embeds)
    with pytest.raises(ValueError, match=message.format("text_embeds and text_encodings")):
        simple_model(codes=codes, text_encodings=embeds, text_embeds=embeds)


@pytest.mark.parametrize("number", [2, 4])
def test_another_number_of_texts_than_of_meshes_is_refused(simple_model, codes, number):
    texts = ["chair"] * number
    for form in all_forms(simple_model, texts).values():
        message = f"one for each of the 3 meshes, or one for all, got {number}"
        with pytest.raises(ValueError, match=message):
            simple_model(codes=codes, **form)


def test_a_mask_without_embeddings_is_refused(simple_model, codes):
    mask = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"text_mask tells which rows .* got it without either"):
        simple_model(codes=codes, texts=TEXTS, text_mask=mask)
    model = make_transformer()
    with pytest.raises(ValueError, match="text_mask tells which rows"):
        model(codes=codes, text_mask=mask)


def test_masks_of_text_embeds_must_be_one_tensor(simple_model, codes):
    embeds = simple_model.embed_texts(TEXTS)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    with pytest.raises(ValueError, match="text_mask of text_embeds must be one tensor"):
        simple_model(codes=codes, text_embeds=embeds, text_mask=[mask])


def test_a_text_that_is_no_list_is_refused(simple_model, codes):
    with pytest.raises(ValueError, match="texts must be a list of strings, got 'a chair'"):
        simple_model(codes=codes, texts="a chair")


@pytest.mark.parametrize("cond_drop_prob", [-0.1, 1.5])
def test_a_drop_that_is_no_probability_is_refused(simple_model, codes, cond_drop_prob):
    with pytest.raises(ValueError, match="cond_drop_prob must be from 0 to 1"):
        simple_model(codes=codes, texts=TEXTS, cond_drop_prob=cond_drop_prob)
    with pytest.raises(ValueError, match="cond_drop_prob must be from 0 to 1"):
        build_conditioner(LetterEncoder(), (), (), cond_drop_prob)


def test_guidance_in_training_is_refused(simple_model, codes):
    simple_model.train()
    with pytest.raises(ValueError, match="cond_scale must be 1 in training mode, got 3"):
        logits_of(simple_model, codes, texts=TEXTS, cond_scale=3)
    simple_model.eval()


def test_a_model_without_text_embeds_none():
    with pytest.raises(RuntimeError, match="embed_texts needs a text encoder"):
        make_transformer().embed_texts("a chair")


def test_no_text_matches_any_batch():
    assert match_batch(None, 5) is None
    text = EncodedText(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    assert match_batch(text, 2) is text
