"""What a CUDA device computes is what the CPU does; run with ``pytest -m gpu``."""

import pytest
import torch

from meshgpt_pytorch.mesh import check_mesh_batch
from tests.helpers import box_mesh, pad_batch, pyramid_mesh
from tests.training.runs import make_autoencoder, make_text_transformer

pytestmark = pytest.mark.gpu


def test_autoencoder_on_a_device_is_that_on_the_cpu():
    autoencoder = make_autoencoder().eval()
    vertices, faces = pad_batch([box_mesh(), pyramid_mesh()])
    codes = autoencoder.tokenize(vertices, faces)
    loss = autoencoder(vertices=vertices, faces=faces)
    autoencoder.cuda()
    assert torch.equal(autoencoder.tokenize(vertices.cuda(), faces.cuda()).cpu(), codes)
    on_device = autoencoder(vertices=vertices.cuda(), faces=faces.cuda())
    torch.testing.assert_close(on_device.cpu(), loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_generation_on_a_device_is_that_on_the_cpu(cond_scale, cache_kv):
    transformer = make_text_transformer().eval()
    options = {"texts": ["a box", "a roof"], "temperature": 0.0, "return_codes": True}
    options |= {"cond_scale": cond_scale, "cache_kv": cache_kv, "progress": False}
    codes = transformer.generate(**options)
    assert torch.equal(transformer.cuda().generate(**options).cpu(), codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_step_runs_in_half_precision(dtype):
    transformer = make_text_transformer().cuda()
    vertices, faces = (each.cuda() for each in pad_batch([box_mesh(), pyramid_mesh()]))
    with torch.autocast("cuda", dtype):
        loss = transformer(vertices=vertices, faces=faces, texts=["a box", "a roof"])
    loss.backward()
    assert torch.isfinite(loss)


def test_checks_do_not_wait_for_the_device():
    vertices, faces = (each.cuda() for each in pad_batch([box_mesh(), pyramid_mesh()]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        check_mesh_batch(vertices, faces)
    finally:
        torch.cuda.set_sync_debug_mode("default")
