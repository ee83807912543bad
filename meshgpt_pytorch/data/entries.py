"""A folder of tensors on disk, one file for each key, that several processes may fill at once."""

import hashlib
import os
import warnings
from pathlib import Path
from uuid import uuid4

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor


class EntryFolder:
    """Keep tensors under keys, each in a safetensors file of its own, in its own dtype.

    A file gets its name only once it is whole, so an interrupted write leaves nothing that could
    be read; writers of the same key write the same thing, and the last one stays.

    Args:
        path: the folder. Made when the first entry is written.
        read_only: never write.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only

    def path_of(self, key: str) -> Path:
        """Return the file of a key, a string of any kind and length."""
        return self.path / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def get(self, key: str) -> Tensor | None:
        """Read a tensor, or None where there is none; a damaged file is reported and ignored."""
        path = self.path_of(key)
        try:
            return safetensors.torch.load(path.read_bytes())["entry"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError) as error:
            warnings.warn(f"{path} is damaged and is made anew: {error}", stacklevel=2)
            return None

    def put(self, key: str, tensor: Tensor) -> None:
        """Write a tensor in one step.

        Raises:
            OSError: the folder cannot be written; nothing is left behind.
        """
        if self.read_only:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{uuid4().hex}.tmp"
        try:
            temporary.write_bytes(safetensors.torch.save({"entry": tensor.contiguous()}))
            os.replace(temporary, self.path_of(key))
        finally:
            temporary.unlink(missing_ok=True)

    def __len__(self) -> int:
        return sum(1 for _ in self.path.glob("*.safetensors"))
