"""Copies of vertices that a mesh has already, as a share of each prediction beside the logits.

A vertex of a mesh is a corner of about six of its faces, so most codes repeat those of an earlier
corner. Each prediction weighs the earlier corners, by a query of its own, by their keys, and by
their place: how many faces before, and which corner of its face. The weight of a corner goes to the
code that it has at this level. Corners whose first codes are not those of the vertex that is being
written have none, and neither have those of vertices that its triangle has already: it repeats
none. (Vinyals et al. 2015, 1506.03134, for the pointer; Merity et al. 2016, 1609.07843, for one
softmax over ids and copies; Shaw et al. 2018, 1803.02155, for scores by distance.)

Weights are logarithms, on the scale of the logits. Of the axes, `v` is that of vertices that are
predicted, and `u` that of vertices that may be copied: corners of faces, in their order.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import Module

from meshgpt_pytorch.recompute import run_checkpointed
from meshgpt_pytorch.transformer.vertex_equality import are_same_vertices

# weights that are made at a time: 16 MB in float32
NUM_WEIGHTS_AT_ONCE = 2**22
# no weight: small against any logit, but finite, as are its gradients
NO_WEIGHT = -1e30
# in faces, at which a place becomes another: one by one, then from 16, from 32, ...
DISTANCES = (*range(1, 16), *(2**power for power in range(4, 13)))


class CopyWeights(NamedTuple):
    """What a cross entropy needs of copies: the weight of all, and of those that are right."""

    of_all: Float[Tensor, "*codes"]
    of_label: Float[Tensor, "*codes"]


class VertexCopier(Module):
    """Make keys of vertices and queries of predictions, and weigh the ones by the others.

    Args:
        dim: width of embedded codes.
        dim_fine: width of what codes are predicted from, and of keys.
        num_quantizers: codes of a vertex.
        num_vertices_per_face: corners of a face.
    """

    distances: Tensor

    def __init__(
        self, dim: int, dim_fine: int, num_quantizers: int, num_vertices_per_face: int
    ) -> None:
        super().__init__()
        self.num_vertices_per_face = num_vertices_per_face
        # vertices of the same face are copied by quads alone
        self.first_distance = 1 if num_vertices_per_face == 3 else 0
        num_places = num_vertices_per_face * (len(DISTANCES) + 1 - self.first_distance)
        self.to_key = nn.Linear(num_quantizers * dim, dim_fine)
        # a score of each place behind what meets the keys
        self.to_query = nn.Linear(dim_fine, dim_fine + num_places)
        self.register_buffer("distances", torch.tensor(DISTANCES), persistent=False)

    def make_keys(self, embedded: Float[Tensor, "b u q d"]) -> Float[Tensor, "b u d_key"]:
        """Make the key of each vertex from the embeddings of its codes."""
        return self.to_key(rearrange(embedded, "b u q d -> b u (q d)"))

    def find_places(self, face: Int[Tensor, " v"], num_vertices: int) -> Int[Tensor, "v u"]:
        """Number the places of vertices: by their distance from a face, and by their corner.

        Args:
            face: of each vertex that is predicted.
            num_vertices: how many may be copied, from the first of the mesh.
        """
        corner = torch.arange(num_vertices, device=face.device)
        distance = rearrange(face, "v -> v 1") - corner // self.num_vertices_per_face
        step = torch.bucketize(distance, self.distances, right=True) - self.first_distance
        # those that may not be copied have any place
        step = step.clamp(min=0)
        return step * self.num_vertices_per_face + corner % self.num_vertices_per_face

    def may_copy(
        self, vertex: Int[Tensor, " v"], codes: Int[Tensor, "b u q"]
    ) -> Bool[Tensor, "b v u"]:
        """Tell which vertices come before each of those that are predicted, and can be the same.

        Args:
            vertex: which are predicted.
            codes: of vertices, from the first of the mesh, and at least up to those predicted.
        """
        place = torch.arange(codes.shape[1], device=codes.device)
        is_earlier = place < rearrange(vertex, "v -> v 1")
        may_copy = repeat(is_earlier, "v u -> b v u", b=len(codes))
        # a quad may repeat a vertex, which makes it a triangle
        if self.num_vertices_per_face == 3:
            for before in (1, 2):
                in_triangle = rearrange(vertex % 3 >= before, "v -> v 1")
                corner = codes.index_select(1, (vertex - before).clamp(min=0))
                may_copy = may_copy & ~(are_same_vertices(corner, codes) & in_triangle)
        return may_copy


def score_keys(
    queries: Float[Tensor, "b v q d_query"],
    keys: Float[Tensor, "b u d_key"],
    places: Int[Tensor, "v u"],
) -> Float[Tensor, "b v q u"]:
    """Weigh each vertex by its key and by its place, in float32 at least."""
    width = keys.shape[-1]
    query, by_place = queries[..., :width], queries[..., width:]
    scores = einsum(query, keys, "b v q d, b u d -> b v q u") * width**-0.5
    places = repeat(places, "v u -> b v q u", b=len(queries), q=queries.shape[2])
    scores = scores + by_place.gather(-1, places)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def weigh_copies(
    copier: VertexCopier,
    queries: Float[Tensor, "b v q d_query"],
    keys: Float[Tensor, "b v d_key"],
    codes: Int[Tensor, "b v q"],
) -> CopyWeights:
    """Weigh the copies that predict each code of whole meshes.

    Args:
        copier: knows the faces.
        queries: of the codes.
        keys: of the vertices.
        codes: of the vertices, which are also the labels. All ids count, those of padding too.

    Returns:
        the weights ``b v q``.
    """
    parts = [
        run_checkpointed(weigh_block, copier, queries[:, block], keys[:, : block.stop], codes)
        for block in blocks_of(queries)
    ]
    return CopyWeights(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))


def weigh_block(
    copier: VertexCopier,
    queries: Float[Tensor, "b v q d_query"],
    keys: Float[Tensor, "b u d_key"],
    codes: Int[Tensor, "b all q"],
) -> tuple[Float[Tensor, "b v q"], Float[Tensor, "b v q"]]:
    """Weigh copies for the last vertices of those that have keys."""
    codes = codes[:, : keys.shape[1]]
    scores, matches = score_block(copier, queries, keys, codes)
    of_all, of_label = (
        scores.masked_fill(~copied, NO_WEIGHT).logsumexp(dim=-1)
        for copied in (matches[:, :, :-1], matches[:, :, 1:])
    )
    return of_all, of_label


def copy_into_logits(
    copier: VertexCopier,
    logits: Float[Tensor, "b v q c"],
    queries: Float[Tensor, "b v q d_query"],
    keys: Float[Tensor, "b v d_key"],
    codes: Int[Tensor, "b v q"],
) -> Float[Tensor, "b v q c"]:
    """Add the weights of copies to all logits of whole meshes.

    Args:
        logits: of the codes.
        copier, queries, keys, codes: as of ``weigh_copies``.
    """
    parts = [
        run_checkpointed(
            copy_block, copier, logits[:, block], queries[:, block], keys[:, : block.stop], codes
        )
        for block in blocks_of(queries)
    ]
    return torch.cat(parts, dim=1)


def copy_block(
    copier: VertexCopier,
    logits: Float[Tensor, "b v q c"],
    queries: Float[Tensor, "b v q d_query"],
    keys: Float[Tensor, "b u d_key"],
    codes: Int[Tensor, "b all q"],
) -> Float[Tensor, "b v q c"]:
    """Add the weights of copies to the logits of the last vertices of those that have keys."""
    codes = codes[:, : keys.shape[1]]
    scores, matches = score_block(copier, queries, keys, codes)
    weights = scores.masked_fill(~matches[:, :, :-1], NO_WEIGHT)
    return add_weights(logits, weights, repeat(codes, "b u q -> b v q u", v=logits.shape[1]))


def copy_into_next(
    copier: VertexCopier,
    logits: Float[Tensor, "b c"],
    query: Float[Tensor, "b d_query"],
    keys: Float[Tensor, "b u d_key"],
    codes: Int[Tensor, "b u q"],
    *,
    vertex: Int[Tensor, " 1"],
    begun: Int[Tensor, "b level"],
) -> Float[Tensor, "b c"]:
    """Add the weights of copies to the logits of the code that comes next.

    Args:
        copier: knows the faces.
        logits, query: of the code.
        keys, codes: of the vertices before it; what stands behind them has no weight.
        vertex: which one the code is of.
        begun: its first codes.
    """
    num_vertices, level = codes.shape[1], begun.shape[1]
    if num_vertices == 0:
        return logits
    places = copier.find_places(vertex // copier.num_vertices_per_face, num_vertices)
    scores = score_keys(rearrange(query, "b d -> b 1 1 d"), keys, places)
    has_begun = (codes[:, :, :level] == rearrange(begun, "b level -> b 1 level")).all(dim=-1)
    matches = has_begun & copier.may_copy(vertex, codes)[:, 0]
    weights = rearrange(scores, "b 1 1 u -> b u").masked_fill(~matches, NO_WEIGHT)
    return add_weights(logits, weights, codes[:, :, level])


def score_block(
    copier: VertexCopier,
    queries: Float[Tensor, "b v q d_query"],
    keys: Float[Tensor, "b u d_key"],
    codes: Int[Tensor, "b u q"],
) -> tuple[Float[Tensor, "b v q u"], Bool[Tensor, "b v levels u"]]:
    """Score vertices for the last of them; tell which have the same first codes.

    Returns:
        the scores, and a mask for each number of first codes, from none to all of a vertex.
    """
    num_vertices = codes.shape[1]
    last = torch.arange(num_vertices - queries.shape[1], num_vertices, device=codes.device)
    places = copier.find_places(last // copier.num_vertices_per_face, num_vertices)
    matches = [copier.may_copy(last, codes)]
    for level in codes.split(1, dim=-1):
        matches.append(matches[-1] & are_same_vertices(level[:, last], level))
    return score_keys(queries, keys, places), torch.stack(matches, dim=2)


def blocks_of(queries: Float[Tensor, "b v q d_query"]) -> Iterator[slice]:
    """Cut vertices into blocks, none of which makes too many weights at a time."""
    batch, num_vertices, num_quantizers, _ = queries.shape
    size = max(1, NUM_WEIGHTS_AT_ONCE // (batch * num_quantizers * max(1, num_vertices)))
    for start in range(0, num_vertices, size):
        yield slice(start, min(start + size, num_vertices))


def add_weights(
    logits: Float[Tensor, "*codes c"],
    weights: Float[Tensor, "*codes u"],
    ids: Int[Tensor, "*codes u"],
) -> Float[Tensor, "*codes c"]:
    """Add weights to the logits of the ids that they are for.

    Args:
        logits: of all ids.
        weights: of the copies, ``NO_WEIGHT`` for those that are none; at least one.
        ids: that they would give.
    """
    top = weights.detach().amax(dim=-1, keepdim=True)
    shares = weights.new_zeros(logits.shape).scatter_add(-1, ids, (weights - top).exp())
    smallest = torch.finfo(shares.dtype).tiny
    added = torch.where(shares > 0, shares.clamp(min=smallest).log() + top, NO_WEIGHT)
    return torch.logaddexp(logits.to(added.dtype), added).to(logits.dtype)
