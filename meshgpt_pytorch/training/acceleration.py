"""Set up accelerate: devices, processes, mixed precision and trackers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    is_wandb_available,
)
from torch.nn import Module

COMPILER = "inductor"


def build_accelerator(
    accelerator_kwargs: Mapping[str, Any] | None,
    *,
    use_wandb_tracking: bool,
    find_unused_parameters: bool = False,
) -> Accelerator:
    """Make an accelerator.

    Args:
        accelerator_kwargs: arguments of ``accelerate.Accelerator``; left as they are.
        use_wandb_tracking: log with wandb.
        find_unused_parameters: let processes look for parameters that a step left out, which
            costs time; without it such a step is an error.

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
    if find_unused_parameters:
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        kwargs.setdefault("kwargs_handlers", [unused])
    return Accelerator(**kwargs)


def common_seed(seed: int | None) -> int:
    """Return the given seed, or one drawn from torch's generator, alike in all processes."""
    if seed is not None:
        return seed
    drawn = [int(torch.randint(2**31, ()).item())]
    return int(broadcast_object_list(drawn)[0])


def compile_parts(parts: Iterable[Module]) -> None:
    """Compile parts of a model in place, for lengths that change; names of weights stay.

    What reads values or derives graphs stays outside of the parts, so that each is one graph.
    """
    for part in parts:
        part.compile(dynamic=True, backend=COMPILER)
