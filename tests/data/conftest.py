"""Data sets of real meshes, and an autoencoder small enough to run at once."""

import pytest
import torch

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.helpers import FURNITURE


@pytest.fixture(scope="session")
def pack():
    return MeshDataset(FURNITURE)


@pytest.fixture
def small(pack):
    """12 real meshes of up to 60 faces; data sets of it share nothing with other tests."""
    return MeshDataset.from_meshes(list(pack.filter(max_faces=60).select(range(12))))


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return MeshAutoencoder(
        num_discrete_coors=128,
        dim_coor_embed=4,
        dim_area_embed=4,
        dim_normal_embed=4,
        dim_angle_embed=4,
        encoder_dims_through_depth=(16,),
        decoder_dims_through_depth=(16,),
        dim_codebook=8,
        codebook_size=16,
    )
