"""Half precision: autocast, and whole models cast to bfloat16, give numbers near float32's."""

from contextlib import nullcontext

import pytest
import torch

from tests.tokenizers.models import KINDS, batch_for, tiny_autoencoder


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def batch(kind, furniture):
    return batch_for(kind, furniture)


def model_and_context(kind, mode):
    autoencoder = tiny_autoencoder(kind, rq_kwargs={"quantize_dropout": False})
    if mode == "cast to bfloat16":
        return autoencoder.bfloat16(), nullcontext()
    if mode == "cast to float64":
        return autoencoder.double(), nullcontext()
    dtype = {"autocast to bfloat16": torch.bfloat16, "autocast to float16": torch.float16}[mode]
    return autoencoder, torch.autocast("cpu", dtype=dtype)


MODES = ("autocast to bfloat16", "autocast to float16", "cast to bfloat16", "cast to float64")


@pytest.mark.parametrize("mode", MODES)
def test_a_training_step_in_another_precision_is_close(kind, batch, mode):
    vertices, faces = batch
    reference = tiny_autoencoder(kind, rq_kwargs={"quantize_dropout": False})
    expected = reference(vertices=vertices, faces=faces, return_loss_breakdown=True)
    autoencoder, context = model_and_context(kind, mode)
    with context:
        loss, breakdown = autoencoder(vertices=vertices, faces=faces, return_loss_breakdown=True)
    loss.backward()
    assert loss.isfinite()
    # what is left of float32 after some codes turn over
    torch.testing.assert_close(
        breakdown.recon_loss.float(), expected.breakdown.recon_loss, rtol=0.1, atol=0
    )
    assert breakdown.commit_loss.isfinite().all()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("mode", MODES)
def test_tokenizing_and_decoding_in_another_precision(kind, batch, mode):
    vertices, faces = batch
    autoencoder, context = model_and_context(kind, mode)
    exists = (faces != -1).all(dim=-1)
    with context:
        codes = autoencoder.tokenize(vertices, faces)
        face_coords, face_mask = autoencoder.decode_from_codes_to_faces(codes)
        loss = autoencoder.eval()(vertices=vertices, faces=faces)
    assert codes.dtype == torch.int64
    assert torch.equal(face_mask, exists)
    assert (face_coords[exists].abs() <= 1).all()
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_vertices_may_have_another_dtype_than_weights(furniture, dtype):
    # coordinates that the dtype holds exactly, so that they fall in the same bins
    vertices, faces = batch_for("lfq", furniture)
    vertices = (vertices * 32).round() / 32
    autoencoder = tiny_autoencoder()
    expected = autoencoder.tokenize(vertices, faces)
    assert torch.equal(autoencoder.tokenize(vertices.to(dtype), faces), expected)
