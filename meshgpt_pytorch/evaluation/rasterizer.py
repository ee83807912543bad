"""Which triangle is seen at each pixel: scanline conversion with a depth buffer, in NumPy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["rasterize"]

# One integer holds all that decides a pixel: nearness, then front before back, then the triangle.
# Surfaces in one plane then differ by rounding only below the last bit of nearness, so that they
# do not flicker from pixel to pixel.
NEARNESS_BITS = 30
TRIANGLE_BITS = 31


class Spans(NamedTuple):
    """The pixels of one image row between the two sides of one triangle."""

    triangle: NDArray[np.int64]
    row: NDArray[np.int64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    nearness_left: NDArray[np.float64]
    nearness_right: NDArray[np.float64]


def expand_ranges(
    starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for every member of ``range(start, start + count)`` its owner and its value."""
    owner = np.repeat(np.arange(len(starts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - np.repeat(first - starts, counts)


def cross_rows(
    top: NDArray[np.float64], bottom: NDArray[np.float64], height: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return column and nearness of edges at the height of image rows.

    Both triangles at an edge give its ends from top to bottom: the same rounding, no cracks.
    """
    drop = bottom[:, 1] - top[:, 1]
    share = np.clip((height - top[:, 1]) / np.where(drop > 0, drop, 1.0), 0.0, 1.0)
    column = top[:, 0] + share * (bottom[:, 0] - top[:, 0])
    return column, top[:, 2] + share * (bottom[:, 2] - top[:, 2])


def cut_into_spans(corners: NDArray[np.float64], size: int) -> Spans:
    """Cut triangles, ``(t, 3, 3)`` column, row and nearness, at the centres of the image rows."""
    order = np.lexsort((corners[..., 2], corners[..., 0], corners[..., 1]), axis=1)
    corners = np.take_along_axis(corners, order[..., None], axis=1)
    # a pixel belongs to a triangle that holds its centre, half a pixel down and to the right
    first = np.clip(np.ceil(corners[:, 0, 1] - 0.5), 0, size).astype(np.int64)
    end = np.clip(np.ceil(corners[:, 2, 1] - 0.5), 0, size).astype(np.int64)
    triangle, row = expand_ranges(first, np.maximum(end - first, 0))
    height = row.astype(np.float64) + 0.5
    top, middle, bottom = (corners[triangle, corner] for corner in range(3))
    below = (height >= middle[:, 1])[:, None]
    long_side, long_nearness = cross_rows(top, bottom, height)
    short_side, short_nearness = cross_rows(
        np.where(below, middle, top), np.where(below, bottom, middle), height
    )
    swapped = short_side < long_side
    return Spans(
        triangle,
        row,
        np.where(swapped, short_side, long_side),
        np.where(swapped, long_side, short_side),
        np.where(swapped, short_nearness, long_nearness),
        np.where(swapped, long_nearness, short_nearness),
    )


def rasterize(
    corners: NDArray[np.float64], is_front: NDArray[np.bool_], size: int
) -> NDArray[np.int64]:
    """Find the triangle seen at each pixel's centre.

    Args:
        corners: ``(t, 3, 3)`` column and row in pixels and nearness (greater is nearer) of the
            three corners of each triangle.
        is_front: ``(t,)`` True where a triangle faces the viewer. Of two triangles at one
            depth the front one is seen, then the later one.
        size: width and height of the image in pixels.

    Returns:
        ``(size, size)`` index of the triangle, -1 where there is none.
    """
    assert len(corners) < 2**TRIANGLE_BITS, "one integer has to hold the triangle's number"
    seen = np.full(size * size, -1, dtype=np.int64)
    if len(corners) == 0:
        return seen.reshape(size, size)
    spans = cut_into_spans(corners, size)
    first = np.clip(np.ceil(spans.left - 0.5), 0, size).astype(np.int64)
    end = np.clip(np.ceil(spans.right - 0.5), 0, size).astype(np.int64)
    span, column = expand_ranges(first, np.maximum(end - first, 0))

    width = spans.right - spans.left
    slope = (spans.nearness_right - spans.nearness_left) / np.where(width > 0, width, 1.0)
    offset = column + 0.5 - spans.left[span]
    nearness = spans.nearness_left[span] + offset * slope[span]

    low, high = corners[..., 2].min(), corners[..., 2].max()
    # the odd third keeps planes that face the camera squarely off the border of two steps
    steps = (nearness - low) * ((2**NEARNESS_BITS - 2) / max(high - low, 1e-4)) + 1 / 3
    steps = np.clip(steps, 0, 2**NEARNESS_BITS - 1)
    tie = (is_front.astype(np.int64) << TRIANGLE_BITS) | np.arange(len(corners))
    claim = (steps.astype(np.int64) << (TRIANGLE_BITS + 1)) | tie[spans.triangle[span]]
    np.maximum.at(seen, spans.row[span] * size + column, claim)
    triangle = np.where(seen >= 0, seen & (2**TRIANGLE_BITS - 1), -1)
    return triangle.reshape(size, size)
