"""A picture of a mesh, without a display or a graphics driver."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from meshgpt_pytorch.evaluation.camera import aim_camera
from meshgpt_pytorch.evaluation.rasterizer import rasterize
from meshgpt_pytorch.evaluation.shading import INK, Color, ink, shade, split_into_triangles
from meshgpt_pytorch.mesh import Mesh, check_mesh
from meshgpt_pytorch.typing import typecheck

__all__ = ["BLUE", "PAPER", "Bounds", "Color", "Image", "mesh_bounds", "render_mesh"]

Image: TypeAlias = NDArray[np.uint8]
Bounds: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]

BLUE: Color = (150, 190, 235)
PAPER: Color = (246, 247, 249)

SUPERSAMPLING = 3
LINE_WIDTH_PER_PIXEL = 1 / 260  # of the picture's side; never under one pixel


def mesh_bounds(mesh: Mesh) -> Bounds | None:
    """Return the smallest and the largest corner of the vertices in use, None without faces."""
    if mesh.faces.numel() == 0:
        return None
    points = mesh.vertices[mesh.faces.long().unique()].double().cpu().numpy()
    return points.min(axis=0), points.max(axis=0)


def shrink(picture: NDArray[np.float32]) -> Image:
    """Average blocks of samples into pixels; rows first, which are contiguous."""
    size = len(picture) // SUPERSAMPLING
    rows = picture.reshape(size, SUPERSAMPLING, -1).sum(axis=1)
    pixels = rows.reshape(size, size, SUPERSAMPLING, 3).sum(axis=2)
    return np.rint(pixels / SUPERSAMPLING**2).astype(np.uint8)


@typecheck
def render_mesh(
    mesh: Mesh,
    *,
    size: int = 256,
    azimuth: float | int = 35.0,
    elevation: float | int = 25.0,
    field_of_view: float | int = 24.0,
    bounds: Bounds | None = None,
    color: Color = BLUE,
    background: Color = PAPER,
    outline: bool = True,
    tint_back_faces: bool = False,
) -> Image:
    """Draw a mesh, flat shaded, with its edges, from a camera that orbits the Y axis.

    Args:
        mesh: triangles or quads (each drawn as two triangles); may be empty.
        size: width and height of the picture in pixels.
        azimuth: degrees from the front (the viewer at +Z), growing towards +X.
        elevation: degrees above the horizon.
        field_of_view: degrees; 0 gives parallel projection.
        bounds: smallest and largest corner, ``(3,)`` each, of the box that fills the picture;
            by default the cube from -1 to 1. It grows where the mesh leaves it.
        color: red, green, blue of the surface, 0 to 255.
        background: red, green, blue where there is no surface.
        outline: draw the edges: creases and borders dark, edges inside a plane light.
        tint_back_faces: draw in red what is seen from behind, which shows wrong winding.

    Returns:
        ``(size, size, 3)`` uint8, row 0 at the top.

    Raises:
        ValueError: size below 1, field of view outside [0, 120], a vertex that is not finite, a
            face index out of range or faces of another shape.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if not 0 <= field_of_view <= 120:
        raise ValueError(f"field_of_view must be 0 to 120 degrees, got {field_of_view}")
    if mesh.faces.numel() > 0:
        check_mesh(mesh)
    own_bounds = mesh_bounds(mesh)
    if own_bounds is None:
        return np.full((size, size, 3), background, dtype=np.uint8)
    low, high = bounds if bounds is not None else (np.full(3, -1.0), np.full(3, 1.0))
    samples = size * SUPERSAMPLING
    camera = aim_camera(
        np.minimum(low, own_bounds[0]),
        np.maximum(high, own_bounds[1]),
        size=samples,
        azimuth=azimuth,
        elevation=elevation,
        field_of_view=field_of_view,
    )
    triangles = split_into_triangles(mesh)
    corners = camera.project(triangles.corners.reshape(-1, 3)).reshape(-1, 3, 3)
    to_viewer = camera.towards_viewer(triangles.corners[:, 0])
    is_front = (triangles.normals * to_viewer).sum(axis=1) >= 0
    seen = rasterize(corners, is_front, samples)

    row, column = np.nonzero(seen >= 0)
    triangle = seen[row, column]
    color_of_triangle = shade(triangles.normals, is_front, camera.frame, color, tint_back_faces)
    inside = color_of_triangle[triangle]
    if outline:
        line_width = max(1.0, size * LINE_WIDTH_PER_PIXEL) * SUPERSAMPLING
        centres = np.stack((column, row), axis=1).astype(np.float64) + 0.5
        cover = ink(centres, triangle, corners, triangles.line_strength, line_width)
        inside += cover[:, None] * (np.array(INK) - inside)
    picture = np.full((samples, samples, 3), background, dtype=np.float32)
    picture[row, column] = inside
    return shrink(picture)
