"""One answer for each vertex: what its corners say of it, averaged.

A vertex is decoded once for each face that has it. Where its corners do not agree, a mesh falls
apart there; averaged, they are one vertex, and right more often than each corner alone.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from meshgpt_pytorch.tokenizers.quantizer import average_over_vertices
from meshgpt_pytorch.typing import typecheck


@typecheck
def average_over_corners(
    logits: Float[Tensor, "b nf c num_bins"],
    ids: Int[Tensor, "b nf nvf q"],
    face_mask: Bool[Tensor, "b nf"],
) -> Float[Tensor, "b nf c num_bins"]:
    """Give all corners of a vertex the mean of their logits.

    Args:
        logits: of the coordinates of each face, ``c = (nvf 3)``.
        ids: what tells vertices apart: corners of a mesh with equal rows, such as their codes, are
            one vertex.
        face_mask: True where a face exists; the others are left as they are.

    Returns:
        logits of the same shape; those of one vertex are the same to the last bit.
    """
    num_bins = logits.shape[-1]
    corner_logits = rearrange(
        logits,
        "b nf (nvf c) num_bins -> 1 (b nf) nvf (c num_bins)",
        nvf=ids.shape[2],
    )
    # the whole batch as one mesh
    vertices, num_vertices = number_vertices(ids)
    vertices = rearrange(vertices, "b nf nvf -> 1 (b nf) nvf")
    mask = rearrange(face_mask, "b nf -> 1 (b nf)")
    means, _ = average_over_vertices(corner_logits, vertices, mask, num_vertices=num_vertices)
    averaged = rearrange(
        means[0, vertices[0]],
        "(b nf) nvf (c num_bins) -> b nf (nvf c) num_bins",
        b=len(logits),
        num_bins=num_bins,
    )
    return torch.where(rearrange(face_mask, "b nf -> b nf 1 1"), averaged, logits)


def number_vertices(ids: Int[Tensor, "b nf nvf q"]) -> tuple[Int[Tensor, "b nf nvf"], int]:
    """Count the distinct rows of ids in each mesh.

    Returns:
        for each corner its vertex, from 0 over the whole batch; and how many there are.
    """
    vertices = rearrange(torch.arange(len(ids), device=ids.device), "b -> b 1 1")
    found = vertices
    # column by column: numbers for the columns so far stay below the number of corners
    for column in ids.long().unbind(dim=-1):
        lowest, highest = column.aminmax()
        keys = vertices * (highest - lowest + 1) + column - lowest
        found, vertices = keys.unique(return_inverse=True)
    return vertices, len(found)
