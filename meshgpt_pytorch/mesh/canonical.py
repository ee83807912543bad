"""The canonical form of a mesh: on the grid, clean, and in one order; and back from faces."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from meshgpt_pytorch.mesh.checks import check_mesh
from meshgpt_pytorch.mesh.grid import discretize, undiscretize
from meshgpt_pytorch.mesh.types import Mesh, VanishedMeshError
from meshgpt_pytorch.typing import typecheck

__all__ = ["canonicalize_mesh", "faces_to_mesh"]

UP_AXIS = 1

# of a bin: files and other ranges round the bin centres, but never by this much
GRID_TOLERANCE = 1e-3


@typecheck
def canonicalize_mesh(
    mesh: Mesh,
    *,
    num_discrete_coors: int = 128,
    coor_continuous_range: tuple[float | int, float | int] = (-1.0, 1.0),
    up_axis: int = UP_AXIS,
) -> Mesh:
    """Bring a mesh into the form that the models learn: the order of the MeshGPT paper, on a grid.

    Centre the mesh, scale its longest side to the range, snap vertices to bin centres, merge
    equal ones; drop degenerate faces (a triangle that repeats a vertex, a quad with fewer than 3
    distinct ones), duplicate faces and unreferenced vertices; sort vertices by height, then by the
    two axes after it; start each face at its lowest vertex, which keeps its winding; sort the faces
    by their vertices. Faces with opposite windings, as in thin walls, both stay.

    A mesh whose vertices all are bin centres of the range counts as centred and scaled already, so
    a second call, also after writing and reading a file, changes nothing.

    Args:
        mesh: ``(nv, 3)`` finite vertices and ``(nf, 3 or 4)`` faces.
        num_discrete_coors: number of bins that an axis has.
        coor_continuous_range: (low, high) that the longest side fills.
        up_axis: 0, 1 or 2, the axis of height: 1 for glTF and most furniture, 2 for Blender.

    Returns:
        the canonical mesh, on the device of the given one. It does not depend on the order of its
        vertices and faces, nor on the vertex at which a face starts.

    Raises:
        ValueError: no faces, NaN or infinite vertices, or an index out of range.
        VanishedMeshError: no face is left; a ValueError too.
    """
    if up_axis not in (0, 1, 2):
        raise ValueError(f"up_axis must be 0, 1 or 2, got {up_axis}")
    check_mesh(mesh)

    vertices = mesh.vertices.detach().cpu().double()
    faces = mesh.faces.cpu().long()
    in_use, faces = faces.unique(return_inverse=True)
    bins = normalized_bins(vertices[in_use], num_discrete_coors, coor_continuous_range)

    keys = pack_bins(bins, num_discrete_coors, up_axis)[faces.numpy()]
    keys = keys[~is_degenerate(keys)]
    if len(keys) == 0:
        raise VanishedMeshError(
            f"all {len(faces)} faces are degenerate on a grid of {num_discrete_coors} bins: each "
            "lies within a bin or on a line; drop the mesh, or raise num_discrete_coors"
        )

    vertex_keys, face_ids = np.unique(keys, return_inverse=True)
    ordered = np.unique(start_at_lowest(face_ids.reshape(keys.shape)), axis=0)
    bins = unpack_bins(vertex_keys, num_discrete_coors, up_axis)
    return mesh_on_grid(
        bins, ordered, num_discrete_coors, coor_continuous_range, mesh.vertices.device
    )


@typecheck
def faces_to_mesh(
    face_coords: Float[Tensor, "nf nvf 3"],
    face_mask: Bool[Tensor, "nf"] | None = None,
    *,
    codes: Int[Tensor, "n q"] | None = None,
    num_discrete_coors: int = 128,
    coor_continuous_range: tuple[float | int, float | int] = (-1.0, 1.0),
) -> Mesh:
    """Join faces given by coordinates to an indexed mesh, merging vertices of the same bin.

    Args:
        face_coords: ``(nf, 3 or 4, 3)``, as `MeshAutoencoder.decode_from_codes_to_faces` and
            `MeshTransformer.generate` give them for one mesh. Faces that hold nan are padding.
        face_mask: ``(nf,)``, False for padding.
        codes: ``(nf x 3 or 4, q)``, what the faces were decoded from. Corners with equal codes are
            one vertex, at the mean of their coordinates, wherever each was decoded to.
        num_discrete_coors: number of bins that an axis has.
        coor_continuous_range: (low, high) that the bins divide.

    Returns:
        the mesh on bin centres, without padded and degenerate faces, which keep their order and
        winding. It is empty, with 0 vertices and faces, if no face is left.

    Raises:
        ValueError: codes that are not one row for each corner.
    """
    is_face = face_coords.isfinite().flatten(1).all(dim=1)
    if face_mask is not None:
        is_face &= face_mask
    coords = face_coords[is_face].detach()
    if codes is not None:
        by_face = corner_codes(codes.to(coords.device), face_coords.shape[:2])
        coords = move_to_means(coords, by_face[is_face])
    bins = discretize(
        coords,
        continuous_range=coor_continuous_range,
        num_discrete=num_discrete_coors,
    )
    keys = pack_bins(bins, num_discrete_coors, UP_AXIS)
    keys = keys[~is_degenerate(keys)]

    vertex_keys, face_ids = np.unique(keys, return_inverse=True)
    bins = unpack_bins(vertex_keys, num_discrete_coors, UP_AXIS)
    return mesh_on_grid(
        bins,
        face_ids.reshape(keys.shape),
        num_discrete_coors,
        coor_continuous_range,
        face_coords.device,
    )


def corner_codes(codes: Int[Tensor, "n q"], shape: Sequence[int]) -> Int[Tensor, "nf nvf q"]:
    """Split the codes of a mesh into faces."""
    num_faces, nvf = shape
    if len(codes) != num_faces * nvf:
        raise ValueError(
            f"codes must have a row for each corner of {num_faces} faces of {nvf} vertices, "
            f"{num_faces * nvf}, got {len(codes)}; pass those that the faces were decoded from"
        )
    return rearrange(codes, "(nf nvf) q -> nf nvf q", nvf=nvf)


def move_to_means(
    coords: Float[Tensor, "nf nvf 3"], codes: Int[Tensor, "nf nvf q"]
) -> Float[Tensor, "nf nvf 3"]:
    """Move the corners that have equal codes to the mean of their coordinates."""
    corners = rearrange(coords, "nf nvf c -> (nf nvf) c").double()
    _, vertex, counts = rearrange(codes, "nf nvf q -> (nf nvf) q").unique(
        dim=0, return_inverse=True, return_counts=True
    )
    sums = corners.new_zeros(len(counts), 3).index_add(0, vertex, corners)
    means = sums / rearrange(counts, "nv -> nv 1")
    return rearrange(means[vertex], "(nf nvf) c -> nf nvf c", nvf=coords.shape[1]).to(coords.dtype)


def normalized_bins(
    vertices: Float[Tensor, "nv 3"], num_discrete: int, continuous_range: tuple[float, float]
) -> Tensor:
    """Centre and scale vertices to the range, unless they are bin centres; return their bins."""
    low, high = continuous_range

    def to_bins(values: Tensor) -> Tensor:
        return discretize(values, continuous_range=continuous_range, num_discrete=num_discrete)

    bins = to_bins(vertices)
    centres = undiscretize(bins, continuous_range=continuous_range, num_discrete=num_discrete)
    bin_width = (high - low) / num_discrete
    if ((vertices - centres).abs() <= GRID_TOLERANCE * bin_width).all():
        return bins

    lowest, highest = vertices.amin(dim=0), vertices.amax(dim=0)
    longest_side = (highest - lowest).amax()
    if longest_side == 0:
        return torch.zeros_like(bins)
    # divided before it is multiplied: the tiniest side does not overflow the scale
    normalized = (vertices - (lowest + highest) / 2) / longest_side * (high - low)
    return to_bins(normalized + (low + high) / 2)


def pack_bins(bins: Tensor, num_discrete: int, up_axis: int) -> np.ndarray:
    """Join three bins (..., 3) to one number that sorts by height, then the axes after it."""
    first, second, third = (bins.cpu().numpy()[..., (up_axis + i) % 3] for i in range(3))
    return (first * num_discrete + second) * num_discrete + third


def unpack_bins(keys: np.ndarray, num_discrete: int, up_axis: int) -> Tensor:
    """Invert `pack_bins`."""
    first, rest = np.divmod(keys, num_discrete**2)
    ordered = np.stack((first, *np.divmod(rest, num_discrete)), axis=-1)
    return torch.from_numpy(np.roll(ordered, up_axis, axis=-1))


def is_degenerate(faces: np.ndarray) -> np.ndarray:
    """Mark faces (nf, nvf) with fewer than 3 distinct vertices."""
    in_order = np.sort(faces, axis=1)
    return (in_order[:, 1:] != in_order[:, :-1]).sum(axis=1) < 2


def start_at_lowest(faces: np.ndarray) -> np.ndarray:
    """Rotate each face to the least of its rotations, which starts at its lowest vertex."""
    least = faces
    for shift in range(1, faces.shape[1]):
        rotated = np.roll(faces, shift, axis=1)
        # a quad may repeat its lowest vertex: the first difference then decides
        position = (rotated != least).argmax(axis=1)[:, None]
        is_less = np.take_along_axis(rotated, position, 1) < np.take_along_axis(least, position, 1)
        least = np.where(is_less, rotated, least)
    return least


def mesh_on_grid(
    bins: Tensor,
    faces: np.ndarray,
    num_discrete: int,
    continuous_range: tuple[float, float],
    device: torch.device,
) -> Mesh:
    """Put vertices at the centres of their bins."""
    vertices = undiscretize(bins, continuous_range=continuous_range, num_discrete=num_discrete)
    return Mesh(vertices.to(device), torch.from_numpy(faces).to(device))
