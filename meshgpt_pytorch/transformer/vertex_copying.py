"""Copies of vertices that a mesh has already, as a share of each prediction beside the logits.

A vertex of a mesh is a corner of about six of its faces, so most codes repeat those of an earlier
corner. Each prediction weighs the earlier corners, by a query of its own and by their keys, and the
weight of a corner goes to the code that it has at this place. Corners whose first codes are not
those of the vertex that is being written have none. (Vinyals et al. 2015, 1506.03134, for the
pointer; Merity et al. 2016, 1609.07843, for one softmax over ids and copies.)

Weights are logarithms, on the scale of the logits. Of the axes, `v` is that of vertices that are
predicted, and `u` that of vertices that may be copied.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import Module

from meshgpt_pytorch.recompute import run_checkpointed

# weights that are made at a time: 16 MB in float32
NUM_WEIGHTS_AT_ONCE = 2**22
# no weight: small against any logit, but finite, as are its gradients
NO_WEIGHT = -1e30


class CopyWeights(NamedTuple):
    """What a cross entropy needs of copies: the weight of all, and of those that are right."""

    of_all: Float[Tensor, "*codes"]
    of_label: Float[Tensor, "*codes"]


class VertexCopier(Module):
    """Make keys of vertices, and queries of predictions.

    Args:
        dim: width of embedded codes.
        dim_fine: width of what codes are predicted from, and of keys.
        num_quantizers: codes of a vertex.
    """

    def __init__(self, dim: int, dim_fine: int, num_quantizers: int) -> None:
        super().__init__()
        self.to_key = nn.Linear(num_quantizers * dim, dim_fine)
        self.to_query = nn.Linear(dim_fine, dim_fine)

    def make_keys(self, embedded: Float[Tensor, "b u q d"]) -> Float[Tensor, "b u d_key"]:
        """Make the key of each vertex from the embeddings of its codes."""
        return self.to_key(rearrange(embedded, "b u q d -> b u (q d)"))


def score_keys(
    queries: Float[Tensor, "b v q d"], keys: Float[Tensor, "b u d"]
) -> Float[Tensor, "b v q u"]:
    """Weigh each vertex by its key, in float32 at least."""
    scores = einsum(queries, keys, "b v q d, b u d -> b v q u") * queries.shape[-1] ** -0.5
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def weigh_copies(
    queries: Float[Tensor, "b v q d"], keys: Float[Tensor, "b v d"], codes: Int[Tensor, "b v q"]
) -> CopyWeights:
    """Weigh the copies that predict each code of whole meshes.

    Args:
        queries: of the codes.
        keys: of the vertices.
        codes: of the vertices, which are also the labels. All ids count, those of padding too.

    Returns:
        the weights ``b v q``.
    """
    parts = [
        run_checkpointed(weigh_block, queries[:, block], keys[:, : block.stop], codes)
        for block in blocks_of(queries)
    ]
    return CopyWeights(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))


def weigh_block(
    queries: Float[Tensor, "b v q d"], keys: Float[Tensor, "b u d"], codes: Int[Tensor, "b all q"]
) -> tuple[Float[Tensor, "b v q"], Float[Tensor, "b v q"]]:
    """Weigh copies for the last vertices of those that have keys."""
    scores = score_keys(queries, keys)
    matches = match_first_codes(codes[:, : keys.shape[1]], queries.shape[1])
    of_all, of_label = (
        scores.masked_fill(~copied, NO_WEIGHT).logsumexp(dim=-1)
        for copied in (matches[:, :, :-1], matches[:, :, 1:])
    )
    return of_all, of_label


def copy_into_logits(
    logits: Float[Tensor, "b v q c"],
    queries: Float[Tensor, "b v q d"],
    keys: Float[Tensor, "b v d"],
    codes: Int[Tensor, "b v q"],
) -> Float[Tensor, "b v q c"]:
    """Add the weights of copies to all logits of whole meshes.

    Args:
        logits: of the codes.
        queries, keys, codes: as of ``weigh_copies``.
    """
    parts = [
        run_checkpointed(
            copy_block, logits[:, block], queries[:, block], keys[:, : block.stop], codes
        )
        for block in blocks_of(queries)
    ]
    return torch.cat(parts, dim=1)


def copy_block(
    logits: Float[Tensor, "b v q c"],
    queries: Float[Tensor, "b v q d"],
    keys: Float[Tensor, "b u d"],
    codes: Int[Tensor, "b all q"],
) -> Float[Tensor, "b v q c"]:
    """Add the weights of copies to the logits of the last vertices of those that have keys."""
    codes = codes[:, : keys.shape[1]]
    matches = match_first_codes(codes, queries.shape[1])[:, :, :-1]
    weights = score_keys(queries, keys).masked_fill(~matches, NO_WEIGHT)
    return add_weights(logits, weights, repeat(codes, "b u q -> b v q u", v=logits.shape[1]))


def blocks_of(queries: Float[Tensor, "b v q d"]) -> Iterator[slice]:
    """Cut vertices into blocks, none of which makes too many weights at a time."""
    batch, num_vertices, num_quantizers, _ = queries.shape
    size = max(1, NUM_WEIGHTS_AT_ONCE // (batch * num_quantizers * max(1, num_vertices)))
    for start in range(0, num_vertices, size):
        yield slice(start, min(start + size, num_vertices))


def match_first_codes(codes: Int[Tensor, "b u q"], num_last: int) -> Bool[Tensor, "b v levels u"]:
    """Tell which vertices come before each of the last ones and have the same first codes.

    Args:
        codes: of all vertices.
        num_last: how many are the last.

    Returns:
        a mask for each number of first codes, from none to all of a vertex.
    """
    place = torch.arange(codes.shape[1], device=codes.device)
    is_earlier = place < rearrange(place[-num_last:], "v -> v 1")
    matches = [repeat(is_earlier, "v u -> b v u", b=len(codes))]
    for level in codes.unbind(dim=-1):
        same = rearrange(level[:, -num_last:], "b v -> b v 1") == rearrange(level, "b u -> b 1 u")
        matches.append(matches[-1] & same)
    return torch.stack(matches, dim=2)


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
