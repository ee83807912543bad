"""Read files of torch.save without executing anything, and in no more memory than their size."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meshgpt_pytorch.checkpoint.errors import CheckpointError


def read_pickled_tensors(path: Path) -> Any:
    """Read plain containers, values and tensors onto the CPU, with torch's weights-only reader.

    Raises:
        CheckpointError: the file would take far more memory than it is large.
        Exception: whatever torch raises of a file that is damaged or holds more than plain values:
            OSError, RuntimeError, UnpicklingError, EOFError.
    """
    check_size(path)
    value = torch.load(path, map_location="cpu", weights_only=True)
    check_tensors(value, path)
    return value


def check_size(path: Path) -> None:
    """Refuse a zip file whose contents are larger than itself; torch.save does not compress."""
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(record.file_size for record in file.infolist())
    except (OSError, zipfile.BadZipFile):  # torch says what is wrong, or reads an older format
        return
    if size > path.stat().st_size:
        raise CheckpointError(
            f"{path} must hold what torch.save wrote, which is not compressed, got "
            f"{path.stat().st_size} bytes that unpack to {size}; ask for a copy made by torch.save"
        )


def check_tensors(value: Any, path: Path) -> None:
    """Refuse tensors with more numbers than their memory holds, such as repeated ones."""
    parts, seen = [value], set()
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            parts += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple, set, frozenset)):
            parts += part
        elif isinstance(part, Tensor):
            is_plain = part.layout == torch.strided and part.device.type == "cpu"
            size = part.numel() * part.element_size()
            if not is_plain or size > part.untyped_storage().nbytes():
                raise CheckpointError(
                    f"tensors in {path} must be stored whole, got one of shape "
                    f"{tuple(part.shape)} that is not; ask for a copy made of tensor.contiguous()"
                )
