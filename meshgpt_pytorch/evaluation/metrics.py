"""How well meshes are reconstructed and generated, counted exactly, on the grid."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from meshgpt_pytorch.mesh import Mesh, check_mesh, discretize
from meshgpt_pytorch.typing import typecheck

__all__ = [
    "CodebookUsage",
    "FaceCounts",
    "FaceMatch",
    "ReconstructionAccuracy",
    "codebook_usage",
    "count_codes",
    "face_counts",
    "matching_faces",
    "triangle_accuracy",
    "usage_of_counts",
    "which_mesh",
]

# how often a face occurs; a face is the bins of its corners, one integer each
FaceCounts: TypeAlias = Counter[tuple[int, ...]]


class ReconstructionAccuracy(NamedTuple):
    """Shares, 0 to 1, of the faces of which every coordinate is right, and of the coordinates."""

    triangle: float
    coordinate: float


class FaceMatch(NamedTuple):
    """Shares, 0 to 1, of faces that two meshes have in common.

    Attributes:
        precision: of the generated faces, those that the target has.
        recall: of the target's faces, those that were generated.
        faces_right: faces in common over the number of faces of the mesh that has more.
    """

    precision: float
    recall: float
    faces_right: float


class CodebookUsage(NamedTuple):
    """How evenly the codes of each quantizer are used.

    Attributes:
        used_fraction: ``(q,)`` share, 0 to 1, of the codebook that occurs.
        perplexity: ``(q,)`` exponential of the entropy: 1 if one code occurs, codebook_size if
            all occur equally often. 0 for a quantizer without codes.
    """

    used_fraction: Float[Tensor, "q"]
    perplexity: Float[Tensor, "q"]


@typecheck
def triangle_accuracy(
    predicted_face_coords: Float[Tensor, "b nf nvf 3"],
    target_face_coords: Float[Tensor, "b nf nvf 3"],
    face_mask: Bool[Tensor, "b nf"],
    *,
    num_discrete_coors: int = 128,
    coor_continuous_range: tuple[float | int, float | int] = (-1.0, 1.0),
) -> ReconstructionAccuracy:
    """Compare a reconstruction with its mesh, face by face in order, on the grid.

    The triangle accuracy of the MeshGPT authors' code: the share of faces of which all
    coordinate bins are right.

    Args:
        predicted_face_coords: ``(b, nf, nvf, 3)``; nan counts as wrong.
        target_face_coords: ``(b, nf, nvf, 3)``.
        face_mask: ``(b, nf)`` True for the faces that count; the others are padding.
        num_discrete_coors: number of bins of a coordinate.
        coor_continuous_range: (low, high) of the coordinates.

    Returns:
        the shares over all faces of the batch.

    Raises:
        ValueError: the mask keeps no face.
    """
    if not bool(face_mask.any()):
        raise ValueError("face_mask must keep at least one face to compare, got none")
    is_number = predicted_face_coords.isfinite() & target_face_coords.isfinite()
    predicted, target = (
        discretize(
            coords.nan_to_num(),
            continuous_range=coor_continuous_range,
            num_discrete=num_discrete_coors,
        )
        for coords in (predicted_face_coords, target_face_coords)
    )
    is_right = ((predicted == target) & is_number)[face_mask]
    return ReconstructionAccuracy(
        triangle=is_right.flatten(1).all(dim=1).double().mean().item(),
        coordinate=is_right.double().mean().item(),
    )


@typecheck
def face_counts(
    mesh: Mesh,
    *,
    num_discrete_coors: int = 128,
    coor_continuous_range: tuple[float | int, float | int] = (-1.0, 1.0),
) -> FaceCounts:
    """Count the faces of a mesh whatever its order of faces and vertices.

    Args:
        mesh: triangles or quads, finite; drop the padded rows of a batch first. It may be empty.
        num_discrete_coors: number of bins of a coordinate.
        coor_continuous_range: (low, high) of the coordinates.

    Returns:
        each face, as the bins of its corners from the lowest on, with the number of times it
        occurs. The order of the corners, that is the winding, is kept.

    Raises:
        ValueError: a mesh that is not finite, or is padded or badly indexed.
    """
    if mesh.faces.numel() == 0:
        return Counter()
    check_mesh(mesh)
    bins = discretize(
        mesh.vertices, continuous_range=coor_continuous_range, num_discrete=num_discrete_coors
    )
    place = torch.tensor([num_discrete_coors**2, num_discrete_coors, 1], device=bins.device)
    corners = (bins * place).sum(dim=-1)[mesh.faces.long()].tolist()
    # the least of all: a face with a corner twice has two ways to start at its lowest
    return Counter(min(rotations(face)) for face in corners)


def rotations(face: Sequence[int]) -> list[tuple[int, ...]]:
    """List all ways to start a face, which leave its winding."""
    return [(*face[start:], *face[:start]) for start in range(len(face))]


@typecheck
def matching_faces(
    generated: Mesh | FaceCounts,
    target: Mesh | FaceCounts,
    *,
    num_discrete_coors: int = 128,
    coor_continuous_range: tuple[float | int, float | int] = (-1.0, 1.0),
) -> FaceMatch:
    """Compare two meshes as multisets of oriented faces on the grid.

    Args:
        generated: a mesh, or its `face_counts`, which saves counting again.
        target: likewise.
        num_discrete_coors: number of bins of a coordinate.
        coor_continuous_range: (low, high) of the coordinates.

    Returns:
        shares of faces in common. All are 1 for two meshes without faces, 0 if one has none.

    Raises:
        ValueError: a mesh that is not finite, or is padded or badly indexed.
    """
    counts = []
    for mesh in (generated, target):
        if isinstance(mesh, Mesh):
            mesh = face_counts(
                mesh,
                num_discrete_coors=num_discrete_coors,
                coor_continuous_range=coor_continuous_range,
            )
        counts.append(mesh)
    generated_counts, target_counts = counts
    num_generated, num_target = generated_counts.total(), target_counts.total()
    if num_generated == 0 or num_target == 0:
        share = 1.0 if num_generated == num_target else 0.0
        return FaceMatch(share, share, share)
    hits = (generated_counts & target_counts).total()
    return FaceMatch(
        precision=hits / num_generated,
        recall=hits / num_target,
        faces_right=hits / max(num_generated, num_target),
    )


@typecheck
def which_mesh(
    generated: Mesh | FaceCounts,
    candidates: Sequence[Mesh | FaceCounts],
    *,
    num_discrete_coors: int = 128,
    coor_continuous_range: tuple[float | int, float | int] = (-1.0, 1.0),
) -> int | None:
    """Find the mesh that a generated one is most like, by the share of faces that are right.

    Args:
        generated: a mesh, or its `face_counts`.
        candidates: meshes, or their `face_counts`, which saves counting them for each call.
        num_discrete_coors: number of bins of a coordinate.
        coor_continuous_range: (low, high) of the coordinates.

    Returns:
        index of the first of the best candidates; None if none has a face in common.

    Raises:
        ValueError: a mesh that is not finite, or is padded or badly indexed.
    """
    if isinstance(generated, Mesh):
        generated = face_counts(
            generated,
            num_discrete_coors=num_discrete_coors,
            coor_continuous_range=coor_continuous_range,
        )
    best, best_share = None, 0.0
    for index, candidate in enumerate(candidates):
        share = matching_faces(
            generated,
            candidate,
            num_discrete_coors=num_discrete_coors,
            coor_continuous_range=coor_continuous_range,
        ).faces_right
        if share > best_share:
            best, best_share = index, share
    return best


@typecheck
def codebook_usage(codes: Int[Tensor, "... q"], codebook_size: int) -> CodebookUsage:
    """Measure how much of its codebook each quantizer uses.

    Args:
        codes: ``(..., q)``, -1 is padding.
        codebook_size: number of codes of a quantizer.

    Returns:
        used fraction and perplexity of each quantizer, float64 on the CPU.

    Raises:
        ValueError: a code is below -1 or not in the codebook, or all are padding.
    """
    if not bool((codes >= 0).any()):
        raise ValueError("codes must hold at least one code, got only padding (-1) or nothing")
    return usage_of_counts(count_codes(codes, codebook_size))


@typecheck
def count_codes(codes: Int[Tensor, "... q"], codebook_size: int) -> Int[Tensor, "q codebook_size"]:
    """Count how often each code of each quantizer occurs.

    Args:
        codes: ``(..., q)``, -1 is padding.
        codebook_size: number of codes of a quantizer.

    Returns:
        counts, on the CPU; those of several batches may be added.

    Raises:
        ValueError: a code is below -1 or not in the codebook.
    """
    codes = codes.detach().cpu().long().reshape(-1, codes.shape[-1])
    if len(codes) == 0:
        return torch.zeros(codes.shape[-1], codebook_size, dtype=torch.long)
    lowest, highest = int(codes.min()), int(codes.max())
    if lowest < -1 or highest >= codebook_size:
        raise ValueError(
            f"codes must be in [0, {codebook_size}), or -1 for padding, got {lowest} to "
            f"{highest}; cut the end token off, or give the codebook_size of the autoencoder"
        )
    return torch.stack(
        [torch.bincount(column[column >= 0], minlength=codebook_size) for column in codes.T]
    )


@typecheck
def usage_of_counts(counts: Int[Tensor, "q codebook_size"]) -> CodebookUsage:
    """Measure how much of its codebook each quantizer uses, from the counts of its codes.

    Args:
        counts: ``(q, codebook_size)``, as `count_codes` gives them.

    Returns:
        used fraction and perplexity of each quantizer, float64.
    """
    counts = counts.double()
    share = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(dim=1)
    return CodebookUsage(
        used_fraction=(counts > 0).double().mean(dim=1),
        perplexity=torch.where(counts.sum(dim=1) > 0, entropy.exp(), 0.0),
    )
