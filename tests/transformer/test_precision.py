"""Half precision: autocast and cast models run forward, backward and generate."""

from contextlib import nullcontext

import pytest
import torch

from tests.helpers import box_mesh, pad_batch, pyramid_mesh
from tests.transformer.models import (
    TEXTS,
    make_text_transformer,
    make_transformer,
    random_codes,
    trained_parameters,
)

ALL_TEXT = {
    "condition_on_text": True,
    "text_cond_with_film": True,
    "coarse_adaptive_rmsnorm": True,
    "fine_cross_attend_text": True,
}
KINDS = {
    "triangles": {"coarse_post_gateloop_depth": 1},
    "triangles, heinsen": {"gateloop_use_heinsen": True},
    "quads": {"quads": True, "dim": (24, 16)},
    "triangles, vertices copied": {"copy_vertices": True},
    "quads, vertices copied": {"quads": True, "dim": (24, 16), "copy_vertices": True},
    "text": ALL_TEXT,
    "text, no memory": {
        **ALL_TEXT,
        "cross_attn_num_mem_kv": 0,
        "text_condition_cond_drop_prob": 0.5,
    },
}
PRECISIONS = {
    "bf16 autocast": (torch.float32, torch.bfloat16),
    "fp16 autocast": (torch.float32, torch.float16),
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "bf16, bf16 autocast": (torch.bfloat16, torch.bfloat16),
    "fp64": (torch.float64, None),
}


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """A dtype to cast models to, and the context to run them in."""
    dtype, autocast = PRECISIONS[request.param]
    return dtype, torch.autocast("cpu", autocast) if autocast else nullcontext()


@pytest.fixture(params=KINDS)
def model(request):
    options = KINDS[request.param]
    make = make_text_transformer if "condition_on_text" in options else make_transformer
    return make(**options)


def batch_of(model):
    quads = model.num_vertices_per_face == 4
    meshes = [box_mesh(quads), box_mesh(True, (0.4, 0.2, 0.9)) if quads else pyramid_mesh()]
    vertices, faces = pad_batch(meshes)
    text = {"texts": TEXTS[:2]} if model.condition_on_text else {}
    return {"vertices": vertices, "faces": faces[:, :-1], **text}


def test_losses_and_gradients_are_close_to_those_of_float32(model, precision):
    drop = {"cond_drop_prob": 0.0} if model.condition_on_text else {}
    codes = model.autoencoder.tokenize(batch_of(model)["vertices"], batch_of(model)["faces"])
    text = {"texts": TEXTS[:2]} if model.condition_on_text else {}
    wanted = model(codes=codes, **text, **drop).detach()
    dtype, context = precision
    model.to(dtype).train()
    with context:
        loss = model(codes=codes, **text, **drop)
    assert loss.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(loss.detach().float(), wanted, rtol=0.02, atol=0.02)
    loss.backward()
    gradients = {name: p.grad for name, p in trained_parameters(model).items()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["token_embed.weight"].dtype == dtype


def test_meshes_become_losses_and_gradients(model, precision):
    dtype, context = precision
    model.to(dtype).train()
    with context:
        loss = model(**batch_of(model))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in trained_parameters(model).values())


@pytest.mark.parametrize("cache_kv", [True, False])
def test_faces_are_generated(model, precision, cache_kv):
    dtype, context = precision
    model.to(dtype)
    text = {"texts": TEXTS[:2], "cond_scale": 3.0} if model.condition_on_text else {}
    with context:
        face_coords, face_mask = model.generate(
            prompt=random_codes(model, 1.5, batch=2),
            max_seq_len=4 * model.num_codes_per_face,
            cache_kv=cache_kv,
            progress=False,
            **text,
        )
    assert face_mask[:, :2].all()
    assert face_coords[face_mask].isfinite().all()
    assert face_coords[face_mask].abs().max() <= 1
