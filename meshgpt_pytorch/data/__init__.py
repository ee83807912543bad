"""Meshes on disk or in memory -> items -> padded batches, with what is derived from them cached."""

from meshgpt_pytorch.data.augment import (
    Compose,
    Decimate,
    Jitter,
    Mirror,
    Normalize,
    RotateUp,
    Scale,
    Shift,
    paper_augmentation,
)
from meshgpt_pytorch.data.augmented import AugmentedDataset
from meshgpt_pytorch.data.caches import (
    cache_face_edges_for_dataset,
    cache_text_embeds_for_dataset,
)
from meshgpt_pytorch.data.choosing import near_duplicate_groups
from meshgpt_pytorch.data.collate import custom_collate
from meshgpt_pytorch.data.datasets import DatasetFromTransforms, DatasetSplit, MeshDataset
from meshgpt_pytorch.data.disk import MeshWriter
from meshgpt_pytorch.data.sampler import LengthBucketSampler
from meshgpt_pytorch.mesh import derive_face_edges_from_faces

__all__ = [
    "AugmentedDataset",
    "Compose",
    "DatasetFromTransforms",
    "DatasetSplit",
    "Decimate",
    "Jitter",
    "LengthBucketSampler",
    "MeshDataset",
    "MeshWriter",
    "Mirror",
    "Normalize",
    "RotateUp",
    "Scale",
    "Shift",
    "cache_face_edges_for_dataset",
    "cache_text_embeds_for_dataset",
    "custom_collate",
    "derive_face_edges_from_faces",
    "near_duplicate_groups",
    "paper_augmentation",
]
