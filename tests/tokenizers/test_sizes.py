"""Sizes that cannot be, and whole numbers where fractions are usual."""

import pytest
import torch

from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.helpers import box_mesh


@pytest.mark.parametrize(
    "option",
    [
        {"num_discrete_coors": 0},
        {"num_discrete_area": 0},
        {"num_discrete_normals": -1},
        {"num_discrete_angle": 0},
        {"encoder_dims_through_depth": ()},
        {"decoder_dims_through_depth": (8, 0)},
        {"dim_codebook": 0},
        {"num_quantizers": 0},
        {"local_attn_window_size": 0, "attn_encoder_depth": 1},
    ],
    ids=lambda option: next(iter(option)),
)
def test_sizes_below_one_are_refused(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"{name} must be at least 1 everywhere, got"):
        MeshAutoencoder(**option)
    assert value != 1


@pytest.mark.parametrize("pad_id", [0, 5])
def test_a_pad_id_that_is_a_vertex_is_refused(pad_id):
    with pytest.raises(ValueError, match=f"pad_id must be below 0, .* got {pad_id}; use -1"):
        MeshAutoencoder(pad_id=pad_id)


def test_whole_numbers_serve_as_fractions():
    # the suite checks types at each call, so a number of the wrong kind would be refused
    model = MeshAutoencoder(
        coor_continuous_range=(-1, 1),
        commit_loss_weight=1,
        bin_smooth_blur_sigma=0,
        attn_dropout=0,
        ff_dropout=0,
        resnet_dropout=0,
        encoder_dims_through_depth=(8, 8),
        decoder_dims_through_depth=(8, 8),
        dim_codebook=8,
        codebook_size=16,
    )
    mesh = box_mesh()
    loss = model(vertices=mesh.vertices[None], faces=mesh.faces[None], rvq_sample_codebook_temp=1)
    assert torch.isfinite(loss)
