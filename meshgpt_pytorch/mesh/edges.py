"""The graph of faces: which faces share vertices."""

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from meshgpt_pytorch.typing import typecheck

__all__ = ["derive_face_edges_from_faces"]


def shared_keys(
    vertex_ids: Int[Tensor, "f nvf"], owners: Int[Tensor, "f"], share_one_vertex: bool
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """List what each face can share with another: its vertices, or its pairs of vertices.

    Returns:
        one key for each vertex or unordered pair of distinct vertices, and the face that owns it.
    """
    num_vertices_per_face = vertex_ids.shape[-1]
    if share_one_vertex:
        return vertex_ids.flatten(), owners.repeat_interleave(num_vertices_per_face)

    first, second = torch.triu_indices(
        num_vertices_per_face, num_vertices_per_face, offset=1, device=vertex_ids.device
    )
    ends = vertex_ids[:, first], vertex_ids[:, second]
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    keys = low * (vertex_ids.amax() + 1) + high
    face, pair = (low != high).nonzero(as_tuple=True)
    return keys[face, pair], owners[face]


def all_pairs_of_equal_keys(
    keys: Int[Tensor, "k"], owners: Int[Tensor, "k"]
) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Pair each owner with every owner of the same key, itself included."""
    keys, order = keys.sort()
    owners = owners[order]
    group_sizes = keys.unique_consecutive(return_counts=True)[1]
    group_starts = group_sizes.cumsum(dim=0) - group_sizes

    # the numbers of results are told, so that an accelerator need not be asked for them
    num_keys, num_pairs = len(keys), int(group_sizes.square().sum())
    # entry i of a group of size s makes s pairs: with each entry of the group in turn
    partners = group_sizes.repeat_interleave(group_sizes, output_size=num_keys)
    partner_starts = group_starts.repeat_interleave(group_sizes, output_size=num_keys)
    pair_starts = partners.cumsum(dim=0) - partners
    entry = torch.arange(num_keys, device=keys.device)
    entry = entry.repeat_interleave(partners, output_size=num_pairs)
    within = torch.arange(num_pairs, device=keys.device) - pair_starts[entry]
    return owners[entry], owners[partner_starts[entry] + within]


def pad_edges(
    rows: Int[Tensor, "e"], edges: Int[Tensor, "e 2"], batch_size: int, pad_id: int
) -> Int[Tensor, "b n 2"]:
    """Put edges, sorted by batch row, into one padded tensor."""
    counts = rows.bincount(minlength=batch_size)
    starts = counts.cumsum(dim=0) - counts
    longest = int(counts.amax()) if batch_size > 0 else 0
    padded = edges.new_full((batch_size, longest, 2), pad_id)
    padded[rows, torch.arange(len(rows), device=rows.device) - starts[rows]] = edges
    return padded


@torch.no_grad()
@typecheck
def derive_face_edges_from_faces(
    faces: Int[Tensor, "*b nf nvf"],
    pad_id: int = -1,
    neighbor_if_share_one_vertex: bool = False,
    include_self: bool = True,
) -> Int[Tensor, "*b e 2"]:
    """List the pairs of neighbouring faces of a mesh, or of each mesh of a batch.

    Takes O(nf log nf) time and O(nf) memory, next to the edges themselves.

    Args:
        faces: ``(b, nf, nvf)`` or ``(nf, nvf)`` vertex indices, int32 or int64. A face that holds
            a ``pad_id`` is padding, has no edges, and keeps its place in the numbering.
        pad_id: marks padding, in ``faces`` and in the result.
        neighbor_if_share_one_vertex: neighbours share at least 1 vertex; else at least 2. Distinct
            vertices count, so a face that repeats a vertex shares it once.
        include_self: add an edge from each face to itself.

    Returns:
        int64 ``(b, e, 2)`` or ``(e, 2)`` pairs (i, j) of face indices, both directions, sorted by i
        then j; rows of a batch are padded with ``pad_id`` to the longest.

    Raises:
        ValueError: ``faces`` has neither two nor three axes.
    """
    if faces.ndim not in (2, 3):
        raise ValueError(f"faces must be (b, nf, nvf) or (nf, nvf), got shape {(*faces.shape,)}")
    if faces.ndim == 2:
        edges = derive_face_edges_from_faces(
            rearrange(faces, "nf nvf -> 1 nf nvf"),
            pad_id,
            neighbor_if_share_one_vertex,
            include_self,
        )
        return rearrange(edges, "1 e ends -> e ends")

    batch_size, num_faces, _ = faces.shape
    rows, face_ids = (faces != pad_id).all(dim=-1).nonzero(as_tuple=True)
    if len(rows) == 0:
        return faces.new_empty((batch_size, 0, 2), dtype=torch.long)

    # number the vertices of all rows from 0, so that meshes of a batch share none
    distinct, vertex_ids = faces[rows, face_ids].long().unique(return_inverse=True)
    vertex_ids = vertex_ids + rows[:, None] * len(distinct)
    owners = rows * num_faces + face_ids

    keys, key_owners = shared_keys(vertex_ids, owners, neighbor_if_share_one_vertex)
    first, second = all_pairs_of_equal_keys(keys, key_owners)
    if include_self:
        first, second = torch.cat((first, owners)), torch.cat((second, owners))
    else:
        first, second = first[first != second], second[first != second]

    # one number for each edge: sorting it sorts by row, then i, then j
    edge_ids = (first * num_faces + second % num_faces).unique()
    edge_owners = edge_ids // num_faces
    edges = torch.stack((edge_owners % num_faces, edge_ids % num_faces), dim=-1)
    return pad_edges(edge_owners // num_faces, edges, batch_size, pad_id)
