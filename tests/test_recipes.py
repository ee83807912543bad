"""The quick recipe fits what it is for."""

import pytest
import torch

from meshgpt_pytorch import (
    MeshAutoencoder,
    MeshAutoencoderTrainer,
    MeshDataset,
    quick_recipe,
)
from meshgpt_pytorch.recipes import hold_then_fall
from tests.helpers import FURNITURE

SMALL = {
    "encoder_dims_through_depth": (16, 16),
    "decoder_dims_through_depth": (16, 16),
    "dim_codebook": 32,
}


def test_the_recipe_trains_and_its_shared_vertices_coincide(tmp_path):
    recipe = quick_recipe(num_train_steps=4)
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(**{**recipe.model, **SMALL})
    meshes = MeshDataset(FURNITURE).filter(max_faces=60).canonicalize()
    meshes = meshes.with_keys("vertices", "faces")
    losses = []
    trainer = MeshAutoencoderTrainer(
        autoencoder,
        meshes.augment(recipe.augmentation),
        **recipe.trainer,
        batch_size=4,
        on_step=lambda record: losses.append(record["loss"]),
        checkpoint_folder=tmp_path,
        ema_kwargs=None,
        accelerator_kwargs={"cpu": True},
        progress=False,
        seed=0,
    )
    trainer()
    assert len(losses) == 4

    mesh = meshes[0]
    codes = autoencoder.tokenize(**mesh)
    (face_coords,), _ = autoencoder.decode_from_codes_to_faces(codes[None])
    for vertex in range(len(mesh["vertices"])):
        assert len(face_coords[mesh["faces"] == vertex].unique(dim=0)) == 1


def test_learning_rate_holds_then_falls_to_zero():
    factors = [hold_then_fall(step, 100) for step in range(101)]
    assert factors[:30] == [1.0] * 30
    assert factors[-1] == 0.0
    assert sorted(factors, reverse=True) == factors


def test_learning_rate_stays_zero_beyond_its_steps():
    assert [hold_then_fall(step, 1000) for step in (1000, 1001, 1100, 2000)] == [0.0] * 4


def test_a_recipe_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="num_train_steps must be at least 1, got 0"):
        quick_recipe(0)
