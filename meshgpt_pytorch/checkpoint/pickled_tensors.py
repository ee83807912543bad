"""Read files of torch.save without executing anything, and in no more memory than their size."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from meshgpt_pytorch.checkpoint.errors import CheckpointError


def read_pickled_tensors(path: Path) -> Any:
    """Read plain containers, values and tensors onto the CPU, with torch's weights-only reader.

    Raises:
        CheckpointError: the file would take far more memory than it is large.
        Exception: whatever torch raises of a file that is damaged or holds more than plain values:
            OSError, RuntimeError, UnpicklingError, EOFError.
    """
    check_size(path)
    return torch.load(path, map_location="cpu", weights_only=True)


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
