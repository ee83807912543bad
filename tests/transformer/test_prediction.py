"""Stepped = in one pass: each code's logits, in every precision, whatever came before."""

import pytest
import torch

from meshgpt_pytorch.transformer.prediction import (
    ModulePredictor,
    SteppingPredictor,
    choose_predictor,
)
from meshgpt_pytorch.transformer.step_linear import Precision
from tests.transformer.models import (
    TEXTS,
    logits_of,
    make_text_transformer,
    make_transformer,
    prefixes,
    random_codes,
    unsettle,
)
from tests.transformer.option_cases import (
    ATTN_OPTIONS,
    GUIDANCE,
    MODEL_OPTIONS,
    TEXT_OPTIONS,
    parametrize,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NO_GUIDANCE = {"cond_scale": 1.0}

# of the options of the decoder, those that a step knows
STEPPED_ATTN_OPTIONS = {
    name: ATTN_OPTIONS[name]
    for name in ("none", "value residual", "feed forward", "no flash", "one stream")
} | {
    "glu without bias": {"ff_glu": True, "ff_no_bias": True, "attn_num_mem_kv": 1},
    "glu with a gain": {"ff_glu": True, "ff_glu_mult_bias": True, "ff_swish": True},
    "squared relu": {"ff_relu_squared": True},
    "rmsnorm": {"use_rmsnorm": True},
    "norm behind the activation": {"ff_post_act_ln": True},
}

# without a learned key, a row whose text was dropped has nothing to attend to: left to the modules
STEPPED_TEXT_OPTIONS = {
    name: options for name, options in TEXT_OPTIONS.items() if name != "all, no memory"
}

# how far a logit may be off: relative to the spread of the logits
PRECISIONS = {
    "float16": (Precision(torch.float16), 0.01),
    "bfloat16": (Precision(torch.bfloat16), 0.05),
    "int8": (Precision(quantize="int8"), 0.1),
}


def predict_each(model, codes, *, start=0, text=None, guidance=NO_GUIDANCE, precision=None):
    """Predict with steps the code after the first ``start``, and after each more."""
    text = None if text is None else model._read_text(text, None, None, None)
    precision = Precision() if precision is None else precision
    predictor = choose_predictor(model, text, guidance, precision, with_cache=True)
    assert isinstance(predictor, SteppingPredictor)
    logits = [predictor.predict(prefix) for prefix in prefixes(codes, start)]
    return torch.stack(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@parametrize("options", MODEL_OPTIONS)
def test_stepped_logits_equal_those_of_one_pass(options, batch):
    model = make_transformer(**options)
    codes = random_codes(model, 8.5, batch=batch)
    torch.testing.assert_close(predict_each(model, codes), logits_of(model, codes), **CLOSE)


@torch.no_grad()
@parametrize("attn_kwargs", STEPPED_ATTN_OPTIONS)
def test_stepped_logits_equal_those_of_one_pass_for_options_of_the_decoder(attn_kwargs):
    model = make_transformer(attn_kwargs=attn_kwargs, num_sos_tokens=2)
    codes = random_codes(model, 4.5, batch=2)
    torch.testing.assert_close(predict_each(model, codes), logits_of(model, codes), **CLOSE)


@torch.no_grad()
@parametrize("guidance", GUIDANCE)
@parametrize("options", STEPPED_TEXT_OPTIONS)
def test_stepped_logits_equal_those_of_one_pass_with_text(options, guidance):
    model = make_text_transformer(**options)
    codes = random_codes(model, 4.5)
    stepped = predict_each(model, codes, text=TEXTS, guidance=NO_GUIDANCE | guidance)
    torch.testing.assert_close(stepped, logits_of(model, codes, texts=TEXTS, **guidance), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 12, 17, 18])
def test_steps_go_on_from_anywhere(start):
    model = make_transformer(coarse_post_gateloop_depth=1)
    codes = random_codes(model, 5)
    stepped = predict_each(model, codes, start=start)
    torch.testing.assert_close(stepped, logits_of(model, codes)[:, start:], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [NO_GUIDANCE, {"cond_scale": 3.0}])
def test_rows_that_are_left_are_predicted_alike(guidance):
    options = {"text_cond_with_film": True, "coarse_adaptive_rmsnorm": True}
    model = make_text_transformer(fine_cross_attend_text=True, **options)
    text = model._read_text(TEXTS, None, None, None)
    codes = random_codes(model, 4)
    whole = logits_of(model, codes, texts=TEXTS, **guidance)
    for with_steps in (True, False):
        predictor = choose_predictor(
            model, text, NO_GUIDANCE | guidance, Precision(), with_cache=with_steps
        )
        assert isinstance(predictor, SteppingPredictor if with_steps else ModulePredictor)
        rows = torch.arange(3)
        for prefix in prefixes(codes):
            position = prefix.shape[1]
            torch.testing.assert_close(predictor.predict(prefix), whole[rows, position], **CLOSE)
            if position in (7, 14):
                left = torch.tensor([0, 2] if position == 7 else [1])
                predictor.select(left)
                rows = rows[left]
        assert rows.tolist() == [2]


# precision


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", PRECISIONS)
@parametrize("options", {"default": {}, "unequal widths": {"dim": (24, 16)}})
def test_logits_stay_near_in_each_precision(kind, options, batch):
    precision, tolerance = PRECISIONS[kind]
    model = make_transformer(**options)
    codes = random_codes(model, 5, batch=batch)
    wanted = logits_of(model, codes)
    stepped = predict_each(model, codes, precision=precision)
    error = (stepped - wanted)[:, 1:].abs().mean() / wanted.std()
    assert 0 < error < tolerance
    # the first comes of the modules, in the precision of the weights
    torch.testing.assert_close(stepped[:, 0], wanted[:, 0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", PRECISIONS)
def test_logits_stay_near_with_text_in_each_precision(kind):
    precision, tolerance = PRECISIONS[kind]
    model = make_text_transformer(**TEXT_OPTIONS["all, unequal widths, quads"])
    codes = random_codes(model, 4)
    wanted = logits_of(model, codes, texts=TEXTS, cond_scale=2.0)
    stepped = predict_each(
        model, codes, text=TEXTS, guidance={"cond_scale": 2.0}, precision=precision
    )
    # guidance widens errors as it widens differences
    assert (stepped - wanted).abs().mean() / wanted.std() < 3 * tolerance


@torch.no_grad()
def test_a_mesh_in_int8_does_not_depend_on_the_others():
    model = make_transformer()
    codes = random_codes(model, 4)
    precision = Precision(quantize="int8")
    together = predict_each(model, codes, precision=precision)
    for row, logits in zip(codes, together, strict=True):
        alone = predict_each(model, row[None], precision=precision)[0]
        torch.testing.assert_close(alone, logits, **CLOSE)


# which weights


@pytest.mark.parametrize("kind", ["float32", *PRECISIONS])
def test_weights_that_were_trained_meanwhile_are_used(kind):
    precision, tolerance = PRECISIONS.get(kind, (Precision(), 1e-4))
    model = make_transformer()
    codes = random_codes(model, 3)
    with torch.no_grad():
        before = predict_each(model, codes, precision=precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(codes=codes).backward()
    optimizer.step()
    with torch.no_grad():
        wanted = logits_of(model, codes)
        after = predict_each(model, codes, precision=precision)
    assert (after - before).abs().mean() / wanted.std() > 2 * tolerance
    assert (after - wanted).abs().mean() / wanted.std() < tolerance


@torch.no_grad()
def test_every_weight_of_a_step_is_read_anew():
    model = make_text_transformer(**TEXT_OPTIONS["all, unequal widths, quads"])
    codes = random_codes(model, 3)
    predict_each(model, codes, text=TEXTS)
    torch.manual_seed(1)
    unsettle(model)
    stepped = predict_each(model, codes, text=TEXTS)
    torch.testing.assert_close(stepped, logits_of(model, codes, texts=TEXTS), **CLOSE)


# options that a step does not know


@torch.no_grad()
@parametrize(
    "attn_kwargs",
    {name: kwargs for name, kwargs in ATTN_OPTIONS.items() if name not in STEPPED_ATTN_OPTIONS}
    | {"soft clamped glu": {"ff_glu": True, "ff_glu_softclamp": True}},
)
def test_other_options_of_the_decoder_are_left_to_the_modules(attn_kwargs):
    model = make_transformer(attn_kwargs=attn_kwargs)
    choose = choose_predictor(model, None, NO_GUIDANCE, Precision(), with_cache=True)
    assert isinstance(choose, ModulePredictor)
    with pytest.raises(ValueError, match=r"dtype and quantize need .* options that can be stepped"):
        choose_predictor(model, None, NO_GUIDANCE, Precision(torch.bfloat16), with_cache=True)


def test_texts_without_a_learned_key_are_left_to_the_modules():
    model = make_text_transformer(**TEXT_OPTIONS["all, no memory"])
    text = model._read_text(TEXTS, None, None, None)
    choose = choose_predictor(model, text, NO_GUIDANCE, Precision(), with_cache=True)
    assert isinstance(choose, ModulePredictor)


def test_precision_needs_a_cache():
    model = make_transformer()
    with pytest.raises(ValueError, match=r"dtype and quantize need cache_kv=True.* got cache_kv=F"):
        model.generate(cache_kv=False, quantize="int8", progress=False)


def test_precision_is_not_for_models_in_double_precision():
    model = make_transformer().double()
    with pytest.raises(ValueError, match="weights in float32 or less, got float64"):
        model.generate(dtype=torch.bfloat16, progress=False)
