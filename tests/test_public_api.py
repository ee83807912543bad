"""What code written against meshgpt-pytorch 1.8.1 relies on: names, arguments, cheap imports."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import meshgpt_pytorch
from tests.helpers import GOLDEN, ROOT

UPSTREAM = json.loads((GOLDEN / "upstream_signatures.json").read_text())
MODULE_OF_FUNCTION = {
    "cache_text_embeds_for_dataset": "data",
    "cache_face_edges_for_dataset": "data",
    "custom_collate": "data",
    "derive_face_edges_from_faces": "data",
    "discretize": "meshgpt_pytorch",
    "undiscretize": "meshgpt_pytorch",
    "get_derived_face_features": "meshgpt_pytorch",
    "gaussian_blur_1d": "meshgpt_pytorch",
    "scatter_mean": "meshgpt_pytorch",
}

# every path that downstream code imports from
FIXED_IMPORTS = (
    ("meshgpt_pytorch", "MeshAutoencoder"),
    ("meshgpt_pytorch", "MeshTransformer"),
    ("meshgpt_pytorch", "MeshAutoencoderTrainer"),
    ("meshgpt_pytorch", "MeshTransformerTrainer"),
    ("meshgpt_pytorch", "DatasetFromTransforms"),
    ("meshgpt_pytorch", "cache_text_embeds_for_dataset"),
    ("meshgpt_pytorch", "cache_face_edges_for_dataset"),
    ("meshgpt_pytorch.data", "derive_face_edges_from_faces"),
    ("meshgpt_pytorch.data", "custom_collate"),
    ("meshgpt_pytorch.data", "DatasetFromTransforms"),
    ("meshgpt_pytorch.trainer", "MeshAutoencoderTrainer"),
    ("meshgpt_pytorch.trainer", "MeshTransformerTrainer"),
    ("meshgpt_pytorch.version", "__version__"),
    ("meshgpt_pytorch.typing", "Float"),
    ("meshgpt_pytorch.typing", "Int"),
    ("meshgpt_pytorch.typing", "Bool"),
    ("meshgpt_pytorch.typing", "typecheck"),
    ("meshgpt_pytorch.typing", "beartype_isinstance"),
    ("meshgpt_pytorch.meshgpt_pytorch", "MeshAutoencoder"),
    ("meshgpt_pytorch.meshgpt_pytorch", "MeshTransformer"),
    ("meshgpt_pytorch.meshgpt_pytorch", "discretize"),
    ("meshgpt_pytorch.meshgpt_pytorch", "undiscretize"),
    ("meshgpt_pytorch.meshgpt_pytorch", "get_derived_face_features"),
    ("meshgpt_pytorch.meshgpt_pytorch", "gaussian_blur_1d"),
    ("meshgpt_pytorch.meshgpt_pytorch", "scatter_mean"),
)

# what differs on purpose; docs/upstream.md has a row with each of these words in backticks
DIFFERENT_ON_PURPOSE = {
    ("MeshTransformer", "__init__", "attn_kwargs"): "num_residual_streams",
    ("MeshTransformer", "__init__", "fine_attn_dim_head"): "fine_attn_dim_head",
    ("MeshTransformer", "__init__", "fine_attn_heads"): "fine_attn_heads",
    ("MeshTransformer", "__init__", "max_seq_len"): "max_seq_len",
    ("MeshTransformer", "forward_on_codes", "codes"): "forward_on_codes",
    ("MeshAutoencoderTrainer", "__init__", "max_grad_norm"): "max_grad_norm",
}
REMOVED_ON_PURPOSE = {
    ("MeshAutoencoderTrainer", "next_data_to_forward_kwargs"),
    ("MeshTransformerTrainer", "next_data_to_forward_kwargs"),
}


@pytest.mark.parametrize("name", meshgpt_pytorch.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(meshgpt_pytorch, name) is not None


def test_star_import_brings_every_public_name():
    namespace: dict[str, Any] = {}
    exec("from meshgpt_pytorch import *", namespace)
    assert set(meshgpt_pytorch.__all__) <= namespace.keys()


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'meshgpt_pytorch' has no attribute 'MeshGan'"):
        _ = meshgpt_pytorch.MeshGan


def test_names_complete_before_they_are_loaded():
    assert set(meshgpt_pytorch.__all__) <= set(dir(meshgpt_pytorch))


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "meshgpt_pytorch" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module).removeprefix("meshgpt_pytorch.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == meshgpt_pytorch.MODULE_OF_NAME


@pytest.mark.parametrize(("module", "name"), FIXED_IMPORTS)
def test_import_paths_of_upstream_hold(module: str, name: str):
    assert getattr(import_module(module), name) is not None


def test_version_is_that_of_the_installed_distribution():
    assert meshgpt_pytorch.__version__ == version("meshgpt-pytorch")


def modules_after(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter; list the top-level modules that are loaded then."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


TEXT_LIBRARIES = {
    "classifier_free_guidance_pytorch",
    "open_clip",
    "sentence_transformers",
    "torchvision",
    "transformers",
}


def test_importing_the_package_loads_no_model_and_no_text_library():
    loaded = modules_after("import meshgpt_pytorch")
    assert not loaded & (TEXT_LIBRARIES | {"x_transformers", "torch_geometric", "trimesh"})


def test_importing_the_models_loads_no_text_library():
    names = "MeshAutoencoder, MeshTransformer, MeshAutoencoderTrainer, MeshTransformerTrainer"
    # transformers is let through: torch_geometric imports it where it is installed
    libraries = TEXT_LIBRARIES - {"transformers"}
    assert not modules_after(f"from meshgpt_pytorch import {names}") & libraries


def test_reading_a_mesh_loads_no_model():
    loaded = modules_after("from meshgpt_pytorch import load_mesh, canonicalize_mesh, save_mesh")
    assert not loaded & (TEXT_LIBRARIES | {"x_transformers", "torch_geometric"})


def test_parts_are_reachable_after_a_plain_import():
    modules_after(
        "import meshgpt_pytorch as m\n"
        "m.data.custom_collate, m.trainer.MeshAutoencoderTrainer, m.typing.Float\n"
        "m.meshgpt_pytorch.discretize, m.version.__version__"
    )


def upstream_functions() -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """List upstream's public functions and methods: owner, name, parameters."""
    for owner, members in UPSTREAM["classes"].items():
        for name, parameters in members.items():
            if parameters != "property" and (owner, name) not in REMOVED_ON_PURPOSE:
                yield owner, name, parameters
    for name, parameters in UPSTREAM["functions"].items():
        yield "", name, parameters


def find(owner: str, name: str) -> Callable[..., Any]:
    """Find this package's function or method of that name."""
    if owner:
        return getattr(getattr(meshgpt_pytorch, owner), name)
    return getattr(import_module(f"meshgpt_pytorch.{MODULE_OF_FUNCTION[name]}"), name)


def own_parameters(owner: str, name: str) -> dict[str, inspect.Parameter]:
    """List the parameters of this package's function, without self."""
    parameters = inspect.signature(find(owner, name)).parameters
    return {key: value for key, value in parameters.items() if key not in ("self", "cls")}


def plain(value: Any) -> Any:
    """Spell a default as JSON does: tuples as lists, mappings as dicts; no options as None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()} or None
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def named(parameters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out *args and **kwargs, which name nothing."""
    return [row for row in parameters if not row["kind"].startswith("VAR_")]


CASES = [pytest.param(*case, id=".".join(case[:2]).strip(".")) for case in upstream_functions()]


@pytest.mark.parametrize(("owner", "name", "parameters"), CASES)
def test_every_argument_of_upstream_is_accepted(
    owner: str, name: str, parameters: list[dict[str, Any]]
):
    ours = own_parameters(owner, name)
    assert [row["name"] for row in named(parameters) if row["name"] not in ours] == []


@pytest.mark.parametrize(("owner", "name", "parameters"), CASES)
def test_defaults_are_those_of_upstream(owner: str, name: str, parameters: list[dict[str, Any]]):
    ours = own_parameters(owner, name)
    different = {
        row["name"]: plain(ours[row["name"]].default)
        for row in named(parameters)
        if "default" in row
        and (owner, name, row["name"]) not in DIFFERENT_ON_PURPOSE
        and plain(ours[row["name"]].default) != plain(row["default"])
    }
    assert different == {}


@pytest.mark.parametrize(("owner", "name", "parameters"), CASES)
def test_positional_arguments_keep_their_places(
    owner: str, name: str, parameters: list[dict[str, Any]]
):
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ours = [key for key, value in own_parameters(owner, name).items() if value.kind in positional]
    theirs = [row["name"] for row in parameters if row["kind"] == "POSITIONAL_OR_KEYWORD"]
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize(("owner", "name", "parameters"), CASES)
def test_nothing_new_is_required(owner: str, name: str, parameters: list[dict[str, Any]]):
    optional = {row["name"] for row in parameters if {"default", "unwritable"} & row.keys()}
    ours = own_parameters(owner, name)
    required = {
        key
        for key in optional
        if ours[key].default is inspect.Parameter.empty
        and (owner, name, key) not in DIFFERENT_ON_PURPOSE
    }
    assert required == set()


@pytest.mark.parametrize(("owner", "name", "parameters"), CASES)
def test_new_arguments_are_optional_and_by_keyword(
    owner: str, name: str, parameters: list[dict[str, Any]]
):
    known = {row["name"] for row in parameters}
    gathered = any(row["kind"].startswith("VAR_") for row in parameters)
    new = {key: value for key, value in own_parameters(owner, name).items() if key not in known}
    wrong = {
        key
        for key, value in new.items()
        if value.kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        or value.default is inspect.Parameter.empty
    }
    # what upstream gathers in *args and **kwargs may have names here
    assert gathered or wrong == set()


@pytest.mark.parametrize("owner", UPSTREAM["classes"])
def test_every_property_of_upstream_is_there(owner: str):
    cls = getattr(meshgpt_pytorch, owner)
    names = [name for name, what in UPSTREAM["classes"][owner].items() if what == "property"]
    assert [name for name in names if not hasattr(cls, name)] == []


def test_every_difference_has_a_row_in_the_documents():
    rows = [
        line
        for line in Path(ROOT / "docs" / "upstream.md").read_text().splitlines()
        if line.startswith("|")
    ]
    missing = [
        word for word in DIFFERENT_ON_PURPOSE.values() if not any(f"`{word}" in row for row in rows)
    ]
    assert missing == []


def test_every_difference_is_one():
    defaults = {
        (owner, name, row["name"]): plain(row.get("default"))
        for owner, name, parameters in upstream_functions()
        for row in parameters
    }
    removed = [
        key for key in REMOVED_ON_PURPOSE if hasattr(getattr(meshgpt_pytorch, key[0]), key[1])
    ]
    same = [
        key
        for key in DIFFERENT_ON_PURPOSE
        if plain(own_parameters(*key[:2])[key[2]].default) == defaults[key]
    ]
    assert same + removed == []
