"""Checks of a batch of meshes: what was wanted, what came, and the remedy."""

import warnings

import torch
from torch import Tensor

from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["check_mesh", "check_mesh_batch", "check_mesh_shapes", "holds"]


def check_mesh(mesh: Mesh) -> None:
    """Check one mesh on its own, without padding: it has faces, finite vertices and good indices.

    Args:
        mesh: ``(nv, 3)`` vertices and ``(nf, 3 or 4)`` faces.

    Raises:
        ValueError: the message names the first wrong entry and the remedy.
    """
    vertices, faces = mesh
    if faces.ndim != 2 or faces.shape[1] not in (3, 4):
        raise ValueError(f"faces must be (nf, 3) or (nf, 4), got shape {(*faces.shape,)}")
    if len(faces) == 0:
        raise ValueError("the mesh has no faces; leave it out")
    finite = vertices.isfinite().all(dim=-1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise ValueError(
            f"vertices must be finite, got {vertices[index].tolist()} at vertices[{index}]; "
            "repair the mesh or leave it out"
        )
    check_integers(faces)
    # int64: torch has no minimum of unsigned integers
    low, high = (int(end) for end in faces.long().aminmax())
    if low < 0 or high >= len(vertices):
        remedy = (
            "remove padding with faces[(faces >= 0).all(dim=-1)]"
            if low < 0
            else f"they refer to vertices that the mesh lacks, which has {len(vertices)}"
        )
        raise ValueError(
            f"faces must hold indices from 0 to {len(vertices) - 1}, got {low} to {high}; {remedy}"
        )


def check_integers(faces: Tensor) -> None:
    """Check that faces can be indices."""
    if faces.is_floating_point() or faces.dtype == torch.bool:
        raise ValueError(f"faces must be integers, got {faces.dtype}; convert with faces.long()")


def check_mesh_shapes(vertices: Tensor, faces: Tensor, *, num_vertices_per_face: int) -> None:
    """Check that two tensors are the vertices and faces of a batch of meshes.

    Args:
        vertices: should be ``(b, nv, 3)``.
        faces: should be ``(b, nf, num_vertices_per_face)``.
        num_vertices_per_face: 3 for triangles, 4 for quads.

    Raises:
        ValueError: not tensors, or of another dtype or shape; the message names the remedy.
    """
    for name, tensor in (("vertices", vertices), ("faces", faces)):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} must be a tensor, got a {type(tensor).__name__}; convert with "
                f"torch.as_tensor({name})"
            )
    vertices_shape, faces_shape = (*vertices.shape,), (*faces.shape,)
    if faces.is_floating_point() and not vertices.is_floating_point():
        raise ValueError(
            f"vertices must be floats and faces integers, got {vertices.dtype} and {faces.dtype}; "
            "the two arguments look swapped"
        )
    if not vertices.is_floating_point():
        raise ValueError(
            f"vertices must be floats, got {vertices.dtype}; convert with vertices.float()"
        )
    for name, tensor, axes in (("vertices", vertices, "nv, 3"), ("faces", faces, "nf, nvf")):
        if tensor.ndim != 3:
            remedy = f"; add a batch axis with {name}[None]" if tensor.ndim == 2 else ""
            raise ValueError(
                f"{name} must be batched, (b, {axes}), got shape {(*tensor.shape,)}{remedy}"
            )
    if vertices_shape[-1] != 3:
        raise ValueError(f"vertices must have 3 coordinates each, got shape {vertices_shape}")
    if vertices_shape[0] == 0:
        raise ValueError(
            f"a batch must hold at least one mesh, got vertices of shape {vertices_shape}"
        )
    if vertices_shape[0] != faces_shape[0]:
        raise ValueError(
            "vertices and faces must have the same batch size, "
            f"got shapes {vertices_shape} and {faces_shape}"
        )
    if faces_shape[-1] != num_vertices_per_face:
        remedies = {3: "; pass quads=False for triangles", 4: "; pass quads=True for quads"}
        raise ValueError(
            f"faces must have {num_vertices_per_face} vertices each "
            f"(quads={num_vertices_per_face == 4}), got shape {faces_shape}"
            f"{remedies.get(faces_shape[-1], '')}"
        )


def check_mesh_batch(
    vertices: Tensor,
    faces: Tensor,
    face_edges: Tensor | None = None,
    *,
    pad_id: int = -1,
    coor_continuous_range: tuple[float, float] | None = None,
) -> None:
    """Check the values of a batch of meshes: finite vertices, indices that exist, whole faces.

    Tensors on an accelerator are checked by it, without waiting: a fault then ends the process with
    a device-side assertion, and vertices outside the range are not reported.

    Args:
        vertices: ``(b, nv, 3)`` floats.
        faces: ``(b, nf, nvf)`` integers; a face is padding where all its entries are ``pad_id``.
        face_edges: ``(b, e, 2)`` pairs of face indices, padded with ``pad_id``.
        pad_id: marks padding.
        coor_continuous_range: warn about vertices of faces that lie outside (low, high).

    Raises:
        ValueError: the message names the batch row and the first wrong entry.

    Warns:
        UserWarning: vertices outside the range, which discretising clamps to its ends.
    """
    check_integers(faces)
    if vertices.shape[1] == 0 or faces.shape[1] == 0:
        raise ValueError(
            f"the mesh is empty: got {vertices.shape[1]} vertices and {faces.shape[1]} faces; "
            "every mesh needs at least one face"
        )

    for name, faults in find_faults(vertices, faces, face_edges, pad_id).items():
        if not holds(~faults.any(), f"bad mesh batch: {name}"):
            row, *where = faults.nonzero()[0].tolist()
            raise ValueError(describe_fault(name, row, where, vertices, faces, face_edges, pad_id))
    if coor_continuous_range is not None and vertices.device.type == "cpu":
        warn_of_clamping(vertices, faces, pad_id, coor_continuous_range)


def find_faults(
    vertices: Tensor, faces: Tensor, face_edges: Tensor | None, pad_id: int
) -> dict[str, Tensor]:
    """Mark each wrong entry, by kind of fault; the first axis of each mask is the batch."""
    is_pad = faces == pad_id
    face_is_pad = is_pad.all(dim=-1)
    verdicts = {
        "vertices must be finite": ~vertices.isfinite(),
        "vertex index out of range": ~is_pad & ((faces < 0) | (faces >= vertices.shape[1])),
        "partially padded face": is_pad.any(dim=-1) & ~face_is_pad,
        "no faces in a row": face_is_pad.all(dim=-1),
    }
    if face_edges is not None and face_edges.shape[1] > 0:
        num_faces = faces.shape[1]
        edge_is_pad = (face_edges == pad_id).all(dim=-1, keepdim=True)
        outside = (face_edges < 0) | (face_edges >= num_faces)
        ends = face_edges.long().clamp(0, num_faces - 1).flatten(1)
        into_padding = face_is_pad.gather(1, ends).view_as(face_edges)
        verdicts["face edge out of range"] = ~edge_is_pad & outside
        verdicts["face edge into a padded face"] = ~edge_is_pad & into_padding
    return verdicts


def holds(condition: Tensor, message: str) -> bool:
    """Tell whether a condition holds, or have an accelerator assert it, which costs no wait.

    Args:
        condition: a single bool.
        message: what a device-side assertion says.

    Returns:
        the condition, on the CPU; True on an accelerator, which itself fails where it is not.
    """
    if condition.device.type == "cpu":
        return bool(condition)
    torch._assert_async(condition, message)
    return True


def describe_fault(
    name: str,
    row: int,
    where: list[int],
    vertices: Tensor,
    faces: Tensor,
    face_edges: Tensor | None,
    pad_id: int,
) -> str:
    """Compose the message for the first wrong entry of one kind."""
    if name == "vertices must be finite":
        vertex = vertices[row, where[0]].tolist()
        return (
            f"vertices must be finite, got {vertex} at vertices[{row}, {where[0]}]; "
            "drop that mesh, or repair it before batching"
        )
    if name == "vertex index out of range":
        face, corner = where
        return (
            f"faces must hold indices from 0 to {vertices.shape[1] - 1}, or {pad_id} for padding, "
            f"got {int(faces[row, face, corner])} at faces[{row}, {face}, {corner}]; "
            "check that each face refers to the vertices of its own row"
        )
    if name == "partially padded face":
        face = where[0]
        return (
            f"a face must be padded whole or not at all, got {faces[row, face].tolist()} at "
            f"faces[{row}, {face}]; set all of it to {pad_id}, or do not mix triangles and quads"
        )
    if name == "no faces in a row":
        return (
            f"every mesh of a batch needs at least one face, got only padding ({pad_id}) in row "
            f"{row}; leave empty meshes out of the batch"
        )
    assert face_edges is not None, "only face edges have further kinds of faults"
    edge = face_edges[row, where[0]].tolist()
    wanted = (
        "point at faces that are not padding"
        if name == "face edge into a padded face"
        else f"hold face indices from 0 to {faces.shape[1] - 1}, or {pad_id} twice for padding"
    )
    return (
        f"face_edges must {wanted}, got {edge} at face_edges[{row}, {where[0]}]; "
        "derive them with derive_face_edges_from_faces, or leave them out"
    )


def warn_of_clamping(
    vertices: Tensor, faces: Tensor, pad_id: int, coor_continuous_range: tuple[float, float]
) -> None:
    """Warn if vertices of faces lie outside the range."""
    low, high = coor_continuous_range
    outside = ((vertices < low) | (vertices > high)).any(dim=-1)
    if not outside.any():
        return

    rows, face_ids = (faces != pad_id).all(dim=-1).nonzero(as_tuple=True)
    in_use = torch.zeros_like(outside)
    in_use[rows[:, None], faces[rows, face_ids].long()] = True
    share = float(outside[in_use].float().mean())
    if share > 0:
        warnings.warn(
            f"{share:.1%} of the vertices lie outside coor_continuous_range {(low, high)} and are "
            "clamped to it; normalise meshes with canonicalize_mesh",
            stacklevel=3,
        )
