"""What state a mesh is in: counted, nothing changed."""

from dataclasses import dataclass

import numpy as np

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.cleaning import has_area
from meshgpt_pytorch.mesh.sides import connected_labels, face_sides, merge_positions
from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["MeshReport", "inspect_mesh"]

# share of the longest extent below which a mesh has no thickness
FLATNESS = 1e-4


@dataclass(frozen=True)
class MeshReport:
    """What `inspect_mesh` counts. Vertices at the same position count as one.

    Attributes:
        num_faces: faces, degenerate and duplicate ones included.
        num_vertices: distinct positions that faces use.
        num_components: parts that share no vertex with each other.
        num_boundary_edges: edges with one face.
        num_nonmanifold_edges: edges with three faces or more.
        num_incoherent_edges: edges that two faces run along in the same direction.
        num_duplicate_faces: faces with the vertices of an earlier one, in any order.
        num_degenerate_faces: faces with fewer than 3 distinct vertices, or without area.
        is_flat: all vertices lie in a plane.
        size: extent along each axis.
    """

    num_faces: int
    num_vertices: int
    num_components: int
    num_boundary_edges: int
    num_nonmanifold_edges: int
    num_incoherent_edges: int
    num_duplicate_faces: int
    num_degenerate_faces: int
    is_flat: bool
    size: tuple[float, float, float]

    @property
    def is_coherent(self) -> bool:
        """Whether neighbouring faces agree which side is out."""
        return self.num_incoherent_edges == 0

    @property
    def is_watertight(self) -> bool:
        """Whether each edge has exactly two faces, which agree which side is out."""
        open_edges = self.num_boundary_edges + self.num_nonmanifold_edges
        return open_edges + self.num_incoherent_edges == 0


def inspect_mesh(mesh: Mesh) -> MeshReport:
    """Count what is in a mesh, and what may be wrong with it.

    All of it is ordinary in real meshes, which are assembled from parts; `MeshDataset` and the
    models take any of it, but for a mesh of degenerate faces alone.

    Args:
        mesh: ``(nv, 3)`` finite vertices and ``(nf, 3 or 4)`` faces.

    Returns:
        the counts.

    Raises:
        ValueError: a mesh that is empty, not finite or badly indexed.
    """
    check_mesh(mesh)
    positions = mesh.vertices.detach().cpu().double().numpy()
    original = mesh.faces.cpu().numpy()
    faces = merge_positions(positions, original)
    in_use, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(len(original), -1)
    used = positions[np.unique(original)]

    is_face = has_area(positions, original)
    is_face &= num_distinct(faces) > 2
    sides = face_sides(faces[is_face])
    first, second = sides.pairs
    corners = faces.reshape(-1)
    anchors = np.repeat(faces[:, 0], original.shape[1])
    labels = connected_labels(len(in_use), anchors, corners)
    distinct = np.unique(np.sort(faces, axis=1), axis=0)
    x, y, z = np.ptp(used, axis=0).tolist()
    return MeshReport(
        num_faces=len(faces),
        num_vertices=len(in_use),
        num_components=int(labels.max()) + 1,
        num_boundary_edges=int((sides.counts == 1).sum()),
        num_nonmanifold_edges=int((sides.counts > 2).sum()),
        num_incoherent_edges=int((sides.forward[first] == sides.forward[second]).sum()),
        num_duplicate_faces=len(faces) - len(distinct),
        num_degenerate_faces=int((~is_face).sum()),
        is_flat=lies_in_a_plane(used),
        size=(x, y, z),
    )


def num_distinct(faces: np.ndarray) -> np.ndarray:
    """Count the distinct vertices of each face."""
    in_order = np.sort(faces, axis=1)
    counts: np.ndarray = 1 + (in_order[:, 1:] != in_order[:, :-1]).sum(axis=1)
    return counts


def lies_in_a_plane(positions: np.ndarray) -> bool:
    """Tell whether points have no thickness in some direction."""
    centred = positions - positions.mean(axis=0)
    scale = np.abs(centred).max()
    if scale == 0:
        return True
    centred = centred / scale
    axes = np.linalg.eigh(centred.T @ centred)[1]
    extents = np.ptp(centred @ axes, axis=0)
    return bool(extents.min() <= FLATNESS * extents.max())
