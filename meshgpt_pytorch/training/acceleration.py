"""Set up accelerate: devices, processes, mixed precision and trackers."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    is_wandb_available,
)


def build_accelerator(
    accelerator_kwargs: Mapping[str, Any] | None, *, use_wandb_tracking: bool
) -> Accelerator:
    """Make an accelerator.

    Args:
        accelerator_kwargs: arguments of ``accelerate.Accelerator``; left as they are.
        use_wandb_tracking: log with wandb.

    Raises:
        ImportError: wandb is asked for and not installed.
    """
    kwargs = dict(accelerator_kwargs or {})
    if use_wandb_tracking:
        if not is_wandb_available():
            raise ImportError(
                "use_wandb_tracking=True needs wandb, which is not installed; "
                "pip install 'meshgpt-pytorch[tracking]'"
            )
        kwargs["log_with"] = "wandb"
    # a step may pass over parameters: those of a null text, where no text was dropped
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    kwargs.setdefault("kwargs_handlers", [unused])
    return Accelerator(**kwargs)


def common_seed(seed: int | None) -> int:
    """Return the given seed, or one drawn from torch's generator, alike in all processes."""
    if seed is not None:
        return seed
    drawn = [int(torch.randint(2**31, ()).item())]
    return int(broadcast_object_list(drawn)[0])
