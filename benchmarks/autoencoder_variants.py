"""The autoencoders that are compared: options, and how they are trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIZES: Mapping[str, Any] = {
    "encoder_dims_through_depth": (64, 128, 256),
    "decoder_dims_through_depth": (128, 128, 192, 192, 256, 256),
    "dim_codebook": 128,
}
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Variant:
    """What one row trains.

    Args:
        options: of the autoencoder, besides the sizes.
        is_augmented: train on meshes scaled, mirrored and shifted anew in each epoch.
        warm_up: share of the time without the quantizer.
        is_started: start the quantizer from statistics, see ``MeshAutoencoder.start_quantizer``.
        is_closed: let attention blocks start as identity.
        is_upstream: train upstream's autoencoder.
        learning_rate: the highest.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    is_augmented: bool = True
    warm_up: float = 0.0
    is_started: bool = False
    is_closed: bool = False
    is_upstream: bool = False
    learning_rate: float = LEARNING_RATE


FSQ: Mapping[str, Any] = {
    "quantizer": "fsq",
    "fsq_levels": (16, 16, 16),
    "codebook_size": 4096,
}
EXACT: Mapping[str, Any] = {**FSQ, "vertex_shortcut": True, "vertex_consistent": True}
VARIANTS = {
    "upstream": Variant(is_augmented=False, is_upstream=True),
    "upstream 1024": Variant({"codebook_size": 1024}, is_augmented=False, is_upstream=True),
    "lfq": Variant(is_augmented=False),
    "lfq, augmented": Variant(),
    "lfq, warm-up": Variant(warm_up=0.4),
    "lfq, consistent": Variant({"vertex_consistent": True}),
    "lfq, started": Variant(is_started=True),
    "lfq, started, consistent": Variant({"vertex_consistent": True}, is_started=True),
    "lfq, started, wide decoder": Variant(
        {"decoder_dims_through_depth": (256, 256, 384, 384, 512, 512)}, is_started=True
    ),
    "lfq, started, attention": Variant(
        {"attn_encoder_depth": 1, "attn_decoder_depth": 1}, is_started=True
    ),
    "lfq, started, attention as identity": Variant(
        {"attn_encoder_depth": 1, "attn_decoder_depth": 1}, is_started=True, is_closed=True
    ),
    "rvq": Variant({"quantizer": "rvq", "codebook_size": 1024}),
    "simvq": Variant({"quantizer": "simvq", "codebook_size": 1024}),
    "fsq": Variant(FSQ),
    "fsq, consistent": Variant({**FSQ, "vertex_consistent": True}),
    "fsq, shortcut": Variant({**FSQ, "vertex_shortcut": True}),
    "recipe, fast": Variant(EXACT),
    "recipe, fast, not augmented": Variant(EXACT, is_augmented=False),
    # the model, the augmentation and the learning rate of meshgpt_pytorch.quick_recipe
    "recipe": Variant(EXACT, learning_rate=1e-4),
}


@dataclass(frozen=True)
class Training:
    """What is trained, how, and for how long.

    Args:
        variant: a name of `VARIANTS`.
        seed: of the weights, the batches and the augmentation.
        minutes: how long; the learning rate falls to zero in that time.
        clock: "wall", or "cpu" for time of the processor.
        threads: that work.
        pack: the name of the file of meshes.
        near_duplicates: the name of the table of look-alikes, which the split heeds; or nothing.
    """

    variant: str
    seed: int
    minutes: float
    clock: str
    threads: int
    pack: str
    near_duplicates: str
