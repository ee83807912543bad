"""Tensors and plain values <-> files: safetensors for models, torch.save for training states.

Nothing in a file is ever executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meshgpt_pytorch.checkpoint.atomic import PathLike, atomic_path
from meshgpt_pytorch.version import __version__

FORMAT = "meshgpt-pytorch"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A file of weights that cannot be read, or does not fit the model."""


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict; a tensor that it lists under several names is stored once."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[tuple[object, ...], str] = {}

    for name, tensor in state.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = first_names.setdefault(memory, name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
            continue
        tensor = tensor.detach().contiguous().cpu()
        # safetensors refuses a view into memory that another tensor uses too
        is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
        stored[name] = tensor.clone() if is_view else tensor

    save_file(stored, path, metadata={**metadata, "aliases": json.dumps(aliases)})


class SavedFile(NamedTuple):
    """What a model's file holds."""

    tensors: dict[str, Tensor]
    class_name: str
    description: dict[str, Any]


def read_model_file(path: PathLike) -> SavedFile:
    """Read a file that `SavedModule.save` wrote, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is of another kind, from a newer version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" or start[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a pickle (torch.save), wanted a safetensors file written by save(); for a "
            f"file of meshgpt-pytorch 1.x build the model with the same "
            f"arguments, call model.load_state_dict(torch.load(path, weights_only=True)['model']), "
            f"and save it"
        )

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); it may have been cut short while "
            f"it was copied: copy or save it again"
        ) from error

    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} lacks the header of a {FORMAT} model, got format "
            f"{metadata.get('format')!r}; load plain tensors with model.load_state_dict(...)"
        )
    if int(metadata["format_version"]) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata['format_version']}, written by {FORMAT} "
            f"{metadata['library_version']}; version {__version__} reads up to {FORMAT_VERSION}: "
            f"upgrade {FORMAT}"
        )

    for name, first in json.loads(metadata["aliases"]).items():
        tensors[name] = tensors[first]
    return SavedFile(tensors, metadata["class"], json.loads(metadata["config"]))


def save_training_state(path: PathLike, state: Mapping[str, Any]) -> None:
    """Write plain containers, numbers and tensors (optimizer, step, random states), in one step."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_training_state(path: PathLike) -> dict[str, Any]:
    """Read what `save_training_state` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than plain values.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises OSError, RuntimeError, UnpicklingError or EOFError
        raise CheckpointError(
            f"{path} is not a readable training state ({type(error).__name__}: {error}); resume "
            f"from another checkpoint"
        ) from error
    return state
