"""A folder of meshes to prepare."""

from pathlib import Path

import pytest

from meshgpt_pytorch import save_mesh
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh


@pytest.fixture
def models(tmp_path) -> Path:
    """A folder of a few good meshes."""
    save_mesh(box_mesh(), tmp_path / "models" / "storage" / "oakChest_01.obj")
    save_mesh(pyramid_mesh(), tmp_path / "models" / "pyramid.GLB")
    save_mesh(tetrahedron_mesh(), tmp_path / "models" / "toys" / "tetra-pack.stl")
    return tmp_path / "models"
