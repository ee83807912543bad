"""The quick recipe fits what it is for."""

import pytest
import torch

from meshgpt_pytorch import (
    MeshAutoencoder,
    MeshAutoencoderTrainer,
    MeshDataset,
    quick_recipe,
    triangle_accuracy,
)
from meshgpt_pytorch.recipes import hold_then_fall
from tests.helpers import FURNITURE

SMALL = {
    "encoder_dims_through_depth": (16, 16),
    "decoder_dims_through_depth": (16, 16),
    "dim_codebook": 32,
}
QUIET = {
    "ema_kwargs": None,
    "accelerator_kwargs": {"cpu": True},
    "progress": False,
    "seed": 0,
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
        **QUIET,
    )
    trainer()
    assert len(losses) == 4

    mesh = meshes[0]
    codes = autoencoder.tokenize(**mesh)
    (face_coords,), _ = autoencoder.decode_from_codes_to_faces(codes[None])
    for vertex in range(len(mesh["vertices"])):
        assert len(face_coords[mesh["faces"] == vertex].unique(dim=0)) == 1


def share_rebuilt(autoencoder, meshes):
    """Share of the faces that come back from their codes with all coordinates right."""
    num_right = num_faces = 0
    for mesh in meshes:
        codes = autoencoder.tokenize(**mesh)
        coords, mask = autoencoder.decode_from_codes_to_faces(codes[None])
        target = mesh["vertices"][mesh["faces"]][None]
        num_right += triangle_accuracy(coords, target, mask).triangle * target.shape[1]
        num_faces += target.shape[1]
    return num_right / num_faces


def test_unseen_meshes_are_rebuilt_before_training_and_on_its_way(tmp_path):
    recipe = quick_recipe(num_train_steps=1000)
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(**{**recipe.model, **SMALL})
    meshes = MeshDataset(FURNITURE).filter(max_faces=80).canonicalize()
    meshes = meshes.with_keys("vertices", "faces")
    unseen = [meshes[index] for index in range(8)]
    assert share_rebuilt(autoencoder, unseen) == 1.0
    trainer = MeshAutoencoderTrainer(
        autoencoder,
        meshes.select(range(8, len(meshes))).augment(recipe.augmentation),
        # at ten times the recipe's learning rate, faces are lost within these steps
        **{**recipe.trainer, "num_train_steps": 40, "warmup_steps": 0},
        batch_size=8,
        checkpoint_folder=tmp_path,
        **QUIET,
    )
    trainer()
    assert autoencoder.vertex_shortcut.encoder_gate.abs().max() > 0
    assert share_rebuilt(autoencoder, unseen) == 1.0


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
