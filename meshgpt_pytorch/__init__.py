"""MeshGPT: meshes to tokens, tokens to new meshes, optionally from text.

The public names, in the order in which data flows through them: read, canonical, batch, tokenize,
model, sample, train, write, evaluate. Each is loaded on first use, so that importing the package
costs next to nothing and a user of the mesh functions never waits for the models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meshgpt_pytorch.version import __version__

if TYPE_CHECKING:
    from meshgpt_pytorch.data import (
        DatasetFromTransforms as DatasetFromTransforms,
        MeshDataset as MeshDataset,
        cache_face_edges_for_dataset as cache_face_edges_for_dataset,
        cache_text_embeds_for_dataset as cache_text_embeds_for_dataset,
        custom_collate as custom_collate,
    )
    from meshgpt_pytorch.evaluation import (
        contact_sheet as contact_sheet,
        matching_faces as matching_faces,
        render_mesh as render_mesh,
        triangle_accuracy as triangle_accuracy,
    )
    from meshgpt_pytorch.mesh import (
        Mesh as Mesh,
        MeshFileError as MeshFileError,
        canonicalize_mesh as canonicalize_mesh,
        derive_face_edges_from_faces as derive_face_edges_from_faces,
        faces_to_mesh as faces_to_mesh,
        inspect_mesh as inspect_mesh,
        load_mesh as load_mesh,
        save_mesh as save_mesh,
        simplify_mesh as simplify_mesh,
    )
    from meshgpt_pytorch.prepare import prepare_meshes as prepare_meshes
    from meshgpt_pytorch.recipes import (
        AutoencoderRecipe as AutoencoderRecipe,
        quick_recipe as quick_recipe,
    )
    from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder as MeshAutoencoder
    from meshgpt_pytorch.trainer import (
        MeshAutoencoderTrainer as MeshAutoencoderTrainer,
        MeshTransformerTrainer as MeshTransformerTrainer,
    )
    from meshgpt_pytorch.transformer.model import MeshTransformer as MeshTransformer
    from meshgpt_pytorch.transformer.text import (
        AutoModelEncoder as AutoModelEncoder,
        EncodedText as EncodedText,
        T5Encoder as T5Encoder,
        TextEncoder as TextEncoder,
        minilm_path as minilm_path,
    )

MODULE_OF_NAME = {
    # read
    "Mesh": "mesh",
    "MeshFileError": "mesh",
    "load_mesh": "mesh",
    "prepare_meshes": "prepare",
    "inspect_mesh": "mesh",
    "simplify_mesh": "mesh",
    # canonical
    "canonicalize_mesh": "mesh",
    "derive_face_edges_from_faces": "mesh",
    # batch
    "MeshDataset": "data",
    "DatasetFromTransforms": "data",
    "cache_text_embeds_for_dataset": "data",
    "cache_face_edges_for_dataset": "data",
    "custom_collate": "data",
    # tokenize
    "MeshAutoencoder": "tokenizers.autoencoder",
    # model and sample
    "MeshTransformer": "transformer.model",
    "TextEncoder": "transformer.text",
    "EncodedText": "transformer.text",
    "T5Encoder": "transformer.text",
    "AutoModelEncoder": "transformer.text",
    "minilm_path": "transformer.text",
    # train
    "MeshAutoencoderTrainer": "trainer",
    "AutoencoderRecipe": "recipes",
    "quick_recipe": "recipes",
    "MeshTransformerTrainer": "trainer",
    # write
    "faces_to_mesh": "mesh",
    "save_mesh": "mesh",
    # evaluate
    "render_mesh": "evaluation",
    "contact_sheet": "evaluation",
    "triangle_accuracy": "evaluation",
    "matching_faces": "evaluation",
}

# reachable as attributes after `import meshgpt_pytorch` alone
SUBMODULES = frozenset(
    {"checkpoint", "data", "evaluation", "mesh", "meshgpt_pytorch", "modes", "tokenizers"}
    | {"prepare", "recipes", "trainer", "training", "transformer", "typing", "version"}
)

__all__ = ["__version__", *MODULE_OF_NAME]


def __getattr__(name: str) -> Any:
    """Load a public name, or a part of the package, when it is first asked for."""
    if name in MODULE_OF_NAME:
        value = getattr(import_module(f"{__name__}.{MODULE_OF_NAME[name]}"), name)
        globals()[name] = value
        return value
    if name in SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names before they are loaded, for tab completion."""
    return sorted({*globals(), *__all__, *SUBMODULES})
