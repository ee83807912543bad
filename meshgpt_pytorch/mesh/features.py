"""Features that the encoder derives from the coordinates of a face: angles, area and normal."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from meshgpt_pytorch.typing import typecheck

__all__ = ["get_derived_face_features"]


def angle_between(
    x: Float[Tensor, "... 3"], y: Float[Tensor, "... 3"], eps: float = 1e-5
) -> Float[Tensor, "..."]:
    """Return the angle between vectors in radians, kept ``eps`` of cosine from 0 and pi."""
    # a product and a sum rather than einsum, which autocast would round to half precision
    cosine = (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(dim=-1)
    return cosine.clamp(min=-1 + eps, max=1 - eps).arccos()


@torch.no_grad()
@typecheck
def get_derived_face_features(face_coords: Float[Tensor, "b nf nvf 3"]) -> dict[str, Tensor]:
    """Derive angles, area and normal of each face from its vertex positions.

    The angles are those between the position vectors of consecutive vertices, seen from the
    origin, not the inner angles of the face: published weights were trained on them.

    Args:
        face_coords: ``(b, nf, 3 or 4, 3)`` positions. Half precision is computed in float32.

    Returns:
        ``angles`` ``(b, nf, nvf)`` in radians, ``area`` ``(b, nf, 1)`` and unit ``normals``
        ``(b, nf, 3)``; area and normal are 0 for a face without area. Those of a quad come from
        the cross product of its diagonals.
    """
    if face_coords.dtype in (torch.float16, torch.bfloat16):
        face_coords = face_coords.float()

    previous = face_coords.roll(1, dims=2)
    angles = angle_between(face_coords, previous)

    # a side of a triangle; a diagonal of a quad
    is_quad = face_coords.shape[2] == 4
    opposite = previous.roll(1, dims=2) if is_quad else previous
    first_edge, second_edge, *_ = (face_coords - opposite).unbind(dim=2)

    cross = torch.linalg.cross(first_edge, second_edge, dim=-1)
    area = cross.norm(dim=-1, keepdim=True) * 0.5
    return {"angles": angles, "area": area, "normals": F.normalize(cross, dim=-1)}
