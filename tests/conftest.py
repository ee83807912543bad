"""Fixtures shared by all tests. TYPECHECK is set before the package is first imported."""

import os

os.environ["TYPECHECK"] = "True"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from meshgpt_pytorch.mesh import Mesh, simplify
from tests.helpers import FURNITURE


@pytest.fixture(scope="session")
def furniture() -> Sequence[Mesh]:
    """The 739 bundled furniture meshes, in the order of the pack; faces as they were decimated."""
    with np.load(FURNITURE, allow_pickle=False) as pack:
        vertices = torch.from_numpy(pack["vertices"]).split(
            np.diff(pack["vertex_offsets"]).tolist()
        )
        faces = torch.from_numpy(pack["faces"]).long().split(np.diff(pack["face_offsets"]).tolist())
    return tuple(Mesh(*parts) for parts in zip(vertices, faces, strict=True))


@pytest.fixture
def changed_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Packages to decimate with are looked for anew, now and after they were changed back."""
    simplify.import_fault.cache_clear()
    yield monkeypatch
    simplify.import_fault.cache_clear()
