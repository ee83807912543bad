"""Winding: which side of a face is out, mended patch by patch."""

import numpy as np
import torch

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.distance import draw_points, triangle_areas, triangle_corners
from meshgpt_pytorch.mesh.sides import FaceSides, connected_labels, face_sides, merge_positions
from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["repair_winding"]

NUM_VIEWS = 48
NUM_PIXELS = 96
NUM_SAMPLES = 24_000

# seen so many times more often from behind, an open patch is turned; sheets lying on each other
# are seen from both sides alike, and stay as they are
TURNING_RATIO = 1.5


def repair_winding(mesh: Mesh) -> Mesh:
    """Turn faces so that neighbours agree which side is out, and that out is where one looks from.

    A patch is a set of faces that hang together by edges with exactly two faces. Inside a patch all
    faces are turned like most of them. Then a closed patch is turned as a whole if its volume is
    negative, and an open one if it is seen from behind more often than from the front, looking at
    the mesh from all around.

    Args:
        mesh: ``(nv, 3)`` vertices and ``(nf, 3 or 4)`` faces; equal positions count as one vertex.

    Returns:
        the mesh with the same vertices and the same faces in the same order, some of them reversed.

    Raises:
        ValueError: a mesh that is empty, not finite or badly indexed.
    """
    check_mesh(mesh)
    faces = mesh.faces.cpu().numpy()
    vertices = mesh.vertices.detach().cpu().double().numpy()
    sides = face_sides(merge_positions(vertices, faces))
    patches, turned = coherent_patches(sides, len(faces))

    corners = triangle_corners(mesh)
    triangles_per_face = len(corners) // len(faces)
    areas = triangle_areas(corners).reshape(len(faces), -1).sum(axis=1)
    # the fewest faces by area are turned
    turned_area = np.bincount(patches, areas * turned)
    turned ^= (turned_area * 2 > np.bincount(patches, areas))[patches]

    sign = np.where(turned, -1.0, 1.0).repeat(triangles_per_face)
    owners = patches.repeat(triangles_per_face)
    volumes = np.bincount(owners, sign * np.linalg.det(corners - corners.mean(axis=(0, 1))))
    inward = np.where(
        is_closed(sides, patches), volumes < 0, seen_from_behind(corners, owners, sign)
    )
    turned ^= inward[patches]

    repaired = np.where(turned[:, None], faces[:, ::-1], faces)
    return Mesh(mesh.vertices, torch.from_numpy(repaired).to(mesh.faces))


def coherent_patches(sides: FaceSides, num_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the patches, and mark the faces to turn so that each agrees with its patch.

    Returns:
        ``(nf,)`` patch of each face, ``(nf,)`` bool. On a one-sided surface some edges stay torn.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order

    first, second = sides.pairs
    ends = np.stack((sides.faces[first], sides.faces[second]), axis=1)
    # two faces agree if they run along their edge in opposite directions
    differ = sides.forward[first] == sides.forward[second]
    low, high = ends.min(axis=1), ends.max(axis=1)
    _, distinct = np.unique(low * num_faces + high, return_index=True)
    low, high, differ = low[distinct], high[distinct], differ[distinct]
    patches = connected_labels(num_faces, low, high)

    # one more node, tied to a face of each patch, reaches all of them in one search
    root = num_faces
    _, seeds = np.unique(patches, return_index=True)
    rows = np.concatenate((low, np.full(len(seeds), root)))
    columns = np.concatenate((high, seeds))
    weights = np.ones(len(rows), dtype=np.int8)
    graph = coo_array((weights, (rows, columns)), shape=(root + 1, root + 1)).tocsr()
    _, parents = breadth_first_order(graph, root, directed=False)
    parents[root] = root

    # faces differ from the root as they differ from their parent, and it from its own
    keys = low * (root + 1) + high
    child = np.arange(num_faces)
    wanted = np.minimum(child, parents[:-1]) * (root + 1) + np.maximum(child, parents[:-1])
    place = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
    turned = np.zeros(root + 1, dtype=bool)
    if len(keys) > 0:
        turned[:-1] = (keys[place] == wanted) & differ[place]
    while (parents != root).any():
        turned ^= turned[parents]
        parents = parents[parents]
    return patches, turned[:-1]


def is_closed(sides: FaceSides, patches: np.ndarray) -> np.ndarray:
    """Mark the patches whose every edge has two faces."""
    lonely = np.repeat(sides.counts != 2, sides.counts)
    closed = np.ones(patches.max() + 1, dtype=bool)
    closed[patches[sides.faces[lonely]]] = False
    return closed


def seen_from_behind(corners: np.ndarray, owners: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Mark the patches that are seen from behind, looking at points of them from all around.

    Args:
        corners: ``(n, 3, 3)`` triangles.
        owners: ``(n,)`` patch of each.
        sign: ``(n,)`` -1 where a triangle counts as turned.
    """
    points, triangle_ids = draw_points(corners, NUM_SAMPLES, np.random.default_rng(0))
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = (normals * sign[:, None])[triangle_ids]
    radius = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
    points = (points - points.mean(axis=0)) / (radius or 1)

    front, behind = np.zeros((2, owners.max() + 1))
    for across, up, towards in view_axes(NUM_VIEWS):
        plane = np.stack((points @ across, points @ up), axis=1)
        column, row = ((plane + 1) / 2 * NUM_PIXELS).astype(np.int64).clip(0, NUM_PIXELS - 1).T
        # the point nearest to the eye is written last, and stays
        nearest = np.full(NUM_PIXELS**2, -1)
        order = np.argsort(points @ towards)
        nearest[(row * NUM_PIXELS + column)[order]] = order
        seen = nearest[nearest >= 0]
        is_front = normals[seen] @ towards > 0
        patches = owners[triangle_ids[seen]]
        front += np.bincount(patches[is_front], minlength=len(front))
        behind += np.bincount(patches[~is_front], minlength=len(behind))
    marked: np.ndarray = behind > TURNING_RATIO * front
    return marked


def view_axes(num_views: int) -> np.ndarray:
    """Spread views over the sphere; return axes across, up and towards the eye, (n, 3, 3)."""
    index = np.arange(num_views) + 0.5
    height = 1 - 2 * index / num_views
    # the golden angle
    angle = index * np.pi * (3 - 5**0.5)
    width = np.sqrt(1 - height**2)
    towards = np.stack((width * np.cos(angle), height, width * np.sin(angle)), axis=1)
    across = np.stack((-np.sin(angle), np.zeros(num_views), np.cos(angle)), axis=1)
    return np.stack((across, np.cross(towards, across), towards), axis=1)
