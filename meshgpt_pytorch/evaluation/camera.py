"""Where a picture is taken from: world coordinates to pixels and depth."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Camera", "CameraFrame", "aim_camera", "camera_frame", "dot"]

CAMERA_MARGIN = 0.04


class CameraFrame(NamedTuple):
    """The camera's axes in world coordinates; right x up = towards the viewer."""

    right: NDArray[np.float64]
    up: NDArray[np.float64]
    towards_viewer: NDArray[np.float64]


class Camera(NamedTuple):
    """A camera that shows a box in the middle of a square image."""

    frame: CameraFrame
    centre: NDArray[np.float64]
    distance: float
    perspective: bool
    middle: NDArray[np.float64]
    scale: float
    size: int

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map world points to the image.

        Args:
            points: ``(n, 3)`` world coordinates, in front of the camera.

        Returns:
            ``(n, 3)``: column and row in pixels (the first pixel covers 0 to 1 in both), and
            nearness, which grows towards the viewer. Planes stay planes, so that nearness may
            be interpolated linearly in the image.
        """
        plane = project_to_plane(
            points, self.frame, self.centre, self.distance, perspective=self.perspective
        )
        column = self.size / 2 + (plane[:, 0] - self.middle[0]) * self.scale
        row = self.size / 2 - (plane[:, 1] - self.middle[1]) * self.scale
        return np.stack((column, row, plane[:, 2]), axis=1)

    def towards_viewer(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the direction, not normalised, from each point ``(n, 3)`` to the viewer."""
        if not self.perspective:
            return np.broadcast_to(self.frame.towards_viewer, points.shape)
        return self.centre + self.distance * self.frame.towards_viewer - points


def dot(points: NDArray[np.float64], axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the dot product of each point ``(..., 3)`` with an axis ``(3,)``.

    Not as a matrix product: BLAS may round a row by its place in the batch, and a picture must
    not depend on the numbering of the vertices.
    """
    return points[..., 0] * axis[0] + points[..., 1] * axis[1] + points[..., 2] * axis[2]


def camera_frame(azimuth: float, elevation: float) -> CameraFrame:
    """Build the axes of a camera that orbits the Y axis.

    Args:
        azimuth: degrees from the front (+Z), growing towards +X.
        elevation: degrees above the horizon.

    Returns:
        three orthogonal unit vectors, each ``(3,)``.
    """
    turn, lift = math.radians(azimuth), math.radians(elevation)
    towards_viewer = np.array(
        (math.sin(turn) * math.cos(lift), math.sin(lift), math.cos(turn) * math.cos(lift))
    )
    right = np.array((math.cos(turn), 0.0, -math.sin(turn)))
    return CameraFrame(right, np.cross(towards_viewer, right), towards_viewer)


def project_to_plane(
    points: NDArray[np.float64],
    frame: CameraFrame,
    centre: NDArray[np.float64],
    distance: float,
    *,
    perspective: bool,
) -> NDArray[np.float64]:
    """Map points ``(n, 3)`` to right, up and nearness ``(n, 3)``, in the camera's own units."""
    offsets = points - centre
    right, up = dot(offsets, frame.right), dot(offsets, frame.up)
    depth = distance - dot(offsets, frame.towards_viewer)
    if not perspective:
        return np.stack((right, up, -depth), axis=1)
    return np.stack((right / depth, up / depth, 1.0 / depth), axis=1)


def aim_camera(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    size: int,
    azimuth: float,
    elevation: float,
    field_of_view: float,
) -> Camera:
    """Place a camera so that a box fills the image but for a small margin.

    Args:
        low: ``(3,)`` smallest corner of the box.
        high: ``(3,)`` largest corner of the box.
        size: width and height of the image in pixels.
        azimuth: degrees from the front (+Z), growing towards +X.
        elevation: degrees above the horizon.
        field_of_view: degrees; 0 gives parallel (orthographic) projection.

    Returns:
        the camera.
    """
    frame = camera_frame(azimuth, elevation)
    centre = (low + high) / 2
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-6)
    perspective = field_of_view > 0
    distance = radius / math.sin(math.radians(field_of_view) / 2) if perspective else radius * 2
    choices = np.stack((low, high))
    corners = np.array(
        [
            (choices[x, 0], choices[y, 1], choices[z, 2])
            for x in (0, 1)
            for y in (0, 1)
            for z in (0, 1)
        ]
    )
    plane = project_to_plane(corners, frame, centre, distance, perspective=perspective)[:, :2]
    extent = max(float((plane.max(axis=0) - plane.min(axis=0)).max()), 1e-9)
    return Camera(
        frame=frame,
        centre=centre,
        distance=distance,
        perspective=perspective,
        middle=(plane.max(axis=0) + plane.min(axis=0)) / 2,
        scale=size * (1 - 2 * CAMERA_MARGIN) / extent,
        size=size,
    )
