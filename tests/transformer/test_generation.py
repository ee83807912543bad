"""Laws of sampling: where a mesh may end, what is drawn, prompts, and what is refused."""

import pytest
import torch
from torch import nn

from tests.transformer.models import (
    EOS,
    TEXTS,
    EndRowsAfter,
    logits_of,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    random_codes,
)


@pytest.fixture(scope="module", params=["triangles", "quads"])
def model(request):
    return make_transformer(quads=request.param == "quads")


@pytest.fixture(scope="module")
def text_model():
    return make_text_transformer(fine_cross_attend_text=True)


def generate(model, num_faces=3, **options):
    options = {"max_seq_len": num_faces * model.num_codes_per_face, **options}
    return model.generate(**{"return_codes": True, "progress": False, **options})


def always_eos(logits):
    """Leave what is impossible impossible, and make eos all but sure where it is not."""
    return logits + 1e4 * nn.functional.one_hot(torch.tensor(EOS), EOS + 1)


def never_eos(logits):
    return logits.index_fill(1, torch.tensor([EOS]), -torch.inf)


def any_code(logits):
    return logits


# where a mesh ends


def test_a_mesh_has_a_face(model):
    codes = generate(model, batch_size=4, filter_logits_fn=always_eos)
    assert codes.shape == (4, model.num_vertices_per_face, model.num_quantizers)
    assert ((codes >= 0) & (codes < EOS)).all()


def test_a_mesh_ends_after_a_whole_face_whatever_its_prompt(model):
    per_face = model.num_codes_per_face
    for length in range(2 * per_face + 1):
        prompt = random_codes(model, 2)[:, :length]
        if length == model.num_quantizers:
            prompt = prompt[:, None]  # two axes would be the codes of one mesh
        codes = generate(model, prompt=prompt, filter_logits_fn=always_eos).flatten(1)
        num_faces = max(1, -(-length // per_face))
        assert codes.shape == (3, num_faces * per_face)
        assert torch.equal(codes[:, :length], prompt.flatten(1))


def test_all_after_the_end_is_padding(model):
    num_faces = [2, 1, 5, 3]
    ends = EndRowsAfter(model, num_faces)
    codes = generate(model, num_faces=6, batch_size=4, filter_logits_fn=ends)
    assert codes.shape == (4, 5 * model.num_vertices_per_face, model.num_quantizers)
    position = torch.arange(codes.shape[1])
    exists = position < torch.tensor(num_faces)[:, None] * model.num_vertices_per_face
    assert (codes[~exists] == model.pad_id).all()
    assert ((codes[exists] >= 0) & (codes[exists] < EOS)).all()


def test_faces_are_those_of_the_codes(model):
    num_faces = [2, 1, 4]
    options = {"num_faces": 6, "batch_size": 3, "temperature": 0.0}
    codes = generate(model, filter_logits_fn=EndRowsAfter(model, num_faces), **options)
    face_coords, face_mask = generate(
        model, filter_logits_fn=EndRowsAfter(model, num_faces), return_codes=False, **options
    )
    decoded = model.autoencoder.decode_from_codes_to_faces(codes)
    torch.testing.assert_close(face_coords, decoded.face_coords, equal_nan=True, rtol=0, atol=0)
    assert face_coords.shape == (3, 4, model.num_vertices_per_face, 3)
    assert face_mask.sum(dim=1).tolist() == num_faces
    assert torch.equal(face_coords.isnan().all(dim=(2, 3)), ~face_mask)


def test_meshes_that_never_end_fill_the_limit(model):
    codes = generate(model, num_faces=4, batch_size=2, filter_logits_fn=never_eos)
    assert codes.shape == (2, 4 * model.num_vertices_per_face, model.num_quantizers)
    assert (codes >= 0).all()


def test_the_limit_is_the_models_and_is_rounded_down_to_whole_faces(model):
    per_face = model.num_codes_per_face
    for max_seq_len in (per_face, 2 * per_face - 1, 2 * per_face, 3 * per_face - 1):
        codes = generate(model, max_seq_len=max_seq_len, filter_logits_fn=never_eos)
        assert codes.numel() == max_seq_len // per_face * per_face
    codes = generate(model, max_seq_len=None, filter_logits_fn=never_eos, temperature=0)
    assert codes.numel() == model.max_seq_len


def test_meshes_of_a_batch_do_not_depend_on_each_other(model):
    prompts = random_codes(model, 1.5)
    together = generate(model, num_faces=5, prompt=prompts, temperature=0.0)
    for row, prompt in enumerate(prompts):
        alone = generate(model, num_faces=5, prompt=prompt[None], temperature=0.0)
        assert torch.equal(together[row][: alone.shape[1]], alone[0])
        assert (together[row][alone.shape[1] :] == model.pad_id).all()


def test_each_code_is_the_likeliest_at_temperature_0(model):
    codes = generate(model, num_faces=4, temperature=0.0, filter_logits_fn=never_eos)
    likeliest = never_eos(logits_of(model, codes).flatten(0, 1)).argmax(dim=-1)
    assert torch.equal(likeliest[:-1], codes.flatten())


# prompts


def test_a_prompt_may_come_in_three_shapes(model):
    vertices = 2 * model.num_vertices_per_face
    codes = random_codes(model, 2).reshape(3, vertices, model.num_quantizers)
    whole = generate(model, prompt=codes, temperature=0.0)
    assert torch.equal(generate(model, prompt=codes.flatten(1), temperature=0.0), whole)
    assert torch.equal(generate(model, prompt=codes.int(), temperature=0.0), whole)
    alone = generate(model, prompt=codes[0], temperature=0.0)
    assert torch.equal(alone, generate(model, prompt=codes[:1], temperature=0.0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_a_prompt_of_full_length_is_returned(model, dtype):
    prompt = random_codes(model, 3).to(dtype)
    assert torch.equal(generate(model, prompt=prompt).flatten(1), prompt.long())


def test_an_empty_prompt_is_none(model):
    empty = torch.empty(2, 0, dtype=torch.long)
    codes = generate(model, prompt=empty, temperature=0.0)
    assert torch.equal(codes, generate(model, batch_size=2, temperature=0.0))


def test_one_prompt_is_repeated_to_the_batch(model):
    prompt = random_codes(model, 1.5, batch=1)
    codes = generate(model, prompt=prompt, batch_size=3, filter_logits_fn=any_code)
    assert torch.equal(codes.flatten(1)[:, : prompt.shape[1]], prompt.expand(3, -1))
    assert not torch.equal(codes[0], codes[1])


def test_one_text_is_repeated_to_the_batch(text_model):
    codes = generate(text_model, texts=TEXTS[:1], batch_size=3, temperature=0.0)
    alone = generate(text_model, texts=TEXTS[:1], temperature=0.0)
    assert torch.equal(codes, alone.expand(3, -1, -1))
    prompted = generate(
        text_model, texts=TEXTS[:1], prompt=random_codes(text_model, 1), temperature=0.0
    )
    assert len(prompted) == 3


def test_one_prompt_is_repeated_to_the_texts(text_model):
    prompt = random_codes(text_model, 1, batch=1)
    codes = generate(text_model, texts=TEXTS, prompt=prompt, temperature=0.0)
    repeated = generate(text_model, texts=TEXTS, prompt=prompt.expand(3, -1), temperature=0.0)
    assert torch.equal(codes, repeated)


def test_each_mesh_follows_its_text(text_model):
    together = generate(text_model, num_faces=5, texts=TEXTS, temperature=0.0, cond_scale=3.0)
    assert len({tuple(codes.flatten().tolist()) for codes in together}) == 3
    for row, text in enumerate(TEXTS):
        alone = generate(text_model, num_faces=5, texts=[text], temperature=0.0, cond_scale=3.0)
        assert torch.equal(together[row][: alone.shape[1]], alone[0])


def test_texts_may_come_in_each_form(text_model):
    texts = generate(text_model, texts=TEXTS, temperature=0.0)
    encoded = text_model.conditioner.encode(TEXTS)
    for form in (
        {"text_embeds": text_model.embed_texts(TEXTS)},
        {"text_encodings": encoded[0].embeddings},
        {"text_encodings": [encoded[0].embeddings], "text_mask": [encoded[0].mask]},
    ):
        assert torch.equal(generate(text_model, temperature=0.0, **form), texts)


def test_guidance_without_text_has_no_effect(model):
    plain = generate(model, temperature=0.0)
    assert torch.equal(generate(model, temperature=0.0, cond_scale=3.0), plain)


@torch.no_grad()
@pytest.mark.parametrize("option", ["remove_parallel_component", "rescale_phi"])
def test_generation_follows_the_guided_logits(text_model, option):
    guidance = {"cond_scale": 4.0, option: True if option == "remove_parallel_component" else 0.9}
    codes = generate(
        text_model, texts=TEXTS, temperature=0.0, filter_logits_fn=never_eos, **guidance
    )
    logits = logits_of(text_model, codes, texts=TEXTS, **guidance)[:, :-1]
    likeliest = logits[..., :EOS].argmax(dim=-1)
    assert torch.equal(likeliest, codes.flatten(1))
    other = logits_of(text_model, codes, texts=TEXTS, cond_scale=4.0)[:, :-1]
    assert (logits - other).abs().max() > 0.1


# what is drawn


def test_filters_are_honoured_in_generation(model):
    greedy = generate(model, batch_size=2, temperature=0.0)
    assert torch.equal(generate(model, batch_size=2, filter_kwargs={"k": 1}), greedy)

    def only_odd_codes(logits, remainder):
        return logits.masked_fill(torch.arange(EOS + 1) % 2 != remainder, -torch.inf)

    codes = generate(model, filter_logits_fn=only_odd_codes, filter_kwargs={"remainder": 1})
    assert (codes % 2 == 1).all()


def test_the_eos_id_cannot_be_drawn_within_a_face_at_any_temperature(model):
    codes = generate(model, batch_size=8, temperature=1e6, filter_logits_fn=any_code)
    assert ((codes == model.pad_id) | ((codes >= 0) & (codes < EOS))).all()
    assert ((codes == model.pad_id).all(dim=-1) == (codes == model.pad_id).any(dim=-1)).all()


def test_a_generator_reproduces_and_leaves_the_global_state_alone(model):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, num_faces=4, filter_logits_fn=never_eos, generator=generator)

    first = sample(1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(sample(1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sample(2), first)


def test_the_global_seed_reproduces_where_no_generator_is_given(model):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(generate(model, num_faces=4, filter_logits_fn=never_eos))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# what comes back, and what stays as it was


def test_a_function_gets_the_faces_of_each_mesh(model):
    num_faces = [2, 1, 3]
    sizes = generate(
        model,
        num_faces=4,
        batch_size=3,
        filter_logits_fn=EndRowsAfter(model, num_faces),
        return_codes=False,
        face_coords_to_file=lambda coords: (tuple(coords.shape), bool(coords.isnan().any())),
    )
    assert sizes == [((n, model.num_vertices_per_face, 3), False) for n in num_faces]


def test_pad_ids_of_the_model_and_its_autoencoder_are_kept_apart():
    model = make_transformer(autoencoder=make_autoencoder(pad_id=-2), pad_id=-7)
    options = {"num_faces": 4, "batch_size": 2, "temperature": 0.0}
    codes = generate(model, filter_logits_fn=EndRowsAfter(model, [1, 3]), **options)
    assert (codes[0, 3:] == -7).all()
    assert (codes[1] >= 0).all()
    _, face_mask = generate(
        model, filter_logits_fn=EndRowsAfter(model, [1, 3]), return_codes=False, **options
    )
    assert face_mask.sum(dim=1).tolist() == [1, 3]


def modes_of(model):
    return {name: part.training for name, part in model.named_modules()}


def test_modes_are_restored(text_model):
    text_model.train()
    text_model.fine_decoder.eval()
    text_model.autoencoder.encoders.eval()
    modes = modes_of(text_model)
    generate(text_model, texts=TEXTS, cond_scale=2.0, return_codes=False)
    assert modes_of(text_model) == modes

    def broken(logits):
        raise RuntimeError("broken filter")

    with pytest.raises(RuntimeError, match="broken filter"):
        generate(text_model, texts=TEXTS, filter_logits_fn=broken)
    assert modes_of(text_model) == modes
    text_model.eval()


def test_meshes_are_generated_in_eval_mode():
    autoencoder = make_autoencoder(resnet_dropout=0.5)
    model = make_transformer(autoencoder=autoencoder, dropout=0.5)
    options = {"num_faces": 4, "temperature": 0.0, "return_codes": False}
    wanted = generate(model, **options)
    model.train()
    torch.testing.assert_close(generate(model, **options), wanted, equal_nan=True)


def test_a_progress_bar_is_shown_unless_switched_off(model, capsys):
    generate(model, progress=True)
    assert "generate" in capsys.readouterr().err
    generate(model, progress=False)
    assert capsys.readouterr().err == ""


# errors


@pytest.mark.parametrize("temperature", [-1, -0.001, float("nan"), float("inf")])
def test_a_temperature_that_has_no_meaning_is_refused(model, temperature):
    with pytest.raises(ValueError, match="temperature must be 0 or more, and finite, got"):
        generate(model, temperature=temperature)


def test_a_limit_that_the_model_does_not_have_is_refused(model):
    for max_seq_len in (-6, 0, model.num_codes_per_face - 1, model.max_seq_len + 1):
        with pytest.raises(ValueError, match=f"max_seq_len must be from one .* got {max_seq_len};"):
            generate(model, max_seq_len=max_seq_len)


def test_a_prompt_beyond_the_limit_is_refused(model):
    prompt = random_codes(model, 3)
    with pytest.raises(ValueError, match=r"prompt must be at most max_seq_len = .* long, got"):
        generate(model, num_faces=2, prompt=prompt)
    # the limit counts as it is rounded down
    with pytest.raises(ValueError, match=r"prompt must be at most max_seq_len = .* long, got"):
        generate(model, max_seq_len=3 * model.num_codes_per_face - 1, prompt=prompt)


def test_a_padded_prompt_is_refused(model):
    prompt = random_codes(model, 2)
    prompt[1, -1] = model.pad_id
    with pytest.raises(ValueError, match=r"prompt must not hold padding \(-1\)"):
        generate(model, prompt=prompt)


@pytest.mark.parametrize("wrong", [EOS, EOS + 5, -2])
def test_a_prompt_of_other_codes_is_refused(model, wrong):
    prompt = random_codes(model, 2)
    prompt[1, 3] = wrong
    with pytest.raises(ValueError, match=rf"code ids must be in \[0, 32\).* got {wrong} in row 1"):
        generate(model, prompt=prompt)


@pytest.mark.parametrize("shape", [(), (6,), (2, 6, 3), (1, 2, 6, 2)])
def test_a_prompt_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"prompt must have the shape \(b, n\)"):
        generate(model, prompt=torch.zeros(shape, dtype=torch.long))


def test_prompts_of_another_number_are_refused(model, text_model):
    with pytest.raises(ValueError, match="one for each of the 2 meshes, or one for all, got 3"):
        generate(model, prompt=random_codes(model, 1), batch_size=2)
    with pytest.raises(ValueError, match="one for each of the 3 meshes, or one for all, got 2"):
        generate(text_model, prompt=random_codes(text_model, 1, batch=2), texts=TEXTS)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_a_mesh_is_refused(model, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        generate(model, batch_size=batch_size)


@pytest.mark.parametrize("cond_scale", [0, 0.99, -3.0, float("nan"), float("inf")])
def test_guidance_without_meaning_is_refused(model, text_model, cond_scale):
    for any_model, text in ((model, {}), (text_model, {"texts": TEXTS})):
        with pytest.raises(ValueError, match="cond_scale must be at least 1, and finite, got"):
            generate(any_model, cond_scale=cond_scale, **text)


@pytest.mark.parametrize("option", ["rescale_phi", "keep_parallel_frac"])
def test_a_share_outside_0_to_1_is_refused(text_model, option):
    with pytest.raises(ValueError, match=f"{option} must be from 0 to 1, got 2"):
        generate(text_model, texts=TEXTS, cond_scale=2.0, **{option: 2})


def test_texts_must_fit_the_meshes(model, text_model):
    embeds = text_model.embed_texts(TEXTS)
    for number in (2, 4):
        with pytest.raises(ValueError, match=f"one for each of the {number} meshes"):
            generate(text_model, texts=TEXTS, batch_size=number)
    with pytest.raises(ValueError, match=r"exactly one of texts, .* got none"):
        generate(text_model)
    with pytest.raises(ValueError, match=r"exactly one of texts, .* got texts and text_embeds"):
        generate(text_model, texts=TEXTS, text_embeds=embeds)
    with pytest.raises(ValueError, match="a model without text takes no text_embeds"):
        generate(model, text_embeds=embeds)
    with pytest.raises(ValueError, match="pass a single text as"):
        generate(text_model, texts="a chair")
