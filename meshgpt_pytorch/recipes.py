"""Options that were measured to go well together; docs/ablations.md has the figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from meshgpt_pytorch.data.augment import Augmentation, Compose, Mirror, Scale, Shift

__all__ = ["QUICK_MODEL", "AutoencoderRecipe", "quick_recipe"]

QUICK_MODEL: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_dims_through_depth": (64, 128, 256),
        "decoder_dims_through_depth": (128, 128, 192, 192, 256, 256),
        "dim_codebook": 128,
        "quantizer": "fsq",
        "fsq_levels": (16, 16, 16),
        "codebook_size": 4096,
        "vertex_shortcut": True,
        "vertex_consistent": True,
    }
)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """What to build an autoencoder with, and how to train it.

    Args:
        model: arguments of ``MeshAutoencoder``.
        trainer: arguments of ``MeshAutoencoderTrainer``.
        augmentation: for ``MeshDataset.augment``.
    """

    model: Mapping[str, Any]
    trainer: Mapping[str, Any]
    augmentation: Augmentation


def quick_recipe(num_train_steps: int) -> AutoencoderRecipe:
    """Return the recipe of an autoencoder that rebuilds all meshes on the grid, seen and unseen.

    Codes are the digits of a position in a grid, which starts as that of the coordinates; straight
    lines lead into it and out of it; the networks over faces are small. So meshes are rebuilt
    before the first step, and the learning rate is low enough to keep that. ::

        recipe = quick_recipe(num_train_steps=1000)
        autoencoder = MeshAutoencoder(**recipe.model)
        trainer = MeshAutoencoderTrainer(
            autoencoder, dataset.augment(recipe.augmentation), **recipe.trainer
        )
        trainer()

    Args:
        num_train_steps: length of the training, over which the learning rate falls to zero, where
            it stays. To train longer, take the recipe of more steps; more steps of the trainer
            alone would learn nothing.

    Raises:
        ValueError: no steps.
    """
    if num_train_steps < 1:
        raise ValueError(f"num_train_steps must be at least 1, got {num_train_steps}")
    fall = partial(hold_then_fall, num_train_steps=num_train_steps)
    trainer = {
        "num_train_steps": num_train_steps,
        "learning_rate": 1e-4,
        "warmup_steps": min(50, num_train_steps // 2),
        "max_grad_norm": 1.0,
        "optimizer_kwargs": {"betas": (0.9, 0.99)},
        "scheduler": LambdaLR,
        "scheduler_kwargs": {"lr_lambda": fall},
    }
    return AutoencoderRecipe(QUICK_MODEL, trainer, Compose(Scale(), Mirror(), Shift()))


def hold_then_fall(step: int, num_train_steps: int) -> float:
    """Hold the learning rate for 30 % of the steps, then let it fall to zero in a line."""
    return min(1.0, max(0.0, 1 - step / num_train_steps) / 0.7)
