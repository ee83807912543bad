"""Tell a text encoder again that a file of weights names and does not hold.

A model reads one encoder's embeddings; those of another of the same width are noise to it, which
nothing else would show.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch.nn import Module

from meshgpt_pytorch.data.fingerprints import (
    describes_itself,
    fingerprint_weights,
    tensor_bytes,
)

# of each matrix; training changes all rows, and a large encoder is told in milliseconds
SAMPLED_ROWS = 8
SAMPLED_BYTES = 1 << 20


class EncoderIdentity(NamedTuple):
    """What is known of an encoder without loading it."""

    kind: str
    # on the hub, a path, or what the encoder says of itself
    name: str | None
    # fingerprint; None where the weights are not on this machine, or are not known
    weights: str | None

    def __str__(self) -> str:
        return self.kind if self.name is None else f"{self.name} ({self.kind})"

    def is_same(self, other: "EncoderIdentity") -> bool | None:
        """Tell whether two are one encoder, wherever it lies; None: it cannot be told."""
        if self.weights is not None and other.weights is not None:
            return self.weights == other.weights
        if self.name is None:
            return True if (self.kind, None) == (other.kind, other.name) else None
        return True if self.name == other.name else None


def identify(encoder: Any) -> EncoderIdentity:
    """Say what is known of an encoder.

    Args:
        encoder: any text encoder. Ours have ``name_or_path`` and ``fingerprint_weights``; a module
            is known by its weights, any other by its ``__repr__`` or else by its class.
    """
    kind = type(encoder).__name__
    if isinstance(encoder, Module):
        return EncoderIdentity(kind, None, fingerprint_weights(encoder))
    fingerprint = getattr(encoder, "fingerprint_weights", lambda: None)()
    name = repr(encoder) if describes_itself(encoder) else None
    name = getattr(encoder, "name_or_path", name)
    return EncoderIdentity(kind, name, fingerprint)


def read_identity(facts: Mapping[str, Any]) -> EncoderIdentity:
    """Take an identity out of a file; what a later version may add is passed over."""
    return EncoderIdentity(*(facts.get(name) for name in EncoderIdentity._fields))  # type: ignore[arg-type]


def fingerprint_pretrained(name_or_path: str) -> str | None:
    """Hash samples of the weights of a saved model, the same wherever its files lie.

    Args:
        name_or_path: folder that ``save_pretrained`` of transformers wrote, or a name on the hub.

    Returns:
        sha256, hexadecimal; None where there are no readable weights on this machine.
    """
    folder = find_folder(name_or_path)
    if folder is None:
        return None
    digest = hashlib.sha256()
    try:
        samples = sorted(sample_weights(folder))
    except (OSError, SafetensorError):
        return None
    for sample in samples:
        digest.update(sample)
    return digest.hexdigest() if samples else None


def find_folder(name_or_path: str) -> Path | None:
    """Return the folder of a saved model, or the one in the hub's cache, if there is one."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    try:
        config = try_to_load_from_cache(name_or_path, "config.json")
    except HFValidationError:  # a path that is not there
        return None
    return Path(config).parent if isinstance(config, str) else None


def sample_weights(folder: Path) -> Iterator[bytes]:
    """Yield a part of each tensor, or of each file of an older format."""
    paths = list(folder.glob("model*.safetensors"))
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                is_matrix = len(part.get_shape()) > 1
                tensor = part[:SAMPLED_ROWS] if is_matrix else file.get_tensor(name)
                yield f"{name} {part.get_shape()} ".encode() + tensor_bytes(tensor)
    if paths:
        return
    for path in folder.glob("pytorch_model*.bin"):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(SAMPLED_BYTES)
            # a zip file ends with the checksums of all that is in it
            file.seek(max(0, size - SAMPLED_BYTES))
            yield f"{path.name} {size} ".encode() + head + file.read()
