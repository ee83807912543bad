"""Small models, samples and options for training runs of a few steps."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.transformer.text import EncodedText
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh

MESHES = (
    box_mesh(),
    pyramid_mesh(),
    tetrahedron_mesh(),
    box_mesh(size=(0.3, 0.9, 0.6)),
    box_mesh(size=(0.2, 0.2, 0.9)),
)

# of `make_autoencoder`, whose codebook has 16 codes
QUANTIZERS: Mapping[str, Mapping[str, Any]] = {
    "lfq": {},
    "rvq": {"quantizer": "rvq"},
    "simvq": {"quantizer": "simvq"},
    "fsq": {"quantizer": "fsq", "fsq_levels": (4, 2, 2)},
    "recipe": {
        "quantizer": "fsq",
        "fsq_levels": (4, 2, 2),
        "vertex_shortcut": True,
        "vertex_consistent": True,
    },
}


class Samples(Dataset[Any]):
    """Meshes as dicts, tuples or lists, with more in them than a model takes."""

    def __init__(self, meshes: tuple[Mesh, ...] = MESHES, kind: type = dict, **more: Any) -> None:
        self.meshes = meshes
        self.kind = kind
        self.more = more

    def __len__(self) -> int:
        return len(self.meshes)

    def __getitem__(self, index: int) -> Any:
        mesh = self.meshes[index]
        if self.kind is dict:
            return {**mesh._asdict(), **self.more}
        return self.kind((*mesh, *self.more.values()))


class LetterEncoder:
    """Embeds each letter of a text."""

    dim_latent = 8

    def embed(self, texts: list[str]) -> EncodedText:
        length = max(map(len, texts))
        ids = torch.tensor([[ord(letter) % 8 for letter in f"{t:{length}}"] for t in texts])
        mask = torch.tensor([[i < len(text) for i in range(length)] for text in texts])
        return EncodedText(nn.functional.one_hot(ids, 8).float(), mask)


def make_autoencoder(**kwargs: Any) -> MeshAutoencoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_dims_through_depth": (8, 8),
        "decoder_dims_through_depth": (8, 8),
        "dim_codebook": 8,
        "codebook_size": 16,
        "dim_coor_embed": 4,
        "dim_area_embed": 4,
        "dim_normal_embed": 4,
        "dim_angle_embed": 4,
    }
    return MeshAutoencoder(**{**sizes, **kwargs})


def make_transformer(autoencoder: MeshAutoencoder | None = None, **kwargs: Any) -> MeshTransformer:
    autoencoder = make_autoencoder() if autoencoder is None else autoencoder
    sizes: dict[str, Any] = {
        "dim": 16,
        "max_seq_len": 72,
        "attn_depth": 1,
        "attn_dim_head": 8,
        "attn_heads": 2,
        "fine_attn_depth": 1,
        "coarse_pre_gateloop_depth": 1,
        "fine_pre_gateloop_depth": 1,
    }
    return MeshTransformer(autoencoder, **{**sizes, **kwargs})


def make_text_transformer(**kwargs: Any) -> MeshTransformer:
    return make_transformer(condition_on_text=True, text_encoder=LetterEncoder(), **kwargs)


def small_run(tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset": Samples(),
        "num_train_steps": 4,
        "batch_size": 2,
        "grad_accum_every": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "checkpoint_folder": tmp_path / "checkpoints",
        "accelerator_kwargs": {"cpu": True},
        "progress": False,
        "seed": 0,
    }


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "faces_per_second"} for record in history]


def flatten(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """List what containers hold, and where."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from flatten(item, (*place, key))
    else:
        yield place, value
