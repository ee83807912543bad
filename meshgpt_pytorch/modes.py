"""Switch a model's mode for a while, and put every part of it back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import Module


@contextmanager
def evaluating(*modules: Module) -> Iterator[None]:
    """Run a block with modules in eval mode; each submodule's own mode returns after it.

    Args:
        modules: modules to evaluate. Frozen parts that were in eval mode already stay there.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        # a mode costs more to set than to look at, and mostly all is in eval mode already
        if any(training for _, training in modes):
            for module in modules:
                module.eval()
        yield
    finally:
        for part, training in modes:
            if part.training != training:
                part.training = training
