"""What a pixel looks like: flat shading lit on both sides, and the lines of the mesh's edges."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from meshgpt_pytorch.evaluation.camera import CameraFrame, dot
from meshgpt_pytorch.mesh import Mesh

__all__ = ["INK", "Color", "Triangles", "ink", "shade", "split_into_triangles"]

Color: TypeAlias = tuple[int, int, int]

INK: Color = (30, 36, 48)
BACK_TINT: Color = (226, 96, 80)
FLAT_STRENGTH, CREASE_STRENGTH = 0.26, 0.74
CREASE_ANGLE = np.radians(55)  # and above: a full line

# directions in the camera's frame (right, up, towards the viewer), so that every view is lit alike
KEY_LIGHT = (-0.50, 0.56, 0.66)
FILL_LIGHT = (0.72, 0.10, 0.69)
AMBIENT, KEY, FILL = 0.50, 0.54, 0.15


class Triangles(NamedTuple):
    """What is drawn, in an order that does not depend on how the mesh is numbered."""

    corners: NDArray[np.float64]  # t 3 3, world
    normals: NDArray[np.float64]  # t 3, by the winding, unit length
    line_strength: NDArray[np.float64]  # t 3, of the edges 0-1, 1-2 and 2-0; 0 is not drawn


def line_strengths(
    triangles: NDArray[np.int64],
    polygons: NDArray[np.int64],
    normals: NDArray[np.float64],
    num_vertices: int,
) -> NDArray[np.float64]:
    """Choose how dark each edge of each triangle is drawn.

    Creases and borders are strong, edges inside a plane weak, diagonals of quads not drawn.

    Args:
        triangles: ``(t, 3)`` indices of points.
        polygons: ``(nf, nvf)`` the faces that were split into the triangles.
        normals: ``(t, 3)`` unit vectors.
        num_vertices: number of points.

    Returns:
        ``(t, 3)`` of the edges 0-1, 1-2 and 2-0, 0 (not drawn) to 1.
    """

    def edge_keys(faces: NDArray[np.int64]) -> NDArray[np.int64]:
        ends = np.sort(np.stack((faces, np.roll(faces, -1, axis=1)), axis=-1), axis=-1)
        return ends[..., 0] * num_vertices + ends[..., 1]

    keys = edge_keys(triangles)
    _, first, edge, uses = np.unique(
        keys.flatten(), return_index=True, return_inverse=True, return_counts=True
    )
    edge = edge.reshape(-1)
    beside = np.abs((normals[first[edge] // 3] * normals[np.arange(edge.size) // 3]).sum(axis=-1))
    cosine = np.where(uses > 1, 1.0, 0.0)
    np.minimum.at(cosine, edge, beside)
    sharpness = np.minimum(np.arccos(cosine) / CREASE_ANGLE, 1.0)
    strength = FLAT_STRENGTH + (CREASE_STRENGTH - FLAT_STRENGTH) * sharpness
    is_drawn = np.isin(keys, edge_keys(polygons))
    return np.where(is_drawn, strength[edge].reshape(keys.shape), 0.0)


def split_into_triangles(mesh: Mesh) -> Triangles:
    """Split faces into triangles; drop those with a corner twice; forget the mesh's numbering.

    Args:
        mesh: triangles or quads, finite, every index in range.

    Returns:
        the triangles, sorted by their place in space.
    """
    vertices = mesh.vertices.detach().double().cpu().numpy() + 0.0  # -0 and 0 are one point
    points, number = np.unique(vertices, axis=0, return_inverse=True)
    polygons = number.reshape(-1)[mesh.faces.detach().long().cpu().numpy()]
    triangles = polygons
    if polygons.shape[1] == 4:
        triangles = np.concatenate((polygons[:, (0, 1, 2)], polygons[:, (0, 2, 3)]))
    # the points are numbered by their place in space: sorting by them forgets the mesh's order
    ordered = np.sort(triangles, axis=1)
    is_whole = (ordered[:, 0] < ordered[:, 1]) & (ordered[:, 1] < ordered[:, 2])
    triangles, ordered = triangles[is_whole], ordered[is_whole]
    start = triangles.argmin(axis=1)[:, None]
    second = np.take_along_axis(triangles, (start + 1) % 3, axis=1)[:, 0]
    keeps_winding = second == ordered[:, 1]
    order = np.lexsort((keeps_winding, ordered[:, 2], ordered[:, 1], ordered[:, 0]))
    ordered, keeps_winding = ordered[order], keeps_winding[order]

    corners = points[ordered]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.sqrt((normals**2).sum(axis=1, keepdims=True))
    normals = normals / np.maximum(length, 1e-12) * np.where(keeps_winding, 1.0, -1.0)[:, None]
    return Triangles(corners, normals, line_strengths(ordered, polygons, normals, len(points)))


def shade(
    normals: NDArray[np.float64],
    is_front: NDArray[np.bool_],
    frame: CameraFrame,
    color: Color,
    tint: bool,
) -> NDArray[np.float64]:
    """Compute the colour of each triangle.

    Args:
        normals: ``(t, 3)`` unit vectors by the winding. A triangle turned away is lit as if it
            were turned to the viewer.
        is_front: ``(t,)`` True where a triangle is turned to the viewer.
        frame: axes of the camera, which carries the lights.
        color: red, green, blue of the surface, 0 to 255.
        tint: give triangles turned away the colour of a warning.

    Returns:
        ``(t, 3)`` red, green, blue, 0 to 255.
    """
    facing = normals * np.where(is_front, 1.0, -1.0)[:, None]
    in_camera = np.stack([dot(facing, axis) for axis in frame], axis=1)

    def lit(direction: tuple[float, float, float]) -> NDArray[np.float64]:
        light = np.array(direction)
        return np.maximum(dot(in_camera, light / np.linalg.norm(light)), 0.0)

    brightness = AMBIENT + KEY * lit(KEY_LIGHT) + FILL * lit(FILL_LIGHT)
    base = np.where(is_front[:, None] | (not tint), np.array(color), np.array(BACK_TINT))
    return np.clip(base * brightness[:, None], 0, 255)


def ink(
    centres: NDArray[np.float64],
    triangle: NDArray[np.int64],
    corners: NDArray[np.float64],
    strength: NDArray[np.float64],
    line_width: float,
) -> NDArray[np.float64]:
    """Compute how far each pixel is covered by lines.

    A pixel is inked by its distance to the edges of the triangle seen there, so that hidden
    lines stay hidden without a second depth test.

    Args:
        centres: ``(p, 2)`` column and row of the pixels' centres.
        triangle: ``(p,)`` the triangle seen there.
        corners: ``(t, 3, 3)`` column and row in pixels, and nearness.
        strength: ``(t, 3)`` of the edges 0-1, 1-2 and 2-0, 0 (none) to 1.
        line_width: in pixels; each of two triangles at an edge shows half of it.

    Returns:
        ``(p,)`` 0 (no line) to 1.
    """
    start = corners[..., :2]
    along = np.roll(start, -1, axis=1) - start
    length = np.maximum(np.sqrt((along**2).sum(axis=-1)), 1e-9)
    # distance to the line through an edge = |column * by_column + row * by_row + offset|
    by_column, by_row = along[..., 1] / length, -along[..., 0] / length
    offset = -(by_column * start[..., 0] + by_row * start[..., 1])
    darkness = np.zeros(len(triangle))
    for edge in range(3):
        distance = np.abs(
            by_column[triangle, edge] * centres[:, 0]
            + by_row[triangle, edge] * centres[:, 1]
            + offset[triangle, edge]
        )
        cover = np.clip(line_width / 2 + 0.5 - distance, 0.0, 1.0)
        np.maximum(darkness, cover * strength[triangle, edge], out=darkness)
    return darkness
