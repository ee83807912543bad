"""Gated sums over a sequence: ``h[t] = gate[t] * h[t - 1] + x[t]``."""

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# features that one operation on a CPU takes: enough that starting it does not count
NUM_FEATURES_AT_ONCE = 2**14


class GatedSum(torch.autograd.Function):
    """A gated sum whose gradient is another one, backwards; nothing in between is kept."""

    @staticmethod
    def forward(
        ctx: Any, gate: Float[Tensor, "b n d"], x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        sums = sum_by_segments(gate, x)
        ctx.save_for_backward(gate, sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        gate, sums = ctx.saved_tensors
        next_gate = F.pad(gate, (0, 0, -1, 1))
        grad_x = sum_by_segments(next_gate, grad_output, reverse=True)
        return grad_x * F.pad(sums, (0, 0, 1, -1)), grad_x


def gated_sum(
    gate: Float[Tensor, "b n d"],
    x: Float[Tensor, "b n d"],
    initial: Float[Tensor, "b d"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Sum a sequence, letting go of what came before by a gate (GateLoop, Katsch, 2311.01927).

    Args:
        gate: share of the sum so far that is kept at each place, in [0, 1].
        x: what is added at each place.
        initial: sum before the first place; 0 by default.

    Returns:
        ``h`` with ``h[t] = gate[t] * h[t - 1] + x[t]``, summed in float32 or wider and returned in
        the dtype of ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide_gate, wide_x = gate.to(dtype), x.to(dtype)
    if initial is not None:
        first = torch.addcmul(wide_x[:, 0], wide_gate[:, 0], initial.to(dtype))
        wide_x = torch.cat((rearrange(first, "b d -> b 1 d"), wide_x[:, 1:]), dim=1)
    return GatedSum.apply(wide_gate, wide_x).to(x.dtype)


def sum_by_segments(
    gate: Float[Tensor, "b n d"], x: Float[Tensor, "b n d"], *, reverse: bool = False
) -> Float[Tensor, "b n d"]:
    """Compute a gated sum, from the last place to the first if ``reverse``.

    The sequence is cut into segments, which are summed from zero side by side. What each passes on
    then reaches the places of the next through the product of the gates before them. There are only
    products and sums, so that a gate may be zero.
    """
    batch, length, dim = x.shape
    num_segments = count_segments(x)
    per_segment = -(-length // num_segments)
    sums = x.new_zeros((batch, num_segments * per_segment, dim))
    sums[:, :length] = x
    gate = F.pad(gate, (0, 0, 0, sums.shape[1] - length))
    gate, sums = (
        rearrange(t, "b (segment n) d -> n b segment d", n=per_segment) for t in (gate, sums)
    )
    order = -1 if reverse else 1
    places = sums.unbind()[::order]
    add_gated(gate.unbind()[::order], places)
    if num_segments > 1:
        product = gate.clone()
        products = product.unbind()[::order]
        for before, now in pairwise(products):
            now *= before
        passed_on = places[-1].clone()
        add_gated(products[-1].unbind(dim=1)[::order], passed_on.unbind(dim=1)[::order])
        sums.addcmul_(product, F.pad(passed_on, (0, 0, -1, 1) if reverse else (0, 0, 1, -1)))
    return rearrange(sums, "n b segment d -> b (segment n) d")[:, :length]


def add_gated(gates: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """Add to each sum the one before it times its gate, in place, from the second on."""
    for gate, (before, now) in zip(gates[1:], pairwise(sums), strict=True):
        torch.addcmul(now, gate, before, out=now)


def count_segments(x: Float[Tensor, "b n d"]) -> int:
    """Count the segments to sum side by side.

    Places of a segment take an operation each, and so do segments. A GPU has room for all
    segments, so that the fewest operations are best; on a CPU more segments only move more memory.
    """
    batch, length, dim = x.shape
    fewest_operations = max(1, isqrt(length))
    if x.device.type != "cpu":
        return fewest_operations
    return min(fewest_operations, max(1, NUM_FEATURES_AT_ONCE // max(1, batch * dim)))
