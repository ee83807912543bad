"""Tensors of which each process holds a share (DTensor), put together and shared out again."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def is_shared(value: Any) -> bool:
    """Tell whether a value is a DTensor, without the second that importing the class takes."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def gather_shares(value: Any) -> Any:
    """Put together every shared tensor in nested containers; to be called by every process.

    Args:
        value: mappings, lists, tuples, tensors and whatever else, alike in all processes.

    Returns:
        a copy of the containers; what was shared is whole, and on the CPU.
    """
    if is_shared(value):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: gather_shares(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(gather_shares(item) for item in value)
    return value


def share_as(value: Any, other: Any) -> Any:
    """Take this process's share of a whole tensor, if another of its shape is shared.

    Args:
        value: the same in all processes; what is no tensor of that shape comes back as it is.
        other: parameter, or part of a state dict, that says who has which share.
    """
    if not is_shared(other) or not isinstance(value, Tensor) or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # each process has the whole: nothing need be sent
    return distribute_tensor(
        value.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )
