"""The grid: continuous values to bins, and bins back to their centres."""

import torch
from torch import Tensor

from meshgpt_pytorch.typing import typecheck

__all__ = ["discretize", "undiscretize"]


def range_bounds(continuous_range: tuple[float, float], num_discrete: int) -> tuple[float, float]:
    """Return the ends of a range, after checking that it can be cut into bins."""
    low, high = continuous_range
    if not low < high:
        raise ValueError(f"continuous_range must be (low, high) with low < high, got {(low, high)}")
    if num_discrete < 1:
        raise ValueError(f"num_discrete must be at least 1 bin, got {num_discrete}")
    return low, high


@typecheck
def discretize(
    t: Tensor, *, continuous_range: tuple[float | int, float | int], num_discrete: int = 128
) -> Tensor:
    """Find the bin of each value: ``round((t - low) / (high - low) * num_discrete - 0.5)``.

    Args:
        t: values of any shape and dtype. Half precision is computed in float32.
        continuous_range: (low, high), cut into equal bins; values outside go to the end bins.
        num_discrete: number of bins.

    Returns:
        int64 bins in ``[0, num_discrete)``, of the shape of ``t``. A tie goes to the even bin, nan
        to bin 0 on every device.

    Raises:
        ValueError: the range is empty, or there is no bin.
    """
    low, high = range_bounds(continuous_range, num_discrete)
    if t.dtype != torch.float64:
        t = t.float()
    bins = ((t - low) / (high - low) * num_discrete - 0.5).round()
    # clamped as floats: integers overflow, and what they make of nan differs between devices
    return bins.nan_to_num(nan=0.0).clamp(min=0, max=num_discrete - 1).long()


@typecheck
def undiscretize(
    t: Tensor, *, continuous_range: tuple[float | int, float | int], num_discrete: int = 128
) -> Tensor:
    """Return the centre of each bin.

    Args:
        t: bins of any shape, integers or whole (or expected) bins as floats.
        continuous_range: (low, high) as given to `discretize`.
        num_discrete: number of bins.

    Returns:
        float32 values within the range, of the shape of ``t``.

    Raises:
        ValueError: the range is empty, or there is no bin.
    """
    low, high = range_bounds(continuous_range, num_discrete)
    return (t.float() + 0.5) / num_discrete * (high - low) + low
