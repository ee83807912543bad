"""Codes that would write what no clean mesh has are made unlikely before one is drawn."""

from itertools import permutations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def forbid_repeats(
    logits: Float[Tensor, "b c"],
    codes: Int[Tensor, "b n"],
    *,
    num_vertices_per_face: int,
    num_quantizers: int,
) -> Float[Tensor, "b c"]:
    """Forbid codes that would repeat a vertex of their triangle, or a face of their mesh.

    It is the last code of a vertex that makes it the same, and the last of a face. A quad may
    repeat a vertex, which makes it a triangle. Faces are the same in any order of their vertices,
    as `inspect_mesh` counts them.

    Args:
        logits: of the next code.
        codes: all before it.
        num_vertices_per_face: vertices of a face.
        num_quantizers: codes of a vertex.

    Returns:
        logits, the lowest number for what is forbidden.
    """
    per_face = num_vertices_per_face * num_quantizers
    whole, written = codes.tensor_split([codes.shape[1] // per_face * per_face], dim=1)
    place = written.shape[1]
    if num_vertices_per_face == 3 and place % num_quantizers == num_quantizers - 1:
        vertices, begun = written.tensor_split([place // num_quantizers * num_quantizers], dim=1)
        vertices = rearrange(vertices, "b (nvf q) -> b nvf q", q=num_quantizers)
        logits = forbid_last_codes(logits, vertices, begun)
    if place == per_face - 1:
        faces = rearrange(
            whole, "b (nf nvf q) -> b nf nvf q", nvf=num_vertices_per_face, q=num_quantizers
        )
        orders = [faces[:, :, order] for order in permutations(range(num_vertices_per_face))]
        in_any_order = rearrange(orders, "orders b nf nvf q -> b (orders nf) (nvf q)")
        logits = forbid_last_codes(logits, in_any_order, written)
    return logits


def forbid_last_codes(
    logits: Float[Tensor, "b c"],
    groups: Int[Tensor, "b k n"],
    begun: Int[Tensor, "b n_minus_one"],
) -> Float[Tensor, "b c"]:
    """Forbid what would make of a group that is begun one of those that are there."""
    is_begun = (groups[:, :, :-1] == rearrange(begun, "b n -> b 1 n")).all(dim=-1)
    # a place behind all ids for the others
    num_ids = logits.shape[1]
    ids = groups[:, :, -1].masked_fill(~is_begun, num_ids)
    is_forbidden = torch.zeros(len(logits), num_ids + 1, dtype=torch.bool, device=logits.device)
    is_forbidden = is_forbidden.scatter(1, ids, True)[:, :num_ids]
    return logits.masked_fill(is_forbidden, torch.finfo(logits.dtype).min)
