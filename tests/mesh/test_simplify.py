"""Decimation keeps to the budget and to the shape, with each package."""

import sys

import pytest
import torch

from meshgpt_pytorch.mesh import (
    Mesh,
    merge_coplanar_triangles,
    simplify,
    simplify_mesh,
    surface_distance,
)
from tests.helpers import box_mesh

METHODS = ("planar", "quadric", "fast")


def fine_box(steps=8):
    """A box of many triangles."""
    mesh = box_mesh()
    vertices, faces = mesh.vertices, mesh.faces
    for _ in range(steps.bit_length() - 1):
        corners = vertices[faces]
        middles = (corners + corners.roll(-1, dims=1)) / 2
        first, second, third = middles.unbind(dim=1)
        one, two, three = corners.unbind(dim=1)
        parts = ((one, first, third), (first, two, second), (third, second, three))
        parts = (*parts, (first, second, third))
        soup = torch.stack([torch.stack(part, dim=1) for part in parts], dim=1).flatten(0, 1)
        vertices, faces = soup.reshape(-1, 3).unique(dim=0, return_inverse=True)
        faces = faces.reshape(-1, 3)
    return Mesh(vertices, faces)


@pytest.mark.parametrize("method", METHODS)
def test_a_fine_box_becomes_a_box(method):
    mesh = fine_box()
    assert len(mesh.faces) == 768
    coarse = simplify_mesh(mesh, 12, method=method)
    assert len(coarse.faces) <= 12 and coarse.faces.dtype == torch.int64
    assert surface_distance(mesh, coarse).hausdorff < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_real_meshes_stay_within_the_budget(furniture, method):
    for mesh in furniture[::60]:
        copy = Mesh(mesh.vertices.clone(), mesh.faces.clone())
        try:
            coarse = simplify_mesh(mesh, 100, method=method)
        except RuntimeError as error:
            assert "wanted at most 100; try another method" in str(error)
        else:
            assert 0 < len(coarse.faces) <= max(100, 0)
            assert coarse.faces.max() < len(coarse.vertices)
        assert torch.equal(mesh.vertices, copy.vertices) and torch.equal(mesh.faces, copy.faces)


def test_a_mesh_within_the_budget_is_left_alone():
    mesh = box_mesh()
    assert simplify_mesh(mesh, 12) is mesh


def test_the_first_package_that_is_installed_is_used(changed_packages):
    assert simplify.default_simplifier() == "planar"
    simplify.import_fault.cache_clear()
    changed_packages.setitem(sys.modules, "pymeshlab", None)
    assert simplify.default_simplifier() == "fast"
    assert len(simplify_mesh(fine_box(), 50).faces) <= 50
    with pytest.raises(RuntimeError, match=r"'planar' .*pymeshlab is not .*pip install 'mesh"):
        simplify_mesh(fine_box(), 50, method="planar")
    simplify.import_fault.cache_clear()
    changed_packages.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(RuntimeError, match=r"pymeshlab is not installed, .*; fast-simplif"):
        simplify_mesh(fine_box(), 50)


BROKEN = {
    "a library of the system is missing": "raise ImportError('libGL.so.1: cannot open')",
    "a module that it needs is missing": "import no_such_module_anywhere",
    "its filters did not load": "class MeshSet: pass",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_package_that_is_installed_and_broken_is_passed_over(text, changed_packages, tmp_path):
    (tmp_path / "pymeshlab.py").write_text(f"{text}\n")
    changed_packages.delitem(sys.modules, "pymeshlab", raising=False)
    changed_packages.syspath_prepend(tmp_path)
    assert simplify.default_simplifier() == "fast"
    assert len(simplify_mesh(fine_box(), 50).faces) <= 50
    message = r"pymeshlab is installed and does not work \(.*\), apt install libgl1 libopengl0"
    with pytest.raises(simplify.MissingSimplifierError, match=message):
        simplify_mesh(fine_box(), 50, method="quadric")
    simplify.import_fault.cache_clear()
    changed_packages.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(simplify.MissingSimplifierError, match=f"{message}; fast-simplification is"):
        simplify_mesh(fine_box(), 50)


def test_what_cannot_be_decimated_is_refused():
    with pytest.raises(ValueError, match="wants triangles, got quads; read the file with"):
        simplify_mesh(box_mesh(quads=True), 4)
    with pytest.raises(ValueError, match="max_faces must be at least 4, got 3"):
        simplify_mesh(box_mesh(), 3)
    with pytest.raises(ValueError, match=r"method must be one of \('planar', .* got 'best'"):
        simplify_mesh(box_mesh(), 8, method="best")
    with pytest.raises(ValueError, match="the mesh has no faces"):
        simplify_mesh(Mesh(box_mesh().vertices, box_mesh().faces[:0]), 8)


def test_a_decimated_box_can_be_made_of_quads():
    quads = merge_coplanar_triangles(simplify_mesh(fine_box(), 12))
    assert quads.faces.shape[1] == 4
