"""The sides of faces, grouped by the edges that they lie on."""

from typing import NamedTuple

import numpy as np

__all__ = ["FaceSides", "connected_labels", "face_sides", "merge_positions"]


class FaceSides(NamedTuple):
    """Each side of each face, sides of one edge next to each other.

    Attributes:
        faces: ``(s,)`` the face that a side belongs to.
        forward: ``(s,)`` whether it runs from the vertex of lower index to the other.
        starts: ``(e,)`` where the sides of each edge start.
        counts: ``(e,)`` how many sides an edge has.
    """

    faces: np.ndarray
    forward: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The two sides of each edge that has exactly two."""
        first = self.starts[self.counts == 2]
        return first, first + 1


def face_sides(faces: np.ndarray) -> FaceSides:
    """Group the sides of faces (nf, nvf) by edge; a side between equal vertices is left out."""
    num_sides = faces.shape[1]
    start = faces.reshape(-1)
    end = np.roll(faces, -1, axis=1).reshape(-1)
    owners = np.repeat(np.arange(len(faces)), num_sides)
    distinct = start != end
    start, end, owners = start[distinct], end[distinct], owners[distinct]

    low, high = np.minimum(start, end), np.maximum(start, end)
    keys = low * (int(faces.max(initial=0)) + 1) + high
    order = np.argsort(keys, kind="stable")
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    return FaceSides(owners[order], (start < end)[order], starts, counts)


def connected_labels(num_nodes: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the connected parts of a graph from 0; return the number of each node's part."""
    # on first use, as everywhere: the import takes longer than most meshes
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(first), dtype=np.int8)
    graph = coo_array((ones, (first, second)), shape=(num_nodes, num_nodes))
    labels: np.ndarray = connected_components(graph.tocsr(), directed=False)[1]
    return labels


def merge_positions(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the faces with one index for all vertices at exactly the same position."""
    # + 0.0 makes one of the two zeros
    inverse = np.unique(vertices + 0.0, axis=0, return_inverse=True)[1].reshape(-1)
    merged: np.ndarray = inverse[faces]
    return merged
