"""Write upstream_signatures.json: what meshgpt-pytorch 1.8.1 lets its callers pass.

Run once, in an environment of its own that has upstream and not this package:

    pip install meshgpt-pytorch==1.8.1
    python tests/golden/make_upstream_signatures.py tests/golden/upstream_signatures.json

For each public class the constructor, methods and properties, and for each public function, the
parameters in order: name, kind, and the default where there is one. Tuples are written as lists; a
default that JSON cannot hold (a function) is written as null under the key "unwritable".
"""

import inspect
import json
import sys
from collections.abc import Callable
from types import GenericAlias
from typing import Any

import torch

# torchvision's CUDA build declares operators that a CPU torch lacks, and fails to import without
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from meshgpt_pytorch import data, meshgpt_pytorch, trainer  # noqa: E402

CLASSES = (
    meshgpt_pytorch.MeshAutoencoder,
    meshgpt_pytorch.MeshTransformer,
    trainer.MeshAutoencoderTrainer,
    trainer.MeshTransformerTrainer,
    data.DatasetFromTransforms,
)
FUNCTIONS = (
    data.cache_text_embeds_for_dataset,
    data.cache_face_edges_for_dataset,
    data.custom_collate,
    data.derive_face_edges_from_faces,
    meshgpt_pytorch.discretize,
    meshgpt_pytorch.undiscretize,
    meshgpt_pytorch.get_derived_face_features,
    meshgpt_pytorch.gaussian_blur_1d,
    meshgpt_pytorch.scatter_mean,
)


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Find the function of upstream that decorators without functools.wraps hide."""
    if function.__module__.startswith("meshgpt_pytorch"):
        return inspect.unwrap(function)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    hidden = [value for value in cells if inspect.isfunction(value)]
    return innermost(hidden[0]) if hidden else function


def describe_default(default: Any) -> dict[str, Any]:
    """Write a default as JSON, if it can be; a type is no default, but a slip for an annotation."""
    if isinstance(default, type | GenericAlias):
        return {}
    try:
        return {"default": json.loads(json.dumps(default))}
    except TypeError:
        return {"unwritable": None}


def describe_parameters(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """List the parameters of a function or method, without self."""
    rows = []
    for parameter in inspect.signature(innermost(function)).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        row: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not inspect.Parameter.empty:
            row.update(describe_default(parameter.default))
        rows.append(row)
    return rows


def describe_class(cls: type) -> dict[str, Any]:
    """List the public members that a class defines itself, its constructor among them."""
    members: dict[str, Any] = {}
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_"):
            members[name] = "property"
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            members[name] = describe_parameters(function)
    return members


def main(path: str) -> None:
    """Write the signatures of all public classes and functions to a file."""
    signatures = {
        "classes": {cls.__name__: describe_class(cls) for cls in CLASSES},
        "functions": {function.__name__: describe_parameters(function) for function in FUNCTIONS},
    }
    with open(path, "w") as file:
        json.dump(signatures, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
