"""Laws of the losses and logits: padding, causality, gradients, the frozen autoencoder, errors."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from meshgpt_pytorch.tokenizers.checks import flatten_codes
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.helpers import box_mesh, pad_batch, pyramid_mesh, tetrahedron_mesh
from tests.transformer.models import (
    EOS,
    TEXTS,
    logits_of,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    random_codes,
    trained_parameters,
)

TINY_STAGES = {"attn_depth": 1, "attn_dim_head": 8, "attn_heads": 2, "fine_attn_depth": 1}


@pytest.fixture(scope="module", params=["triangles", "quads"])
def model(request):
    return make_transformer(
        quads=request.param == "quads", num_sos_tokens=2, coarse_post_gateloop_depth=1
    )


@pytest.fixture(scope="module")
def real_meshes(furniture):
    """Real meshes of 12, 20, 44 and 28 faces, in that order."""
    picked = [next(m for m in furniture if len(m.faces) == n) for n in (12, 20, 44, 28)]
    largest = max(mesh.vertices.abs().max() for mesh in picked).clamp(min=1.0)
    return [mesh._replace(vertices=mesh.vertices / largest) for mesh in picked]


def naive_loss(model, codes):
    """Sum of the losses of one row, and how many ids it has: each from its own prefix."""
    labels = [*codes.tolist(), model.eos_token_id]
    losses = [
        F.cross_entropy(logits_of(model, codes[None, :n])[0, -1], torch.tensor(label))
        for n, label in enumerate(labels)
    ]
    return torch.stack(losses)


def pad_rows(rows, pad_id=-1, extra=0):
    codes = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    return F.pad(codes, (0, extra), value=pad_id)


# losses


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_next_ids_of_all_prefixes(model):
    per_face = model.num_codes_per_face
    codes = random_codes(model, 3)
    rows = [codes[0], codes[1, : 2 * per_face], codes[2, :per_face]]
    naive = torch.cat([naive_loss(model, row) for row in rows])
    assert len(naive) == sum(map(len, rows)) + 3
    torch.testing.assert_close(model(codes=pad_rows(rows)), naive.mean(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_loss_of_padded_rows_is_the_mean_of_the_rows_alone_weighted_by_their_ids(model):
    per_face = model.num_codes_per_face
    rows = [random_codes(model, n, batch=1, seed=n)[0] for n in (7, 2, 5)]
    alone = sum(model(codes=row[None]) * (len(row) + 1) for row in rows)
    wanted = alone / sum(len(row) + 1 for row in rows)
    for extra in (0, 1, per_face, 3 * per_face):
        loss = model(codes=pad_rows(rows, extra=extra))
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_loss_of_real_meshes_does_not_depend_on_their_batch(real_meshes):
    model = make_transformer(max_seq_len=46 * 6)
    weights = [len(mesh.faces) * 6 + 1 for mesh in real_meshes]
    alone = [model(vertices=mesh.vertices[None], faces=mesh.faces[None]) for mesh in real_meshes]
    wanted = sum(w * loss for w, loss in zip(weights, alone, strict=True)) / sum(weights)

    vertices, faces = pad_batch(real_meshes)
    unreferenced = F.pad(vertices, (0, 0, 0, 3), value=0.5)
    padded = F.pad(faces, (0, 0, 0, 2), value=-1).int()
    for batch in ((vertices, faces), (unreferenced, padded)):
        loss = model(vertices=batch[0], faces=batch[1])
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_meshes_and_their_codes_have_one_loss(real_meshes):
    model = make_transformer(max_seq_len=44 * 6)
    vertices, faces = pad_batch(real_meshes)
    codes = model.autoencoder.tokenize(vertices, faces)
    assert len(codes.unique()) > 10
    wanted = model(vertices=vertices, faces=faces)
    for same in (codes, codes.flatten(1), codes.int(), codes.unflatten(1, (-1, 3))):
        torch.testing.assert_close(model(codes=same), wanted, rtol=0, atol=0)


@torch.no_grad()
def test_codes_that_hold_eos_have_the_same_loss(model):
    rows = [random_codes(model, n, batch=1, seed=n)[0] for n in (3, 2)]
    with_eos = [F.pad(row, (0, 1), value=EOS) for row in rows]
    loss = model(codes=pad_rows(with_eos), append_eos=False)
    torch.testing.assert_close(loss, model(codes=pad_rows(rows)))


@torch.no_grad()
def test_without_eos_the_loss_is_that_of_the_codes_alone(model):
    row = random_codes(model, 3, batch=1)
    naive = naive_loss(model, row[0])[:-1]
    torch.testing.assert_close(model(codes=row, append_eos=False), naive.mean())


@torch.no_grad()
def test_logits_with_eos_are_those_of_codes_that_hold_it(model):
    codes = pad_rows([random_codes(model, n, batch=1)[0] for n in (3, 2)])
    with_eos = pad_rows([F.pad(row[row >= 0], (0, 1), value=EOS) for row in codes])
    logits = model.forward_on_codes(codes, return_loss=False)
    assert logits.shape == (2, codes.shape[1] + 2, EOS + 1)
    torch.testing.assert_close(logits, logits_of(model, with_eos))


@torch.no_grad()
def test_a_mesh_may_fill_the_model(model):
    codes = random_codes(model, 12)
    assert codes.shape[1] == model.max_seq_len
    assert model(codes=codes).isfinite()
    assert logits_of(model, codes).shape == (3, model.max_seq_len + 1, EOS + 1)


# causality


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quads": True, "coarse_post_gateloop_depth": 1},
        {"dim": (24, 16), "num_sos_tokens": 3},
        {"coarse_pre_gateloop_depth": 0, "fine_pre_gateloop_depth": 0},
    ],
)
def test_a_code_changes_first_the_prediction_after_it(options):
    model = make_transformer(**options)
    codes = random_codes(model, 4, batch=1)
    length = codes.shape[1]
    # row i has another code i
    changed = codes.repeat(length, 1)
    changed.diagonal().add_(1).remainder_(EOS)
    difference = (logits_of(model, changed) - logits_of(model, codes)).abs().amax(dim=-1)
    for i, at in enumerate(difference):
        assert at[: i + 1].max() < 1e-5, i
        assert at[i + 1] > 1e-4, i


@torch.no_grad()
def test_rows_do_not_depend_on_each_other(model):
    codes = random_codes(model, 4.5)
    whole = logits_of(model, codes)
    for row in range(3):
        alone = logits_of(model, codes[row : row + 1])
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_order_of_codes_matters(model):
    """Positions, vertices and quantizers are told apart, also where all codes are one code."""
    codes = torch.full((1, 2 * model.num_codes_per_face), 3)
    logits = logits_of(model, codes)[0]
    distances = torch.cdist(logits, logits) + 9 * torch.eye(len(logits))
    assert distances.min() > 1e-2


# gradients


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dim": (24, 16), "coarse_post_gateloop_depth": 2, "num_sos_tokens": 2},
        {"quads": True, "num_quantizers": 3},
        {"attn_kwargs": {}},
    ],
)
def test_each_trained_parameter_gets_a_gradient(options):
    model = make_transformer(**options).train()
    model(codes=random_codes(model, 12)).backward()
    assert_all_have_gradients(model)


def test_each_trained_parameter_gets_a_gradient_with_text():
    model = make_text_transformer(
        text_cond_with_film=True,
        coarse_adaptive_rmsnorm=True,
        fine_cross_attend_text=True,
        coarse_post_gateloop_depth=1,
        dim=(16, 24),
        fine_attn_depth=2,
    )
    model.train()
    model(codes=random_codes(model, 12), texts=TEXTS, cond_drop_prob=0.0).backward()
    assert_all_have_gradients(model)


def assert_all_have_gradients(model):
    trained = trained_parameters(model)
    without = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in trained.values())
    assert not [name for name in trained if name.startswith("autoencoder")]
    for name in ("sos_token", "quantize_level_embed", "vertex_embed"):
        assert trained[name].grad.abs().sum(dim=1).min() > 0, name


def test_the_model_learns_a_mesh_by_heart():
    model = make_transformer().train()
    codes = random_codes(model, 3, batch=2)
    optimizer = torch.optim.Adam(trained_parameters(model).values(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(codes=codes)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    prompt = codes[:, :3]
    generated = model.generate(prompt=prompt, temperature=0.0, return_codes=True, progress=False)
    assert torch.equal(generated.flatten(1), codes)


# the autoencoder


def test_the_autoencoder_is_frozen_and_nothing_else_of_it_changes():
    autoencoder = make_autoencoder(pad_id=-2).train()
    autoencoder.encoders.eval()
    state = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    modes = [part.training for part in autoencoder.modules()]

    model = MeshTransformer(autoencoder, dim=16, max_seq_len=72, **TINY_STAGES)
    mesh = pyramid_mesh()
    model(vertices=mesh.vertices[None], faces=mesh.faces[None]).backward()

    assert model.autoencoder is autoencoder
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
    assert [part.training for part in autoencoder.modules()] == modes
    assert autoencoder.pad_id == -2
    torch.testing.assert_close(autoencoder.state_dict(), state, rtol=0, atol=0)


def test_options_that_are_refused_do_not_freeze_the_autoencoder():
    autoencoder = make_autoencoder()
    for wrong in (
        {"pad_id": 0},
        {"max_seq_len": 7},
        {"num_sos_tokens": 0},
        {"attn_kwargs": {"a": 1}},
    ):
        with pytest.raises((ValueError, AssertionError), match=r"pad_id|multiple|sos|unrecog"):
            MeshTransformer(autoencoder, dim=16, **TINY_STAGES, **wrong)
    assert all(parameter.requires_grad for parameter in autoencoder.parameters())


def test_codes_alone_need_no_autoencoder():
    model = make_transformer()
    codes = random_codes(model, 3)
    wanted = model(codes=codes)
    for parameter in model.autoencoder.parameters():
        parameter.data.fill_(torch.nan)
    torch.testing.assert_close(model(codes=codes), wanted, rtol=0, atol=0)
    assert model.generate(return_codes=True, progress=False).max() < EOS


def test_meshes_are_tokenized_in_eval_mode():
    vertices, faces = pad_batch([box_mesh(), pyramid_mesh(), tetrahedron_mesh()])
    dropout = {"ff_dropout": 0.5, "attn_encoder_depth": 1, "attn_decoder_depth": 1}
    model = make_transformer(autoencoder=make_autoencoder(**dropout, num_quantizers=4))
    wanted = model(vertices=vertices, faces=faces)
    model.train()
    torch.testing.assert_close(model(vertices=vertices, faces=faces), wanted)
    assert model.autoencoder.training


@torch.no_grad()
@pytest.mark.parametrize("pad_ids", [(-2, -7), (-1, -7), (-2, -1), (-1, 1000)])
def test_the_loss_does_not_depend_on_the_pad_ids(pad_ids):
    vertices, faces = pad_batch([box_mesh(), pyramid_mesh()])
    wanted = make_transformer()(vertices=vertices, faces=faces)
    ae_pad_id, pad_id = pad_ids
    torch.manual_seed(0)
    model = make_transformer(autoencoder=make_autoencoder(pad_id=ae_pad_id), pad_id=pad_id)
    model.load_state_dict(make_transformer().state_dict())
    faces = faces.masked_fill(faces == -1, ae_pad_id)
    torch.testing.assert_close(model(vertices=vertices, faces=faces), wanted)


@torch.no_grad()
def test_given_face_edges_are_used():
    model = make_transformer()
    vertices, faces = pad_batch([box_mesh()])
    alone = torch.arange(12)[None, :, None].expand(1, 12, 2)
    wanted = model(codes=model.autoencoder.tokenize(vertices, faces, alone))
    loss = model(vertices=vertices, faces=faces, face_edges=alone)
    torch.testing.assert_close(loss, wanted)
    assert (loss - model(vertices=vertices, faces=faces)).abs() > 1e-4


# errors


def test_neither_meshes_nor_codes_are_refused(model):
    mesh = box_mesh()
    for given in ({}, {"vertices": mesh.vertices[None]}, {"faces": mesh.faces[None]}):
        with pytest.raises(ValueError, match="either codes, or vertices and faces, must be given"):
            model(**given)


def test_codes_without_a_batch_are_refused(model):
    with pytest.raises(ValueError, match=r"codes must have the shape \(b, n\) .* got \(12,\)"):
        model(codes=torch.zeros(12, dtype=torch.long))


def test_codes_that_are_too_long_are_refused(model):
    length = model.max_seq_len
    codes = random_codes(model, 12)
    longer = F.pad(codes, (0, 1))
    with pytest.raises(ValueError, match=f"at most max_seq_len = {length} .* got {length + 1}"):
        model(codes=longer)
    with pytest.raises(ValueError, match=f"at most max_seq_len = {length} .* got {length + 1}"):
        model.forward_on_codes(codes, return_loss=False, append_eos=True)
    quads = model.num_vertices_per_face == 4
    mesh = box_mesh(quads)
    faces = mesh.faces.repeat(13, 1)[:13]
    with pytest.raises(ValueError, match=f"at most max_seq_len = {length} "):
        model(vertices=mesh.vertices[None], faces=faces[None])


@pytest.mark.parametrize("wrong", [EOS, EOS + 1, -2])
def test_ids_that_are_no_codes_are_refused(model, wrong):
    codes = random_codes(model, 2)
    codes[1, 4] = wrong
    with pytest.raises(ValueError, match=rf"code ids must be in \[0, 32\).* got {wrong} in row 1"):
        model(codes=codes)
    if wrong != EOS:
        with pytest.raises(ValueError, match=rf"must be in \[0, 33\).* got {wrong} in row 1"):
            model(codes=codes, append_eos=False)


def test_padding_inside_a_row_is_refused(model):
    codes = random_codes(model, 2)
    codes[1, 4] = -1
    with pytest.raises(ValueError, match=r"padding \(-1\) must come last .* row 1 at 5"):
        model(codes=codes)


def test_rows_without_codes_are_refused(model):
    codes = random_codes(model, 2)
    codes[2] = -1
    with pytest.raises(ValueError, match="and one at least, got 0 codes in row 2"):
        model(codes=codes)
    with pytest.raises(ValueError, match="codes must hold at least one face"):
        model(codes=codes[:, :0])


def test_a_part_of_a_face_has_no_end_to_learn(model):
    codes = random_codes(model, 2)
    per_face = model.num_codes_per_face
    with pytest.raises(
        ValueError, match=f"whole faces of {per_face} codes, .* {per_face + 1} codes"
    ):
        model(codes=codes[:, : per_face + 1])
    codes[1, per_face - 1 :] = -1
    with pytest.raises(ValueError, match=f"got {per_face - 1} codes in row 1"):
        model(codes=codes)


def test_codes_of_one_mesh_need_a_batch_axis(model):
    codes = random_codes(model, 2, batch=1).reshape(-1, model.num_quantizers)
    with pytest.raises(ValueError, match=r"whole faces .* batch axis with codes\[None\]"):
        model(codes=codes)


def test_codes_of_another_number_of_quantizers_are_refused(model):
    codes = torch.zeros(2, 12, model.num_quantizers + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"one for each quantizer, got \(2, 12, 3\)"):
        model(codes=codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_codes_that_are_no_integers_are_refused(dtype):
    codes = torch.zeros(2, 12, dtype=dtype)
    with pytest.raises(ValueError, match=f"codes must be integers, got {dtype}"):
        flatten_codes(codes, 2)


def test_a_mesh_without_a_batch_axis_is_refused(model, real_meshes):
    mesh = real_meshes[0]
    forward = inspect.unwrap(MeshTransformer.forward)
    with pytest.raises(ValueError, match=r"batch axis with vertices\[None\]"):
        forward(make_transformer(), vertices=mesh.vertices, faces=mesh.faces)


@torch.no_grad()
def test_padding_between_faces_is_no_code(real_meshes):
    model = make_transformer(max_seq_len=46 * 6)
    mesh = min(real_meshes, key=lambda mesh: len(mesh.faces))
    padding = torch.full((2, 3), -1)
    spread = torch.cat((mesh.faces[:3], padding, mesh.faces[3:], padding))
    vertices = mesh.vertices[None]
    torch.testing.assert_close(
        model(vertices=vertices, faces=spread[None]),
        model(vertices=vertices, faces=mesh.faces[None]),
    )


def test_texts_are_refused_by_a_model_without(model):
    codes = random_codes(model, 2)
    for form in ({"texts": TEXTS}, {"text_embeds": torch.ones(3, 2, 4)}):
        with pytest.raises(ValueError, match=f"a model without text takes no {next(iter(form))}"):
            model(codes=codes, **form)


def test_guidance_without_meaning_is_refused(model):
    codes = random_codes(model, 2)
    with pytest.raises(ValueError, match=r"cond_scale must be at least 1, and finite, got 0\.5"):
        model(codes=codes, return_loss=False, append_eos=False, cond_scale=0.5)
    model.train()
    with pytest.raises(ValueError, match="cond_scale must be 1 in training mode, got 2"):
        model(codes=codes, return_loss=False, append_eos=False, cond_scale=2)
    model.eval()


def test_faces_of_another_kind_are_refused(model):
    quads = model.num_vertices_per_face == 4
    mesh = box_mesh(quads=not quads)
    with pytest.raises(ValueError, match=f"faces must have {3 + quads} vertices each"):
        model(vertices=mesh.vertices[None], faces=mesh.faces[None])
