"""Meshes on disk or in memory -> items -> padded batches, with what is derived from them cached."""

from meshgpt_pytorch.data.caches import (
    cache_face_edges_for_dataset,
    cache_text_embeds_for_dataset,
)
from meshgpt_pytorch.data.collate import custom_collate
from meshgpt_pytorch.data.datasets import DatasetFromTransforms, DatasetSplit, MeshDataset
from meshgpt_pytorch.mesh import derive_face_edges_from_faces

__all__ = [
    "DatasetFromTransforms",
    "DatasetSplit",
    "MeshDataset",
    "cache_face_edges_for_dataset",
    "cache_text_embeds_for_dataset",
    "custom_collate",
    "derive_face_edges_from_faces",
]
