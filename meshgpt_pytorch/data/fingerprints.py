"""Name a tensor, a model or an encoder in a short string, so that a cache knows its maker."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from meshgpt_pytorch.mesh import Mesh


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return dtype, shape and contents of a tensor on any device as bytes."""
    values = tensor.detach().cpu().contiguous()
    return f"{values.dtype} {tuple(values.shape)} ".encode() + (
        values.reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def fingerprint_tensor(tensor: Tensor, *facts: object) -> str:
    """Hash a tensor together with facts whose repr tells them apart (sha256, hexadecimal)."""
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def hash_mesh(mesh: Mesh) -> str:
    """Hash the vertices and faces of a mesh (sha256, hexadecimal), whatever integers its faces are.

    Args:
        mesh: one mesh, without padding.
    """
    digest = hashlib.sha256(tensor_bytes(mesh.vertices.float()))
    digest.update(tensor_bytes(mesh.faces.int()))
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """Hash a text (sha256, hexadecimal)."""
    # names of files can hold halves of characters
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def fingerprint_weights(model: Any) -> str:
    """Hash a model's state dict and, where it has one, the description of how it was built.

    Args:
        model: has ``state_dict()``, and perhaps ``description``: what JSON can hold of its
            constructor's arguments.

    Returns:
        sha256, hexadecimal. Equal for equal weights on any device.
    """
    description = getattr(model, "description", type(model).__name__)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode())
    state: Mapping[str, Any] = model.state_dict()
    for name in sorted(state):
        value = state[name]
        digest.update(f"\n{name} ".encode())
        digest.update(tensor_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def describes_itself(encoder: object) -> bool:
    """Tell whether an object's ``__repr__`` says more than where in memory it is."""
    return type(encoder).__repr__ not in (object.__repr__, torch.nn.Module.__repr__)


def fingerprint_encoder(encoder: object) -> str:
    """Name a text encoder: by its weights if it is a module, else by its own ``__repr__``.

    Args:
        encoder: any text encoder.

    Returns:
        a string that is equal for equal encoders. One that is no module and has only the
        ``__repr__`` of every object gets a new name at each call, so it never passes for another.
    """
    name = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    if isinstance(encoder, torch.nn.Module):
        return f"{name} {fingerprint_weights(encoder)}"
    if not describes_itself(encoder):
        return f"{name} {uuid4().hex}"
    return f"{name} {encoder!r}"
