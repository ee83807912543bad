"""Cleaning: what files hold, made into one tidy mesh of a known size."""

import numpy as np
import torch

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["clean_mesh", "drop_coincident_faces", "weld_vertices"]

# of the longest side: floats of files differ by less at what is one vertex
WELD_TOLERANCE = 1e-6


def clean_mesh(mesh: Mesh, *, weld_tolerance: float = WELD_TOLERANCE) -> Mesh:
    """Centre a mesh, scale it to [-1, 1], merge its vertices and drop what is no face of its own.

    Faces that are dropped: those with fewer than 3 distinct vertices, those without area, and all
    but the first of those with equal vertices and equal winding. Those left keep their order.

    Args:
        mesh: ``(nv, 3)`` finite vertices and ``(nf, 3 or 4)`` faces.
        weld_tolerance: vertices in one cell of a grid of this width are merged, in shares of the
            longest side; 0 for equal positions alone. Vertices that are closer, but have the
            border of two cells between them, stay apart.

    Returns:
        the mesh on the CPU, its longest side from -1 to 1, every vertex in use.

    Raises:
        ValueError: a mesh that is not finite or badly indexed, or one of which nothing is left, or
            a tolerance below 0.
    """
    if not weld_tolerance >= 0:
        raise ValueError(f"weld_tolerance must be 0 or more, got {weld_tolerance}")
    check_mesh(mesh)
    vertices = mesh.vertices.detach().cpu().double()
    in_use, faces = mesh.faces.cpu().long().unique(return_inverse=True)
    vertices = vertices[in_use]
    lowest, highest = vertices.amin(dim=0), vertices.amax(dim=0)
    longest_side = (highest - lowest).amax()
    if longest_side == 0:
        raise ValueError("all vertices are at one point; drop the mesh")
    # divided before it is multiplied: the tiniest side does not overflow the scale
    vertices = (vertices - (lowest + highest) / 2) / longest_side * 2

    tidy = weld_vertices(Mesh(vertices.float(), faces), 2 * weld_tolerance)
    if len(tidy.faces) == 0:
        raise ValueError(f"none of the {len(faces)} faces has an area; drop the mesh")
    return tidy


def weld_vertices(mesh: Mesh, distance: float) -> Mesh:
    """Merge vertices that fall into one cell of a grid, and drop the faces that it makes useless.

    Args:
        mesh: a mesh on the CPU.
        distance: width of a cell; 0 merges equal positions alone.

    Returns:
        the mesh, perhaps without faces. A merged vertex lies where the first of its cell lay.
    """
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    # floats: integers overflow where cells are tiny. + 0.0 makes one of the two zeros
    positions = vertices.astype(np.float64)
    cells = (np.round(positions / distance) if distance > 0 else positions) + 0.0
    _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    faces = first[inverse.reshape(-1)][faces]
    faces = faces[has_area(vertices, faces)]
    faces = faces[first_of_each(faces)]
    in_use, faces = np.unique(faces, return_inverse=True)
    return Mesh(
        torch.from_numpy(vertices[in_use]),
        torch.from_numpy(faces.reshape(-1, mesh.faces.shape[1]).astype(np.int64)),
    )


def drop_coincident_faces(mesh: Mesh) -> Mesh:
    """Keep the first of all faces with equal vertices, whatever their winding.

    Two faces that lie on each other with opposite windings are one sheet that is seen from both
    sides; edge collapses can do little with it, because each of its edges has four faces.
    """
    in_order = np.sort(mesh.faces.numpy(), axis=1)
    first = np.sort(np.unique(in_order, axis=0, return_index=True)[1])
    return Mesh(mesh.vertices, mesh.faces[torch.from_numpy(first)])


def has_area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mark faces with at least 3 distinct vertices that are not on one line."""
    corners = vertices.astype(np.float64)[faces]
    # half the cross product of the diagonals for a quad, of two sides for a triangle
    if faces.shape[1] == 4:
        first, second = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    else:
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    in_order = np.sort(faces, axis=1)
    num_distinct = 1 + (in_order[:, 1:] != in_order[:, :-1]).sum(axis=1)
    return (num_distinct > 2) & (np.cross(first, second) != 0).any(axis=1)


def first_of_each(faces: np.ndarray) -> np.ndarray:
    """List the first of all faces with equal vertices and winding, in order."""
    shift = faces.argmin(axis=1)[:, None] + np.arange(faces.shape[1])
    rotated = np.take_along_axis(faces, shift % faces.shape[1], axis=1)
    return np.sort(np.unique(rotated, axis=0, return_index=True)[1])
