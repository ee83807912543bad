"""Quads out of triangles, and back."""

import numpy as np
import torch
from torch import Tensor

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.sides import face_sides
from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["merge_coplanar_triangles", "split_quads"]


def split_quads(faces: Tensor) -> Tensor:
    """Split quads (nf, 4) to triangles; one that repeats a vertex gives one triangle."""
    triangles = torch.stack((faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]), dim=1).flatten(0, 1)
    in_order = triangles.sort(dim=1).values
    return triangles[(in_order[:, 1:] != in_order[:, :-1]).all(dim=1)]


def merge_coplanar_triangles(mesh: Mesh, *, max_angle: float | int = 1.0) -> Mesh:
    """Merge pairs of triangles that share an edge and lie in one plane to convex quads.

    Of the pairs that are possible, those closest to a rectangle are merged first. A triangle that
    is left without a partner becomes a quad that repeats its last vertex, so that all faces have
    one size; `save_mesh` and the canonical form keep it a triangle.

    Args:
        mesh: a triangle mesh with faces, its winding coherent.
        max_angle: between the normals of two triangles to merge, in degrees.

    Returns:
        the same vertices, ``(nf, 4)`` faces with the winding of the triangles.

    Raises:
        ValueError: quads, an angle outside [0, 90), or a mesh that is empty or broken.
    """
    check_mesh(mesh)
    if mesh.faces.shape[1] != 3:
        raise ValueError(f"faces must be triangles, got shape {(*mesh.faces.shape,)}")
    if not 0 <= max_angle < 90:
        raise ValueError(f"max_angle must be from 0 to below 90 degrees, got {max_angle}")
    vertices = mesh.vertices.detach().cpu().double().numpy()
    faces = mesh.faces.cpu().numpy()

    pairs, quads = possible_quads(faces)
    skewness = shape_of_quads(vertices, quads, float(np.cos(np.radians(max_angle))))
    merged = np.zeros(len(faces), dtype=bool)
    kept = []
    for index in np.argsort(skewness, kind="stable"):
        first, second = pairs[index]
        if np.isfinite(skewness[index]) and not (merged[first] or merged[second]):
            merged[[first, second]] = True
            kept.append(index)
    single = faces[~merged]
    alone = np.concatenate((single, single[:, 2:]), axis=1)
    joined = np.concatenate((quads[kept].reshape(-1, 4), alone))
    return Mesh(mesh.vertices, torch.from_numpy(joined).to(mesh.faces))


def possible_quads(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List pairs of triangles that run along their one common edge in opposite directions.

    Returns:
        ``(n, 2)`` triangles and ``(n, 4)`` the quad that each pair makes.
    """
    sides = face_sides(faces)
    first, second = sides.pairs
    opposed = sides.forward[first] != sides.forward[second]
    pairs = np.stack((sides.faces[first], sides.faces[second]), axis=1)[opposed]
    one, other = faces[pairs[:, 0]], faces[pairs[:, 1]]
    # the corner of each that the other lacks
    apex = (one[:, :, None] != other[:, None, :]).all(axis=2).argmax(axis=1)
    tip = (other[:, :, None] != one[:, None, :]).all(axis=2).argmax(axis=1)
    rows = np.arange(len(pairs))
    around = [one[rows, (apex + shift) % 3] for shift in range(3)]
    quads = np.stack((around[0], around[1], other[rows, tip], around[2]), axis=1)
    in_order = np.sort(quads, axis=1)
    distinct = (in_order[:, 1:] != in_order[:, :-1]).all(axis=1)
    return pairs[distinct], quads[distinct]


def shape_of_quads(vertices: np.ndarray, quads: np.ndarray, min_cosine: float) -> np.ndarray:
    """Rate quads by how far their corners are from square; infinite for those not to be made."""
    corners = vertices[quads]
    ahead = np.roll(corners, -1, axis=1) - corners
    back = np.roll(corners, 1, axis=1) - corners
    normals = np.cross(ahead, back)
    lengths = np.linalg.norm(normals, axis=-1)
    # corners 0 and 2 span the two triangles; all four turn the same way if the quad is convex
    units = normals / np.where(lengths > 0, lengths, 1)[..., None]
    cosines = np.einsum("nid,njd->nij", units, units)
    is_flat = cosines[:, 0, 2] >= min_cosine
    is_convex = (cosines > 0).all(axis=(1, 2)) & (lengths > 0).all(axis=1)
    sides = np.linalg.norm(ahead, axis=-1) * np.linalg.norm(back, axis=-1)
    skewness = np.abs(np.einsum("nid,nid->ni", ahead, back)) / np.where(sides > 0, sides, 1)
    return np.where(is_flat & is_convex, skewness.max(axis=1, initial=0), np.inf)
