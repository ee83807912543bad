"""Vertices are the same if all their codes are."""

from functools import reduce
from operator import and_

from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor


def are_same_vertices(
    vertices: Int[Tensor, "b u q"], others: Int[Tensor, "b v q"]
) -> Bool[Tensor, "b u v"]:
    """Compare vertices, or the first codes of vertices, with others of their mesh."""
    same = [
        rearrange(level, "b u -> b u 1") == rearrange(other_level, "b v -> b 1 v")
        for level, other_level in zip(vertices.unbind(-1), others.unbind(-1), strict=True)
    ]
    return reduce(and_, same)
