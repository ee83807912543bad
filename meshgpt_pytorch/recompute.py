"""Activation checkpointing: make activations again in the backward pass instead of keeping them."""

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
Result = TypeVar("Result")


def run_checkpointed(part: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Run a part of a model so that only its inputs are kept for the backward pass.

    The backward pass runs it a second time, with the random numbers of the first. (Chen et al.
    2016, 1604.06174.)

    Args:
        part: module or function; must compute the same when it is called again.
        args, kwargs: its arguments.

    Returns:
        what the part returns.
    """
    if not torch.is_grad_enabled():
        return part(*args, **kwargs)
    result: Result = checkpoint(partial(part, *args, **kwargs), use_reentrant=False)
    return result


class PartRunner(Module):
    """A module that keeps the inputs of its parts alone, if asked to."""

    checkpoint_activations: bool = False

    def run_part(self, part: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run a part, and keep or drop what the backward pass needs of its inside."""
        if self.checkpoint_activations:
            return run_checkpointed(part, *args, **kwargs)
        return part(*args, **kwargs)
