"""Near duplicates: meshes whose surfaces run through the same cells of a coarse grid."""

from collections.abc import Sequence

import numpy as np

from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.mesh.distance import sample_surface
from meshgpt_pytorch.mesh.sides import connected_labels

__all__ = ["near_duplicates", "occupancy"]

CELLS = 24
NUM_POINTS = 40_000
# meshes compared at a time, with all others
BLOCK = 512


def occupancy(mesh: Mesh) -> np.ndarray:
    """Mark the cells of a 24 x 24 x 24 grid over [-1, 1] that a surface runs through.

    Args:
        mesh: in the [-1, 1] cube.

    Returns:
        the marks as bits, uint8 ``(1728,)``.
    """
    points = sample_surface(mesh, NUM_POINTS).numpy()
    cells = np.floor((points + 1) / 2 * CELLS).astype(np.int64).clip(0, CELLS - 1)
    marks = np.zeros((CELLS, CELLS, CELLS), dtype=bool)
    marks[tuple(cells.T)] = True
    return np.packbits(marks)


def near_duplicates(bits: Sequence[np.ndarray], min_overlap: float) -> list[list[int]]:
    """Group meshes that look alike: those whose marked cells overlap, and those alike to them.

    Args:
        bits: `occupancy` of each mesh.
        min_overlap: cells that both mark, as a share of the cells that either marks, above which
            two meshes look alike.

    Returns:
        the groups of two or more, each sorted.
    """
    if len(bits) < 2:
        return []
    packed = np.stack(bits)
    counts = np.array([int(np.unpackbits(row).sum()) for row in packed])
    # sorted by count: a mesh can only overlap so much with those of a similar count
    order = np.argsort(counts, kind="stable")
    packed, counts = packed[order], counts[order]
    pairs = [
        (first + start, second + start)
        for start in range(0, len(packed), BLOCK)
        for first, second in alike_in_block(packed[start:], counts[start:], min_overlap)
    ]
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    labels = connected_labels(len(packed), *ends.T)
    groups: dict[int, list[int]] = {}
    for position, label in zip(order.tolist(), labels.tolist(), strict=True):
        groups.setdefault(label, []).append(position)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def alike_in_block(
    packed: np.ndarray, counts: np.ndarray, min_overlap: float
) -> list[tuple[int, int]]:
    """Compare the first block of meshes with each other and with all behind it."""
    block = np.unpackbits(packed[:BLOCK], axis=1).astype(np.float32)
    pairs = []
    for start in range(0, len(packed), BLOCK):
        if counts[start] * min_overlap > counts[: len(block)].max():
            break
        other = np.unpackbits(packed[start : start + BLOCK], axis=1).astype(np.float32)
        both = block @ other.T
        either = counts[: len(block), None] + counts[None, start : start + BLOCK] - both
        first, second = np.nonzero(both > min_overlap * either)
        second = second + start
        is_pair = first < second
        pairs += list(zip(first[is_pair].tolist(), second[is_pair].tolist(), strict=True))
    return pairs
