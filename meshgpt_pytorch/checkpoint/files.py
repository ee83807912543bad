"""Tensors and plain values <-> files: safetensors for models, torch.save for training states.

Nothing in a file is ever executed.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meshgpt_pytorch.checkpoint.atomic import PathLike, atomic_path
from meshgpt_pytorch.checkpoint.errors import CheckpointError
from meshgpt_pytorch.checkpoint.pickled_tensors import read_pickled_tensors
from meshgpt_pytorch.checkpoint.upstream import (
    UNTRAINED_PREFIX,
    is_upstream_file,
    read_upstream_file,
)
from meshgpt_pytorch.version import __version__

FORMAT = "meshgpt-pytorch"
FORMAT_VERSION = 1


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict; a tensor that it lists under several names is stored once.

    Raises:
        OSError: the file cannot be written.
    """
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

    path.touch()
    permissions = path.stat().st_mode
    try:
        save_file(stored, path, metadata={**metadata, "aliases": json.dumps(aliases)})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}); is the disk full?") from error
    # safetensors makes files that their owner alone can read, whatever the umask
    path.chmod(permissions)


class SavedFile(NamedTuple):
    """What a model's file holds."""

    tensors: dict[str, Tensor]
    class_name: str
    # the class and the constructor's arguments, given the model classes by name; read when asked
    # for, so that the weights of a file with arguments that cannot be read still load
    describe: Callable[[Mapping[str, type]], dict[str, Any]]
    # what tells objects again that a file cannot hold; see SavedModule.transient_facts
    transient_facts: dict[str, Any]
    # start of the names of weights that a model without them may leave out
    optional_prefix: str | None = None


def read_model_file(path: PathLike) -> SavedFile:
    """Read a file that `SavedModule.save` wrote, or one of 1.x, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is of another kind, from a newer version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    if is_upstream_file(path):
        upstream = read_upstream_file(path)
        return SavedFile(
            upstream.tensors, upstream.class_name, upstream.describe, {}, UNTRAINED_PREFIX
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

    return parse_header(path, metadata, tensors)


def parse_header(path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> SavedFile:
    """Read what the header of a file says of its tensors, and restore those stored once."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} lacks the header of a {FORMAT} model, got format "
            f"{metadata.get('format')!r}; load plain tensors with model.load_state_dict(...)"
        )
    try:
        version = int(metadata["format_version"])
        if version <= FORMAT_VERSION:
            for name, first in json.loads(metadata["aliases"]).items():
                tensors[name] = tensors[first]
            description = json.loads(metadata["config"])
            checked = {
                "class": description["class"],
                "config": {**description["config"]},
                "not_saved": [*description["not_saved"]],
            }
            facts = {**json.loads(metadata.get("transient_facts", "{}"))}
            name = metadata["class"]
            return SavedFile(tensors, name, lambda _: checked, facts)
    # of text that is no JSON, or of other JSON than is written
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the header of {path} is not one that {FORMAT} writes ({type(error).__name__}: "
            f"{error}); copy or save the file again"
        ) from error
    raise CheckpointError(
        f"{path} has format version {version}, written by {FORMAT} "
        f"{metadata.get('library_version')}; version {__version__} reads up to {FORMAT_VERSION}: "
        f"upgrade {FORMAT}"
    )


def save_training_state(path: PathLike, state: Mapping[str, Any]) -> None:
    """Write plain containers, numbers and tensors (optimizer, step, random states), in one step.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # of torch's zip writer
            raise OSError(f"{path} could not be written ({error}); is the disk full?") from error


def load_training_state(path: PathLike) -> dict[str, Any]:
    """Read what `save_training_state` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than plain values.
    """
    try:
        state: dict[str, Any] = read_pickled_tensors(Path(path))
    except CheckpointError:
        raise
    except Exception as error:  # torch raises OSError, RuntimeError, UnpicklingError or EOFError
        raise CheckpointError(
            f"{path} is not a readable training state ({type(error).__name__}: {error}); resume "
            f"from another checkpoint"
        ) from error
    return state
