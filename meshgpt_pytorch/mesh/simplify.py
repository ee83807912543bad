"""Decimation: fewer faces for the same shape."""

from functools import cache
from importlib import import_module
from typing import Literal

import numpy as np
import torch

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.types import Mesh

__all__ = [
    "MissingSimplifierError",
    "SimplifyMethod",
    "default_simplifier",
    "is_available",
    "simplify_mesh",
]

SimplifyMethod = Literal["planar", "quadric", "fast"]
MODULE_OF_METHOD: dict[SimplifyMethod, str] = {
    "planar": "pymeshlab",
    "quadric": "pymeshlab",
    "fast": "fast_simplification",
}
MESHLAB_FILTER = "meshing_decimation_quadric_edge_collapse"


class MissingSimplifierError(RuntimeError):
    """No package to decimate with is installed and can be imported."""


def simplify_mesh(mesh: Mesh, max_faces: int, *, method: SimplifyMethod | None = None) -> Mesh:
    """Decimate a triangle mesh by collapsing edges, cheapest quadric error first.

    Garland and Heckbert, "Surface Simplification Using Quadric Error Metrics", SIGGRAPH 1997.

    Args:
        mesh: a triangle mesh with faces. One within the budget is returned as it is.
        max_faces: most faces of the result, 4 or more.
        method: "planar", pymeshlab with a penalty that keeps flat parts flat, most often the best;
            "quadric", pymeshlab without it; "fast", the package fast-simplification. By default
            the first of them whose package can be imported.

    Returns:
        the mesh, on the CPU, vertices of its own. It can have fewer faces than asked for, where no
        collapse gives exactly so many.

    Raises:
        ValueError: quads, a budget below 4, or a mesh that is empty or broken.
        MissingSimplifierError: there is no package to decimate with, or it cannot be imported.
        RuntimeError: the package did not reach the budget.
    """
    check_mesh(mesh)
    if mesh.faces.shape[1] != 3:
        raise ValueError(
            "simplify_mesh wants triangles, got quads; read the file with quads=False, and merge "
            "the result with merge_coplanar_triangles"
        )
    if max_faces < 4:
        raise ValueError(f"max_faces must be at least 4, got {max_faces}")
    method = default_simplifier() if method is None else method
    if method not in MODULE_OF_METHOD:
        raise ValueError(f"method must be one of {(*MODULE_OF_METHOD,)}, got {method!r}")
    fault = import_fault(MODULE_OF_METHOD[method])
    if fault is not None:
        raise MissingSimplifierError(f"method={method!r} cannot be used: {fault}")
    if len(mesh.faces) <= max_faces:
        return mesh

    vertices = mesh.vertices.detach().cpu().double().numpy()
    faces = mesh.faces.cpu().numpy().astype(np.int32)
    if method == "fast":
        vertices, faces = simplify_fast(vertices, faces, max_faces)
    else:
        vertices, faces = simplify_with_meshlab(
            vertices, faces, max_faces, is_planar=method == "planar"
        )
    if not 0 < len(faces) <= max_faces:
        raise RuntimeError(
            f"{MODULE_OF_METHOD[method]} left {len(faces)} of {len(mesh.faces)} faces, wanted at "
            f"most {max_faces}; try another method, or more faces"
        )
    return Mesh(
        torch.from_numpy(np.array(vertices, dtype=np.float32)),
        torch.from_numpy(np.array(faces, dtype=np.int64)),
    )


def default_simplifier() -> SimplifyMethod:
    """Name the best method whose package can be imported.

    Raises:
        MissingSimplifierError: there is none.
    """
    for method in MODULE_OF_METHOD:
        if is_available(method):
            return method
    faults = [import_fault(name) or "" for name in dict.fromkeys(MODULE_OF_METHOD.values())]
    raise MissingSimplifierError(
        f"decimation needs pymeshlab or fast-simplification: {'; '.join(faults)}"
    )


def is_available(method: SimplifyMethod) -> bool:
    """Tell whether the package of a method can be imported."""
    return import_fault(MODULE_OF_METHOD[method]) is None


@cache
def import_fault(name: str) -> str | None:
    """Import a package once; say why that fails and what helps, None if it works."""
    package = name.replace("_", "-")
    try:
        module = import_module(name)
        if name == "pymeshlab":
            # a plugin that lacks a library of the system is left out with no more than a print
            getattr(module.MeshSet, MESHLAB_FILTER)
    except Exception as error:
        # a broken package fails in every way there is
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return f"{package} is not installed, pip install 'meshgpt-pytorch[simplify]'"
        remedy = "apt install libgl1 libopengl0" if name == "pymeshlab" else "install it again"
        cause = f"{type(error).__name__}: {error}"
        return f"{package} is installed and does not work ({cause}), {remedy}"
    return None


def simplify_with_meshlab(
    vertices: np.ndarray, faces: np.ndarray, max_faces: int, *, is_planar: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decimate with MeshLab's filter."""
    pymeshlab = import_module("pymeshlab")
    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(vertices, faces))
    try:
        meshes.apply_filter(MESHLAB_FILTER, targetfacenum=max_faces, planarquadric=is_planar)
    except pymeshlab.PyMeshLabException as error:
        raise RuntimeError(f"pymeshlab cannot decimate this mesh: {error}") from error
    result = meshes.current_mesh()
    return result.vertex_matrix(), result.face_matrix()


def simplify_fast(
    vertices: np.ndarray, faces: np.ndarray, max_faces: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decimate with fast-simplification."""
    fast_simplification = import_module("fast_simplification")
    # a contiguous copy: it decimates in place what it can
    result: tuple[np.ndarray, np.ndarray] = fast_simplification.simplify(
        vertices.copy(), faces.copy(), target_count=max_faces, agg=7
    )
    return result
