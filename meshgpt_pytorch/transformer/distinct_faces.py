"""Codes that would write a face twice, or one without area, are forbidden before one is drawn."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from meshgpt_pytorch.transformer.vertex_equality import are_same_vertices


def forbid_repeats(
    logits: Float[Tensor, "b c"],
    codes: Int[Tensor, "b n"],
    *,
    num_vertices_per_face: int,
    num_quantizers: int,
) -> Float[Tensor, "b c"]:
    """Forbid codes that would leave a face with less than 3 vertices, or repeat a face of the mesh.

    It is the last code of a vertex that makes it the same as another, and the last of a face. Faces
    are the same if they have the same vertices, in any order: the two sides of a thin wall too.

    Args:
        logits: of the next code; the last is that of the end of a mesh.
        codes: all before it.
        num_vertices_per_face: vertices of a face.
        num_quantizers: codes of a vertex.

    Returns:
        logits, the lowest number for what is forbidden; those of a row all of whose codes would be
        forbidden are left as they are.
    """
    nvf, q = num_vertices_per_face, num_quantizers
    if codes.shape[1] % q != q - 1:
        return logits
    complete, begun = codes.tensor_split([codes.shape[1] // q * q], dim=1)
    vertices = rearrange(complete, "b (nv q) -> b nv q", q=q)
    faces, written = vertices.tensor_split([vertices.shape[1] // nvf * nvf], dim=1)
    is_forbidden = completes_to(written, too_few_left(written, nvf), begun, logits.shape[1])
    if written.shape[1] == nvf - 1:
        faces = rearrange(faces, "b (nf nvf) q -> b nf nvf q", nvf=nvf)
        missing = rearrange(are_all_that_is_missing(faces, written), "b nf nvf -> b (nf nvf)")
        each = rearrange(faces, "b nf nvf q -> b (nf nvf) q")
        is_forbidden |= completes_to(each, missing, begun, logits.shape[1])
    is_stuck = is_forbidden[:, :-1].all(dim=1, keepdim=True)
    return logits.masked_fill(is_forbidden & ~is_stuck, torch.finfo(logits.dtype).min)


def too_few_left(written: Int[Tensor, "b k q"], num_vertices_per_face: int) -> Bool[Tensor, "b k"]:
    """Tell which vertices of a face cannot come again: fewer than 3 distinct ones would be left."""
    same = are_same_vertices(written, written).tril(diagonal=-1).any(dim=2)
    num_distinct = (~same).sum(dim=1, keepdim=True)
    num_after_next = num_vertices_per_face - written.shape[1] - 1
    return (num_distinct + num_after_next < 3).expand(written.shape[:2])


def are_all_that_is_missing(
    faces: Int[Tensor, "b nf nvf q"], written: Int[Tensor, "b k q"]
) -> Bool[Tensor, "b nf nvf"]:
    """Tell which vertices would make of those written a face that is there."""
    nvf = faces.shape[2]
    each = rearrange(faces, "b nf nvf q -> b (nf nvf) q")
    is_written = rearrange(are_same_vertices(each, written), "b (nf nvf) k -> b nf nvf k", nvf=nvf)
    has_all_written = is_written.any(dim=2).all(dim=-1)
    in_face = rearrange(faces, "b nf nvf q -> (b nf) nvf q")
    is_same = rearrange(are_same_vertices(in_face, in_face), "(b nf) p r -> b nf p r", b=len(faces))
    others_are_written = is_same | rearrange(is_written.any(dim=-1), "b nf r -> b nf 1 r")
    return others_are_written.all(dim=-1) & rearrange(has_all_written, "b nf -> b nf 1")


def completes_to(
    vertices: Int[Tensor, "b k q"],
    counts: Bool[Tensor, "b k"],
    begun: Int[Tensor, "b q_minus_one"],
    num_ids: int,
) -> Bool[Tensor, "b num_ids"]:
    """Mark the ids that would complete a vertex that is begun to one of those that count."""
    is_begun = (vertices[:, :, :-1] == rearrange(begun, "b level -> b 1 level")).all(dim=-1)
    # a place behind all ids for the others
    ids = vertices[:, :, -1].masked_fill(~(is_begun & counts), num_ids)
    marked = torch.zeros(len(ids), num_ids + 1, dtype=torch.bool, device=ids.device)
    return marked.scatter(1, ids, True)[:, :num_ids]
