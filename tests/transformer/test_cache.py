"""Cached = uncached = teacher-forced: a code at a time predicts what a pass over all codes does."""

import inspect

import pytest
import torch
from x_transformers import Decoder
from x_transformers.x_transformers import Attention, FeedForward

from meshgpt_pytorch.transformer.layers import EXACT_WITH_CACHE
from tests.helpers import pad_batch
from tests.transformer.models import (
    TEXTS,
    EndRowsAfter,
    end_early,
    logits_of,
    make_text_transformer,
    make_transformer,
    prefixes,
    random_codes,
)
from tests.transformer.option_cases import (
    ATTN_OPTIONS,
    GUIDANCE,
    MODEL_OPTIONS,
    TEXT_OPTIONS,
    parametrize,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NUM_FACES = 8.5


@torch.no_grad()
def assert_cached_equals_parallel(model, *, start=0, **inputs):
    """Rows that end early go on with padding, as in generation; their logits count before it."""
    codes = end_early(model, random_codes(model, NUM_FACES))
    parallel = logits_of(model, codes, **inputs)
    exists = torch.nn.functional.pad(codes != model.pad_id, (1, 0), value=True)
    cache = None
    for prefix in prefixes(codes, start):
        cached, cache = logits_of(model, prefix, return_cache=True, cache=cache, **inputs)
        position = prefix.shape[1]
        counts = exists[:, position]
        torch.testing.assert_close(cached[:, -1][counts], parallel[:, position][counts], **CLOSE)


@parametrize("options", MODEL_OPTIONS)
def test_cached_logits_equal_those_of_one_pass(options):
    assert_cached_equals_parallel(make_transformer(**options))


@parametrize("attn_kwargs", ATTN_OPTIONS)
def test_cached_logits_equal_those_of_one_pass_for_options_of_the_decoder(attn_kwargs):
    assert_cached_equals_parallel(make_transformer(attn_kwargs=attn_kwargs, num_sos_tokens=2))


@parametrize("guidance", GUIDANCE)
@parametrize("options", TEXT_OPTIONS)
def test_cached_logits_equal_those_of_one_pass_with_text(options, guidance):
    model = make_text_transformer(**options)
    assert_cached_equals_parallel(model, texts=TEXTS, **guidance)


@pytest.mark.parametrize("num_residual_streams", [2, 4])
def test_cached_logits_equal_those_of_one_pass_with_residual_streams(num_residual_streams):
    # the installed x-transformers may mix streams wrongly, but it does so at each position alone
    model = make_transformer()
    for name in ("decoder", "fine_decoder"):
        streams = Decoder(
            dim=16,
            depth=2,
            heads=2,
            attn_dim_head=8,
            num_residual_streams=num_residual_streams,
            add_value_residual=True,
        )
        setattr(model, name, streams.eval())
    assert_cached_equals_parallel(model)


@torch.no_grad()
@parametrize("options", {"triangles": {}, "quads": {"quads": True, "num_quantizers": 1}})
def test_one_pass_equals_a_pass_for_each_prefix(options):
    model = make_transformer(coarse_post_gateloop_depth=1, **options)
    codes = random_codes(model, NUM_FACES)
    whole = logits_of(model, codes)
    for prefix in prefixes(codes):
        length = prefix.shape[1] + 1
        torch.testing.assert_close(logits_of(model, prefix), whole[:, :length], **CLOSE)


@torch.no_grad()
@parametrize("options", {"triangles": {}, "wider coarse stage": {"dim": (24, 16)}})
def test_a_cache_may_start_anywhere_and_take_several_codes(options):
    model = make_transformer(coarse_post_gateloop_depth=1, **options)
    codes = random_codes(model, 4.5, batch=2)
    whole = logits_of(model, codes)
    for prefix in prefixes(codes[:, :-1]):
        start = prefix.shape[1]
        first, cache = logits_of(model, prefix, return_cache=True)
        rest, _ = logits_of(model, codes, return_cache=True, cache=cache)
        torch.testing.assert_close(torch.cat((first, rest), dim=1), whole, **CLOSE)
        assert rest.shape[1] == codes.shape[1] - start


@torch.no_grad()
def test_a_cache_is_not_changed_by_its_use():
    model = make_transformer(coarse_post_gateloop_depth=1)
    codes = random_codes(model, 3)
    _, cache = logits_of(model, codes[:, :8], return_cache=True)
    once, _ = logits_of(model, codes, return_cache=True, cache=cache)
    again, _ = logits_of(model, codes, return_cache=True, cache=cache)
    assert cache.num_codes == 8
    torch.testing.assert_close(once, again, rtol=0, atol=0)


@torch.no_grad()
@parametrize("options", {"gate loops": {}, "none": {"fine_pre_gateloop_depth": 0}})
@parametrize("guidance", {"plain": {}, "guided": {"cond_scale": 2.0}})
def test_an_eos_id_that_is_appended_is_not_in_the_cache(options, guidance):
    model = make_text_transformer(**options)
    inputs = {"texts": TEXTS, **guidance}
    codes = random_codes(model, 4)
    cache = None
    for num_faces in (2, 3):
        prefix = codes[:, : num_faces * model.num_codes_per_face]
        wanted = model.forward_on_codes(prefix, return_loss=False, **inputs)
        got, cache = model.forward_on_codes(
            prefix, return_loss=False, return_cache=True, cache=cache, **inputs
        )
        torch.testing.assert_close(got, wanted[:, -got.shape[1] :], **CLOSE)
    rest, _ = logits_of(model, codes, return_cache=True, cache=cache, **inputs)
    wanted = logits_of(model, codes, **inputs)
    torch.testing.assert_close(rest, wanted[:, -rest.shape[1] :], **CLOSE)


def generate(model, *, cache_kv, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"batch_size": 3, "max_seq_len": 9 * model.num_codes_per_face, **options}
    return model.generate(
        generator=generator, cache_kv=cache_kv, return_codes=True, progress=False, **options
    )


@parametrize("options", MODEL_OPTIONS)
def test_cached_and_uncached_generation_draw_the_same_codes(options):
    model = make_transformer(**options)
    num_faces = [3, 8, 1]
    drawn = [
        generate(model, cache_kv=kv, filter_logits_fn=EndRowsAfter(model, num_faces))
        for kv in (True, False)
    ]
    assert torch.equal(*drawn)
    lengths = (drawn[0][..., 0] != model.pad_id).sum(dim=1) // model.num_vertices_per_face
    assert lengths.tolist() == num_faces


@parametrize("guidance", GUIDANCE)
def test_cached_and_uncached_generation_with_text_draw_the_same_codes(guidance):
    model = make_text_transformer(**TEXT_OPTIONS["all, no memory"])
    drawn = [generate(model, cache_kv=kv, texts=TEXTS, **guidance) for kv in (True, False)]
    assert torch.equal(*drawn)


@parametrize("start", {str(start): start for start in (1, 5, 6, 7, 12, 17, 18)})
def test_cached_generation_from_a_prompt_draws_the_same_codes(start):
    model = make_transformer(coarse_post_gateloop_depth=1)
    prompt = random_codes(model, 4)[:, :start]
    cached = generate(model, cache_kv=True, prompt=prompt)
    assert torch.equal(cached, generate(model, cache_kv=False, prompt=prompt))
    assert torch.equal(cached.flatten(1)[:, :start], prompt)


# which options of the decoder are exact


def test_each_exact_option_is_an_option_of_the_decoder_and_tested_here():
    assert set().union(*ATTN_OPTIONS.values()) == EXACT_WITH_CACHE
    parts = {"attn_": Attention, "ff_": FeedForward}
    for name in EXACT_WITH_CACHE:
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), "")
        part = parts.get(prefix, Decoder.__mro__[1])
        assert name.removeprefix(prefix) in inspect.signature(part).parameters, name


@torch.no_grad()
def test_a_decoder_that_is_not_exact_with_a_cache_is_run_without():
    model = make_transformer(attn_kwargs={"shift_tokens": 1})
    assert not model.can_cache
    codes = generate(model, cache_kv=True)
    assert torch.equal(codes, generate(model, cache_kv=False))
    with pytest.raises(ValueError, match="a cache needs decoder options under which it is exact"):
        logits_of(model, random_codes(model, 2), return_cache=True)

    # the option belongs to those that are not exact: steps over a cache do differ
    model.can_cache = True
    with pytest.raises(AssertionError, match="not close"):
        assert_cached_equals_parallel(model)


# errors


@pytest.fixture(scope="module")
def text_model():
    return make_text_transformer()


def test_a_cache_must_fit_the_guidance(text_model):
    codes = random_codes(text_model, 2)
    _, single = logits_of(text_model, codes[:, :3], return_cache=True, texts=TEXTS)
    _, pair = logits_of(text_model, codes[:, :3], return_cache=True, texts=TEXTS, cond_scale=2)
    with pytest.raises(ValueError, match=r"cache must be a pair .* got a single cache"):
        logits_of(text_model, codes, return_cache=True, texts=TEXTS, cache=single, cond_scale=2.0)
    with pytest.raises(ValueError, match="and a single cache else, got a pair"):
        logits_of(text_model, codes, return_cache=True, texts=TEXTS, cache=pair)


def test_codes_must_go_on_behind_the_cache(text_model):
    codes = random_codes(text_model, 2)
    _, cache = logits_of(text_model, codes, return_cache=True, texts=TEXTS)
    for seen in (codes, codes[:, :4]):
        with pytest.raises(ValueError, match="codes must go on behind the 12"):
            logits_of(text_model, seen, return_cache=True, texts=TEXTS, cache=cache)


def test_a_loss_takes_no_cache(text_model):
    codes = random_codes(text_model, 2)
    _, cache = logits_of(text_model, codes, return_cache=True, texts=TEXTS)
    for wrong in ({"cache": cache}, {"return_cache": True}, {"cond_scale": 2.0}):
        with pytest.raises(ValueError, match="a loss takes neither guidance nor a cache"):
            text_model(codes=codes, texts=TEXTS, **wrong)


@torch.no_grad()
def test_real_meshes_are_predicted_alike_with_and_without_a_cache(furniture):
    model = make_transformer(max_seq_len=24 * 6).eval()
    meshes = [next(mesh for mesh in furniture if len(mesh.faces) == n) for n in (20, 12)]
    codes = model.autoencoder.tokenize(*pad_batch(meshes)).flatten(1)
    wanted = logits_of(model, codes)
    cache, logits = None, []
    for prefix in prefixes(codes[:, : 9 * 6]):
        returned = model.forward_on_codes(
            prefix, return_loss=False, return_cache=True, append_eos=False, cache=cache
        )
        cache = returned.cache
        logits.append(returned.logits)
    torch.testing.assert_close(
        torch.cat(logits, dim=1), wanted[:, : 9 * 6 + 1], rtol=1e-4, atol=1e-4
    )
    for num_codes in (1, 6, 33):
        prompt = codes[:, :num_codes]
        options = {"temperature": 0.0, "max_seq_len": 10 * 6, "return_codes": True}
        cached, uncached = (
            model.generate(prompt=prompt, cache_kv=kv, progress=False, **options)
            for kv in (True, False)
        )
        assert torch.equal(cached, uncached)
        assert torch.equal(cached.flatten(1)[:, :num_codes], prompt)
