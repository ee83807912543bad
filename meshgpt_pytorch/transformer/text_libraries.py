"""Import the text libraries on first use: they cost seconds, and meshes alone need none of them.

Both end up importing torchvision, which fails where its build does not match torch's, as when a
CPU torch meets the registry's CUDA torchvision. Text needs none of its operators, so the missing
ones are declared, and torchvision imports (and still refuses to run them).
"""

import sys
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

# torchvision registers fake kernels for these two and fails if its C++ library did not load
TORCHVISION_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_torchvision_operators() -> list[str]:
    """Declare those operators that torchvision asks for at import and that torch does not know.

    Returns:
        the names that were missing, empty where torchvision's own library is loaded.
    """
    missing = [name for name in TORCHVISION_SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", TORCHVISION_SCHEMAS[name])
    return missing


@cache
def import_torchvision() -> ModuleType | None:
    """Import torchvision, also where its build does not match the one of torch.

    Returns:
        the module, or None where torchvision is not installed, which suits transformers.

    Raises:
        RuntimeError: torchvision fails for another reason than its missing operators.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        operator_is_missing = "operator torchvision::" in str(error)
        if not operator_is_missing:
            raise RuntimeError(
                f"text needs a torchvision that imports with torch {torch.__version__}, got "
                f"{error}; install the torchvision build that matches it"
            ) from error
    declare_torchvision_operators()
    # the failed import left submodules behind that a second one would take for complete
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return import_module("torchvision")


@cache
def import_transformers() -> ModuleType:
    """Import transformers, after torchvision so that its models can be loaded.

    Returns:
        the module; its models are found even if they could not be imported before this call.
    """
    import_torchvision()
    return import_module("transformers")


@cache
def import_guidance_library() -> ModuleType:
    """Import classifier-free-guidance-pytorch, which brings transformers and open_clip (5 s).

    Returns:
        the module ``classifier_free_guidance_pytorch``.
    """
    import_transformers()
    with warnings.catch_warnings():
        # beartype's advice about the library's own annotations, nothing that a user can follow
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return import_module("classifier_free_guidance_pytorch")
