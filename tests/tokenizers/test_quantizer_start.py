"""Lookup-free codes that start from statistics of some meshes."""

import pytest
import torch

from meshgpt_pytorch import MeshAutoencoder
from meshgpt_pytorch.tokenizers.quantizer_start import spread_over_codes
from tests.helpers import pad_batch
from tests.tokenizers.models import KINDS, TINY, small_furniture, tiny_autoencoder


@pytest.fixture
def batch(furniture):
    vertices, faces = pad_batch(small_furniture(furniture))
    return {"vertices": vertices, "faces": faces}


def projected_vertices(autoencoder, batch):
    """Return what the quantizer reads, of the vertices that a face refers to."""
    seen = []
    hook = autoencoder.quantizer.register_forward_pre_hook(
        lambda module, inputs: seen.append(module.project_in(inputs[0]))
    )
    autoencoder.eval()(**batch)
    hook.remove()
    row = torch.arange(len(batch["faces"]))[:, None, None]
    referenced = torch.zeros(batch["vertices"].shape[:2], dtype=torch.bool)
    exists = batch["faces"] >= 0
    referenced[row.expand_as(exists)[exists], batch["faces"][exists]] = True
    return seen[-1][referenced]


def count_codes(autoencoder, batch):
    codes = autoencoder.tokenize(**batch)
    return len(codes[codes[..., 0] >= 0].unique(dim=0))


@pytest.mark.parametrize("options", [{}, {"num_quantizers": 1}])
def test_started_vertices_spread_over_the_range_of_the_codes(batch, options):
    autoencoder = tiny_autoencoder(**options)
    autoencoder.start_quantizer(**batch)
    projected = projected_vertices(autoencoder, batch)
    zeros = torch.zeros(projected.shape[1])
    torch.testing.assert_close(projected.mean(dim=0), zeros, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        projected.std(dim=0, correction=0), zeros + 2 / 3**0.5, rtol=1e-3, atol=0
    )


def test_started_codes_tell_more_vertices_apart(batch):
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(**TINY)
    before = count_codes(autoencoder, batch)
    autoencoder.start_quantizer(**batch)
    assert count_codes(autoencoder, batch) > 2 * before


def test_a_start_changes_the_projection_alone(batch):
    autoencoder = tiny_autoencoder(attn_dropout=0.5, attn_encoder_depth=1).train()
    before = {name: each.clone() for name, each in autoencoder.state_dict().items()}
    random_state = torch.get_rng_state()
    autoencoder.start_quantizer(**batch)
    assert torch.equal(torch.get_rng_state(), random_state)
    changed = {
        n for n, each in autoencoder.state_dict().items() if not torch.equal(each, before[n])
    }
    assert changed == {"quantizer.project_in.weight", "quantizer.project_in.bias"}
    assert all(module.training for module in autoencoder.modules())
    # nothing but numbers: who has them has the start
    other = tiny_autoencoder(attn_dropout=0.5, attn_encoder_depth=1)
    other.load_state_dict(autoencoder.state_dict())
    assert torch.equal(other.tokenize(**batch), autoencoder.tokenize(**batch))


def test_a_second_start_finds_nothing_to_do(batch):
    autoencoder = tiny_autoencoder()
    autoencoder.start_quantizer(**batch)
    before = autoencoder.quantizer.project_in.weight.clone()
    autoencoder.start_quantizer(**batch)
    torch.testing.assert_close(autoencoder.quantizer.project_in.weight, before)


@pytest.mark.parametrize("kind", ["rvq", "simvq", "fsq"])
def test_other_quantizers_are_not_started(batch, kind):
    autoencoder = tiny_autoencoder(**KINDS[kind])
    with pytest.raises(
        ValueError, match=r"must be 'lfq', .*; train it as it is \('rvq' starts by k"
    ):
        autoencoder.start_quantizer(**batch)


def test_lookup_free_bits_without_a_projection_are_refused(batch):
    autoencoder = tiny_autoencoder(dim_codebook=6, codebook_size=64)
    with pytest.raises(ValueError, match="with a dim_codebook other than its number of bits"):
        autoencoder.start_quantizer(**batch)


@pytest.mark.parametrize("num_vertices", [1, 3])
def test_vertices_that_do_not_differ_are_refused(num_vertices):
    quantizer = tiny_autoencoder().quantizer
    with pytest.raises(ValueError, match=f"must differ along each axis, got {num_vertices} with"):
        spread_over_codes(quantizer, torch.ones(num_vertices, 12))
