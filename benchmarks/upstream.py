"""What upstream needs beside its package: a torchvision that can be imported, a text encoder."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

VERSION = "1.8.1"

# operators are there as long as the library that defined them
_libraries: list[Any] = []


def allow_torchvision() -> None:
    """Let a torchvision built for CUDA be imported beside a torch built without.

    Upstream imports it, and on a torch without CUDA the import fails because its operators are not
    there. Nothing here calls them, so that their signatures will do.
    """
    try:
        fits = version("torchvision").endswith("+cpu") or not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return
    if fits or _libraries:
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def use_as_t5(encoder: type) -> None:
    """Let upstream build this text encoder where it would build T5, which it would download."""
    from classifier_free_guidance_pytorch import classifier_free_guidance_pytorch as guidance

    guidance.CONDITION_CONFIG["t5"] = encoder
