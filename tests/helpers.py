"""Small meshes, batches and reference vectors for the tests."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meshgpt_pytorch.mesh import Mesh

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
FURNITURE = ROOT / "examples" / "data" / "furniture_adaptive.npz"

BOX_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))


@contextmanager
def counting_saved_bytes() -> Iterator[list[int]]:
    """Count the bytes that autograd keeps for the backward pass, in an entry of a list.

    A tensor that is kept in several places counts once; weights count too.
    """
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # held, so that no other tensor takes its place in memory
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def box_mesh(quads: bool = False, size: Sequence[float] = (1.0, 0.5, 0.75)) -> Mesh:
    """A closed box about the origin with outward faces: 8 vertices, 12 triangles or 6 quads."""
    corners = [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    faces = torch.tensor(BOX_QUADS)
    if not quads:
        faces = torch.stack((faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]), dim=1).flatten(0, 1)
    return Mesh(torch.tensor(corners) * torch.tensor(size), faces)


def pyramid_mesh() -> Mesh:
    """A closed pyramid on a square base, apex up: 5 vertices, 6 triangles."""
    vertices = [[-0.9, -0.7, -0.9], [0.9, -0.7, -0.9], [0.9, -0.7, 0.9], [-0.9, -0.7, 0.9]]
    vertices.append([0.0, 0.8, 0.0])
    faces = [[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]]
    return Mesh(torch.tensor(vertices), torch.tensor(faces))


def tetrahedron_mesh() -> Mesh:
    """A closed tetrahedron: 4 vertices, 4 triangles."""
    vertices = [[0.8, 0.8, 0.8], [-0.8, -0.8, 0.8], [-0.8, 0.8, -0.8], [0.8, -0.8, -0.8]]
    faces = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
    return Mesh(torch.tensor(vertices), torch.tensor(faces))


def pad_batch(meshes: Sequence[Mesh]) -> tuple[Tensor, Tensor]:
    """Batch meshes: vertices (b, nv, 3) padded with 0, faces (b, nf, nvf) padded with -1."""
    vertices = pad_sequence([mesh.vertices for mesh in meshes], batch_first=True)
    faces = pad_sequence([mesh.faces for mesh in meshes], batch_first=True, padding_value=-1)
    return vertices, faces


def signed_volume(mesh: Mesh) -> float:
    """Volume inside a closed mesh; positive where its faces look outward. Quads are fanned."""
    corners = mesh.vertices.double()[mesh.faces]
    fans = [corners[:, [0, i, i + 1]] for i in range(1, corners.shape[1] - 1)]
    return sum(float(torch.linalg.det(fan).sum()) for fan in fans) / 6


@dataclass(frozen=True)
class Golden:
    """Reference vectors of one case, as tests/golden/README.md names them."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    versions: dict[str, str]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under "prefix.", without it: with_prefix("state") is the state dict."""
        prefix = f"{prefix}."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def read_golden(name: str) -> Golden:
    """Read tests/golden/<name>.safetensors."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    return Golden(tensors, json.loads(metadata["config"]), json.loads(metadata["versions"]))


def save_small_t5(folder: Path, words: Sequence[str]) -> None:
    """Save a random T5 of width 16 and a tokenizer that knows some words, as a hub folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from meshgpt_pytorch.transformer.text_libraries import import_transformers

    transformers = import_transformers()
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
