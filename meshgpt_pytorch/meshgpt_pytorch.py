"""The import path of meshgpt-pytorch 1.x, for code that was written against it: re-exports only."""

from meshgpt_pytorch.mesh import discretize, get_derived_face_features, undiscretize
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.tokenizers.losses import gaussian_blur_1d
from meshgpt_pytorch.tokenizers.quantizer import scatter_mean
from meshgpt_pytorch.transformer.model import MeshTransformer

__all__ = [
    "MeshAutoencoder",
    "MeshTransformer",
    "discretize",
    "gaussian_blur_1d",
    "get_derived_face_features",
    "scatter_mean",
    "undiscretize",
]
