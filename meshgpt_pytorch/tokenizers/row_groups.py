"""Rows of a table: some of them taken, and means over groups of them.

Groups are the faces beside a face, or the corners of a vertex. Rows are summed where they lie,
group after group: a row for each pair of row and group, which a scattered sum wants, is never made.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable


def take_rows(x: Shaped[Tensor, "b n d"], places: Int[Tensor, "b m"]) -> Shaped[Tensor, "b m d"]:
    """Take rows of each mesh.

    Args:
        x: rows.
        places: which to take, each as often as wanted.

    Returns:
        those rows, in the order of ``places``.
    """
    batch, num_rows, _ = x.shape
    # whole rows of one table: along an axis, each number would be looked up by itself
    offset = rearrange(torch.arange(batch, device=x.device) * num_rows, "b -> b 1")
    taken = rearrange(x, "b n d -> (b n) d").index_select(
        0, rearrange(places + offset, "b m -> (b m)")
    )
    return rearrange(taken, "(b m) d -> b m d", b=batch)


class RowGroups(NamedTuple):
    """Which rows make up each group, and which groups each row is in.

    pairs: ``2 p``, rows and the groups that they are in.
    rows: the row of each pair, in the order of groups.
    starts_of_groups: where each group starts in ``rows``.
    sizes: number of rows of each group.
    groups: the group of each pair, in the order of rows.
    starts_of_rows: where each row starts in ``groups``.
    """

    pairs: Int[Tensor, "2 p"]
    rows: Int[Tensor, "p"]
    starts_of_groups: Int[Tensor, "g"]
    sizes: Int[Tensor, "g"]
    groups: Int[Tensor, "p"]
    starts_of_rows: Int[Tensor, "n"]


class GroupSum(torch.autograd.Function):
    """The sum of each group; its gradient sums the groups of each row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "n d"],
        rows: Int[Tensor, "p"],
        starts_of_groups: Int[Tensor, "g"],
        groups: Int[Tensor, "p"],
        starts_of_rows: Int[Tensor, "n"],
    ) -> Float[Tensor, "g d"]:
        ctx.save_for_backward(groups, starts_of_rows)
        return F.embedding_bag(rows, x, starts_of_groups, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Float[Tensor, "g d"]) -> tuple[Tensor | None, ...]:
        groups, starts_of_rows = ctx.saved_tensors
        # a gradient may be one number for all features
        gradient = grad_output.contiguous()
        return F.embedding_bag(groups, gradient, starts_of_rows, mode="sum"), *(None,) * 4


def group_rows(pairs: Int[Tensor, "2 p"], *, num_rows: int, num_groups: int) -> RowGroups:
    """Sort pairs of rows and groups, so that sums need not look for them.

    Args:
        pairs: rows, and the groups that they are in; in any order, each as often as it counts.
        num_rows, num_groups: how many there are of either.

    Returns:
        the groups; rows of one keep their order.
    """
    rows, groups = pairs.unbind()
    sizes = count_each(groups, num_groups)
    groups_of_row = count_each(rows, num_rows)
    return RowGroups(
        pairs,
        rows[groups.argsort(stable=True)],
        sizes.cumsum(dim=0) - sizes,
        sizes,
        groups[rows.argsort(stable=True)],
        groups_of_row.cumsum(dim=0) - groups_of_row,
    )


def count_each(numbers: Int[Tensor, "p"], num_numbers: int) -> Int[Tensor, "n"]:
    """Count how often each number from 0 comes; unlike ``bincount``, without asking a GPU."""
    counts = torch.zeros(num_numbers, dtype=torch.long, device=numbers.device)
    return counts.scatter_add_(0, numbers, torch.ones_like(numbers))


def mean_of_groups(x: Float[Tensor, "n d"], groups: RowGroups) -> Float[Tensor, "g d"]:
    """Average the rows of each group.

    Args:
        x: rows.
        groups: which of them belong together.

    Returns:
        the mean of each group; zero where it is empty.
    """
    sums: Tensor = GroupSum.apply(
        x, groups.rows, groups.starts_of_groups, groups.groups, groups.starts_of_rows
    )
    return sums / rearrange(groups.sizes.clamp(min=1), "g -> g 1").to(x.dtype)
