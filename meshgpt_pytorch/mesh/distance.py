"""How far two surfaces are from each other: Hausdorff and Chamfer distance."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["SurfaceDistance", "sample_surface", "surface_distance"]

# faces of this many nearest samples are measured exactly, for each point
NUM_CANDIDATES = 10


class SurfaceDistance(NamedTuple):
    """Two-sided distances between surfaces, in the unit of their vertices.

    Attributes:
        hausdorff: the farthest that a point of either surface is from the other.
        chamfer: the mean distance from a point to the other surface; mean of both directions.
    """

    hausdorff: float
    chamfer: float


class SurfacePoints(NamedTuple):
    """Points of a surface and the triangles that they lie on."""

    points: np.ndarray
    face_ids: np.ndarray


def sample_surface(mesh: Mesh, num_points: int, *, seed: int = 0) -> Float[Tensor, "n 3"]:
    """Draw points from the surface of a mesh, uniformly by area.

    Args:
        mesh: a mesh with faces; quads are split.
        num_points: how many.
        seed: the same seed gives the same points.

    Returns:
        float32 ``(num_points, 3)`` positions.

    Raises:
        ValueError: a mesh that is empty, not finite or badly indexed.
    """
    check_mesh(mesh)
    points = draw_points(triangle_corners(mesh), num_points, np.random.default_rng(seed)).points
    return torch.from_numpy(points).float()


def surface_distance(
    first: Mesh, second: Mesh, *, num_points: int = 12_000, seed: int = 0
) -> SurfaceDistance:
    """Measure the two-sided Hausdorff and the mean Chamfer distance of two surfaces.

    Points of one surface are measured to triangles of the other, not to points of it. Which
    triangles are near is guessed from denser points of them, so that among many slivers the nearest
    can be missed: distances are then too large by a little, and equal surfaces not quite at 0.
    Points are drawn by area, so what has next to none, such as a stray
    sliver, hardly counts.

    Args:
        first: a mesh with faces; quads are split.
        second: another.
        num_points: points to measure on each surface.
        seed: the same seed gives the same points.

    Returns:
        the distances. The farthest point need not be drawn, which makes Hausdorff smaller.

    Raises:
        ValueError: a mesh that is empty, not finite or badly indexed.
    """
    check_mesh(first)
    check_mesh(second)
    corners = triangle_corners(first), triangle_corners(second)
    generator = np.random.default_rng(seed)
    there, back = (
        distances_to_surface(draw_points(surface, num_points, generator).points, other)
        for surface, other in (corners, corners[::-1])
    )
    hausdorff = max(there.max(), back.max())
    return SurfaceDistance(float(hausdorff), float(there.mean() + back.mean()) / 2)


def triangle_corners(mesh: Mesh) -> np.ndarray:
    """Return the corners of the triangles, (nf, 3, 3); a quad gives two."""
    vertices = mesh.vertices.detach().cpu().double().numpy()
    faces = mesh.faces.cpu().numpy()
    if faces.shape[1] == 4:
        faces = faces[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)
    return vertices[faces]


def triangle_areas(corners: np.ndarray) -> np.ndarray:
    """Return the area of each triangle."""
    sides = corners[:, 1:] - corners[:, :1]
    return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1) / 2


def draw_points(
    corners: np.ndarray, num_points: int, generator: np.random.Generator
) -> SurfacePoints:
    """Draw points uniformly by area, in strata of equal area."""
    cumulative = np.cumsum(triangle_areas(corners))
    if cumulative[-1] > 0:
        strata = (np.arange(num_points) + generator.random(num_points)) / num_points
        face_ids = np.searchsorted(cumulative, strata * cumulative[-1], side="right")
        face_ids = np.minimum(face_ids, len(corners) - 1)
    else:
        face_ids = generator.integers(len(corners), size=num_points)

    # uniform in the square, folded along its diagonal into the triangle
    weights = generator.random((num_points, 2))
    outside = weights.sum(axis=1) > 1
    weights[outside] = 1 - weights[outside]
    origin, sides = corners[face_ids, 0], corners[face_ids, 1:] - corners[face_ids, :1]
    return SurfacePoints(origin + np.einsum("ns,nsd->nd", weights, sides), face_ids)


def distances_to_surface(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the nearest of some triangles that seem near it."""
    # on first use: no other function of the package needs it
    from scipy.spatial import cKDTree

    drawn = draw_points(corners, 3 * len(points), np.random.default_rng(0))
    # every triangle is represented, however small
    known = np.concatenate((drawn.points, corners.mean(axis=1)))
    face_ids = np.concatenate((drawn.face_ids, np.arange(len(corners))))
    _, nearest = cKDTree(known).query(points, k=min(NUM_CANDIDATES, len(known)))
    candidates = face_ids[nearest.reshape(len(points), -1)]
    distances = [squared_distances(points, corners[column]) for column in candidates.T]
    return np.sqrt(np.min(distances, axis=0))


def squared_distances(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the squared distance of each point (n, 3) to its triangle (n, 3, 3)."""
    origin = corners[:, 0]
    first, second = corners[:, 1] - origin, corners[:, 2] - origin
    offset = points - origin
    first_sq, second_sq, both = dot(first, first), dot(second, second), dot(first, second)
    on_first, on_second = dot(offset, first), dot(offset, second)
    determinant = first_sq * second_sq - both**2

    # barycentric coordinates of the foot of the perpendicular
    safe = np.where(determinant > 0, determinant, 1)
    u = (second_sq * on_first - both * on_second) / safe
    v = (first_sq * on_second - both * on_first) / safe
    inside = (determinant > 0) & (u >= 0) & (v >= 0) & (u + v <= 1)
    foot = offset - u[:, None] * first - v[:, None] * second
    to_sides = [
        squared_segment_distances(points, corners[:, start], corners[:, start - 2])
        for start in range(3)
    ]
    return np.where(inside, dot(foot, foot), np.min(to_sides, axis=0))


def squared_segment_distances(
    points: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return the squared distance of each point to its segment."""
    along, offset = ends - starts, points - starts
    length_sq = dot(along, along)
    share = np.clip(dot(offset, along) / np.where(length_sq > 0, length_sq, 1), 0, 1)
    rest = offset - share[:, None] * along
    return dot(rest, rest)


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the dot product of each pair of rows."""
    return np.einsum("nd,nd->n", first, second)
