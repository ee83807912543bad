"""Mesh files, read and written."""

import os
import uuid
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.file_size import check_unpacked_size
from meshgpt_pytorch.mesh.gltf_files import check_gltf
from meshgpt_pytorch.mesh.ply_files import ply_bytes, read_ply
from meshgpt_pytorch.mesh.polygon_files import (
    Polygons,
    fan_triangles,
    obj_text,
    off_text,
    read_obj,
    read_off,
)
from meshgpt_pytorch.mesh.quads import split_quads
from meshgpt_pytorch.mesh.types import Mesh, MeshFileError

if TYPE_CHECKING:
    import trimesh

__all__ = ["load_mesh", "save_mesh"]

POLYGON_READERS = {"obj": read_obj, "off": read_off, "ply": read_ply}
POLYGON_WRITERS = {"obj": obj_text, "off": off_text, "ply": ply_bytes}
TRIMESH_WRITERS = ("stl", "glb")

# trimesh takes memory as a file asks for it
BEFORE_READING = {"glb": check_gltf, "gltf": check_gltf, "3mf": check_unpacked_size}


def load_mesh(
    path: str | os.PathLike[str],
    *,
    quads: bool = False,
    mixed: Literal["refuse", "triangulate"] = "refuse",
) -> Mesh:
    """Read a mesh file: OBJ, OFF, PLY, STL, GLB, glTF, and whatever else trimesh can read.

    All objects of a scene become one mesh, placed by their transforms. Vertices and faces keep the
    order of the file. An STL file holds loose triangles, whose equal vertices are merged; in other
    formats a vertex that the file lists twice, as at texture seams, stays so: `canonicalize_mesh`
    merges it.

    Args:
        path: the file; its suffix, in any case, names the format.
        quads: read a file of quads, OBJ, OFF or PLY, as ``(nf, 4)`` faces. Otherwise polygons are
            split into triangles.
        mixed: with ``quads``, what to do with a file whose faces are not all quads: "refuse" it, or
            "triangulate" all of it, which gives ``(nf, 3)`` faces.

    Returns:
        the mesh, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        MeshFileError: it is not a whole mesh file of its format, it holds no faces, its vertices
            are not finite, or ``quads`` was asked for and it holds other faces.
        ValueError: ``mixed`` is something else.
    """
    if mixed not in ("refuse", "triangulate"):
        raise ValueError(f"mixed must be 'refuse' or 'triangulate', got {mixed!r}")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no mesh file at {path}")
    if path.is_dir():
        raise MeshFileError(f"cannot read {path}: it is a folder; name a mesh file in it")
    if path.stat().st_size == 0:
        raise MeshFileError(f"cannot read {path}: the file is empty; write or download it again")

    suffix = file_format(path)
    try:
        if suffix in POLYGON_READERS:
            vertices, faces = polygon_arrays(POLYGON_READERS[suffix](path), quads, mixed)
        elif quads and mixed == "refuse":
            raise ValueError(f"quads are read from .obj, .off and .ply files, not from .{suffix}")
        else:
            if suffix in BEFORE_READING:
                BEFORE_READING[suffix](path)
            vertices, faces = read_with_trimesh(path, suffix)
        return checked_mesh(vertices, faces)
    except Exception as error:
        # parsers fail on broken bytes in every way there is, recursion and memory included
        cause = str(error) or type(error).__name__
        raise MeshFileError(
            f"cannot read {path}: {cause}; check that it is a whole .{suffix} file with a mesh"
        ) from error


def save_mesh(mesh: Mesh, path: str | os.PathLike[str]) -> Path:
    """Write a mesh file; reading it gives back the same vertices and faces, in the same order.

    STL keeps no vertex order. STL and GLB hold triangles only: quads are split along the diagonal
    of their first vertex.

    Args:
        mesh: a mesh with faces, without padding.
        path: where to write; the suffix names the format: obj, off, ply, stl or glb. Missing
            folders are made, and a file of that name is replaced once the new one is whole.

    Returns:
        the path.

    Raises:
        ValueError: another format, or a mesh that is empty, not finite or badly indexed.
    """
    path = Path(path)
    suffix = writable_format(path)
    check_mesh(mesh)
    mesh = Mesh(mesh.vertices.detach().cpu().float(), mesh.faces.cpu().long())

    if suffix in POLYGON_WRITERS:
        content = POLYGON_WRITERS[suffix](mesh)
    else:
        content = trimesh_bytes(mesh, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def file_format(path: Path) -> str:
    """Return the format that the suffix names."""
    # on first use, here and below: it takes longer to import than the rest of the package
    import trimesh

    suffix = path.suffix.lower().lstrip(".")
    formats = trimesh.available_formats() | POLYGON_READERS.keys()
    if suffix in ("3mf", "dae") and suffix not in formats:
        raise MeshFileError(
            f"cannot read {path}: .{suffix} files need packages that are not installed; "
            "pip install 'meshgpt-pytorch[formats]'"
        )
    if suffix not in formats:
        known = ", ".join(f".{name}" for name in sorted(formats))
        raise MeshFileError(f"cannot read {path}: the suffix must be one of {known}")
    return suffix


def polygon_arrays(
    polygons: Polygons, quads: bool, mixed: Literal["refuse", "triangulate"]
) -> tuple[np.ndarray, np.ndarray]:
    """Turn polygons into arrays of vertices and of quads or triangles."""
    sizes = polygons.sizes
    if not quads or (mixed == "triangulate" and (sizes != 4).any()):
        return polygons.vertices, fan_triangles(polygons)
    if (sizes != 4).any():
        counts = Counter(sizes.tolist())
        found = ", ".join(f"{counts[size]} of {size} vertices" for size in sorted(counts))
        raise ValueError(
            f"quads=True wants faces of 4 vertices, got {found}; pass quads=False for triangles"
        )
    return polygons.vertices, polygons.corners.reshape(-1, 4)


def read_with_trimesh(path: Path, suffix: str) -> tuple[np.ndarray, np.ndarray]:
    """Read triangles; place and join the meshes of a scene."""
    import trimesh

    with warnings.catch_warnings():
        # of normals and textures, which are not used
        warnings.simplefilter("ignore")
        scene = trimesh.load_scene(path, file_type=suffix, process=False)
        parts = []
        for node in scene.graph.nodes_geometry:
            transform, name = scene.graph[node]
            geometry = scene.geometry[name]
            if isinstance(geometry, trimesh.Trimesh):
                parts.append(placed(geometry, transform))

    offsets = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    vertices = np.concatenate([np.empty((0, 3)), *(vertices for vertices, _ in parts)])
    faces = [faces + offset for (_, faces), offset in zip(parts, offsets[:-1], strict=True)]
    joined = np.concatenate([np.empty((0, 3), dtype=np.int64), *faces])
    return (
        merge_equal_vertices(vertices, joined) if suffix.startswith("stl") else (vertices, joined)
    )


def placed(geometry: "trimesh.Trimesh", transform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices and faces of one mesh of a scene, in the scene's coordinates."""
    vertices, faces = geometry.vertices.view(np.ndarray), geometry.faces.view(np.ndarray)
    if len(faces) > 0 and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(
            f"faces index {faces.min()} to {faces.max()} of the {len(vertices)} vertices"
        )
    if np.array_equal(transform, np.eye(4)):
        return vertices, faces
    if np.linalg.det(transform[:3, :3]) < 0:
        # a mirror turns faces inside out
        faces = faces[:, ::-1]
    return vertices @ transform[:3, :3].T + transform[:3, 3], faces


def merge_equal_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge vertices at exactly the same position, in the order in which they come first."""
    # + 0.0 makes one of the two zeros
    _, first, inverse = np.unique(vertices + 0.0, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return vertices[first[order]], rank[inverse.reshape(-1)][faces]


def checked_mesh(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """Make tensors of what a file holds, if that is a mesh."""
    if len(faces) == 0:
        raise ValueError(f"it holds {len(vertices)} vertices and no faces")
    with np.errstate(over="ignore"):
        mesh = Mesh(
            torch.from_numpy(vertices.astype(np.float32)),
            torch.from_numpy(faces.astype(np.int64)),
        )
    check_mesh(mesh)
    return mesh


def trimesh_bytes(mesh: Mesh, suffix: str) -> bytes:
    """Write a mesh as it is with trimesh, but for quads, which are split."""
    import trimesh

    faces = split_quads(mesh.faces) if mesh.faces.shape[1] == 4 else mesh.faces
    content = trimesh.Trimesh(mesh.vertices.numpy(), faces.numpy(), process=False).export(
        file_type=suffix
    )
    assert isinstance(content, bytes), f"trimesh writes .{suffix} as bytes"
    return content


def writable_format(path: str | Path) -> str:
    """Return the format that a file's suffix names.

    Raises:
        ValueError: not a format that ``save_mesh`` writes; or a folder is there.
    """
    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    formats = (*POLYGON_WRITERS, *TRIMESH_WRITERS)
    if suffix not in formats:
        known = ", ".join(f".{name}" for name in formats)
        raise ValueError(f"cannot write {path}: the suffix must be one of {known}")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: a folder of that name is there; name a file")
    return suffix
