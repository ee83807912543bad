"""Write the files beside this script: what meshgpt-pytorch 1.8.1 saves, and what it computes.

Run once, in an environment of its own that has upstream and not this package:

    pip install meshgpt-pytorch==1.8.1
    python tests/golden/upstream_files/make_upstream_files.py tests/golden/upstream_files

``expected.safetensors`` holds one mesh (``vertices``, ``faces``), a text (``text_embeds``), and
for each file the codes of that mesh and the logits of those codes.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# torchvision's CUDA build declares operators that a CPU torch lacks, and fails to import without
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from classifier_free_guidance_pytorch import classifier_free_guidance_pytorch as guidance  # noqa: E402

from meshgpt_pytorch import (  # noqa: E402
    MeshAutoencoder,
    MeshAutoencoderTrainer,
    MeshTransformer,
    MeshTransformerTrainer,
)

DIM_TEXT = 8
ONE_STREAM = {"ff_glu": True, "attn_num_mem_kv": 4}


class StubEncoder:
    """Stands in for BGE, which would be downloaded."""

    dim_latent = DIM_TEXT
    max_text_len = 4

    def __init__(self, name: str | None, text_embed_pad_value: float) -> None:
        pass


def make_autoencoder(**kwargs: Any) -> MeshAutoencoder:
    """Build a small autoencoder; its first argument comes by place."""
    sizes: dict[str, Any] = {
        "encoder_dims_through_depth": (4,),
        "decoder_dims_through_depth": (4, 4),
        "dim_codebook": 4,
        "codebook_size": 16,
        "dim_coor_embed": 2,
        "dim_area_embed": 2,
        "dim_normal_embed": 2,
        "dim_angle_embed": 2,
    }
    return MeshAutoencoder(32, **{**sizes, **kwargs})


def make_transformer(autoencoder: MeshAutoencoder, **kwargs: Any) -> MeshTransformer:
    """Build a small transformer."""
    sizes: dict[str, Any] = {
        "dim": 8,
        "max_seq_len": 72,
        "attn_depth": 1,
        "attn_dim_head": 4,
        "attn_heads": 2,
        "fine_attn_depth": 1,
        "coarse_pre_gateloop_depth": 1,
        "fine_pre_gateloop_depth": 1,
        "attn_kwargs": ONE_STREAM,
    }
    return MeshTransformer(autoencoder, **{**sizes, **kwargs})


def box() -> tuple[Tensor, Tensor]:
    """Make a box: vertices "1 8 3", faces "1 12 3"."""
    corners = [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = [[face for a, b, c, d in quads for face in ([a, b, c], [a, c, d])]]
    return torch.tensor([corners]) * torch.tensor([0.9, 0.5, 0.75]), torch.tensor(faces)


def outputs(
    name: str, model: MeshAutoencoder | MeshTransformer, text_embeds: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute what the tests compare."""
    vertices, faces = box()
    is_autoencoder = isinstance(model, MeshAutoencoder)
    autoencoder = model if is_autoencoder else model.autoencoder
    codes = autoencoder.tokenize(vertices=vertices, faces=faces)
    if is_autoencoder:
        faces_again, _ = model.eval().decode_from_codes_to_faces(codes)
        return {f"{name}.codes": codes, f"{name}.faces": faces_again.contiguous()}
    texts = {} if text_embeds is None else {"text_embeds": text_embeds}
    with torch.no_grad():
        logits = model.eval().forward_on_codes(codes, return_loss=False, append_eos=False, **texts)
    return {f"{name}.codes": codes, f"{name}.logits": logits.contiguous()}


class Boxes(torch.utils.data.Dataset):
    """Two times the box."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        vertices, faces = box()
        return {"vertices": vertices[0], "faces": faces[0]}


def run_trainer(trainer_class: type, model: torch.nn.Module, path: Path) -> None:
    """Train two steps and save."""
    trainer = trainer_class(
        model=model,
        dataset=Boxes(),
        num_train_steps=2,
        batch_size=2,
        grad_accum_every=1,
        warmup_steps=0,
        learning_rate=1e-2,
        checkpoint_every=1000,
        checkpoint_folder=str(path.parent / "unused"),
        accelerator_kwargs={"cpu": True},
    )
    trainer()
    trainer.save(path)
    (path.parent / "unused").rmdir()


def write_autoencoders(folder: Path) -> dict[str, Tensor]:
    """Write files of `save`, of the hub and of the trainer."""
    expected: dict[str, Tensor] = {}
    torch.manual_seed(0)
    heads = {"dim_head": 4, "heads": 2}
    model = make_autoencoder(
        attn_encoder_depth=1,
        attn_decoder_depth=1,
        local_attn_kwargs=heads,
        linear_attn_kwargs=heads,
    )
    model.save(folder / "autoencoder_lfq.pt")
    expected |= outputs("autoencoder_lfq", model)

    model = make_autoencoder(use_residual_lfq=False)
    vertices, faces = box()
    model(vertices=vertices, faces=faces)
    model.save(folder / "autoencoder_rvq.pt")
    expected |= outputs("autoencoder_rvq", model)

    model = make_autoencoder()
    (folder / "hub").mkdir(exist_ok=True)
    model.save(folder / "hub" / "mesh-autoencoder.bin")
    expected |= outputs("hub_autoencoder", model)

    model = make_autoencoder()
    run_trainer(MeshAutoencoderTrainer, model, folder / "autoencoder_trainer.pt")
    return expected | outputs("autoencoder_trainer", model)


def write_transformers(folder: Path) -> dict[str, Tensor]:
    """Write files of `save`, of the hub and of the trainer."""
    expected: dict[str, Tensor] = {}
    torch.manual_seed(1)
    model = make_transformer(make_autoencoder(), fine_attn_dim_head=2, fine_attn_heads=1)
    model.save(folder / "transformer.pt")
    expected |= outputs("transformer", model)

    model = make_transformer(make_autoencoder(), coarse_post_gateloop_depth=1)
    model.save(folder / "transformer_post_gateloop.pt")
    expected |= outputs("transformer_post_gateloop", model)

    sizes = {"dim": 4, "attn_kwargs": {**ONE_STREAM, "num_residual_streams": 4}}
    make_transformer(make_autoencoder(), **sizes).save(folder / "transformer_streams.pt")

    model = make_transformer(make_autoencoder())
    run_trainer(MeshTransformerTrainer, model, folder / "transformer_trainer.pt")
    expected |= outputs("transformer_trainer", model)

    guidance.CONDITION_CONFIG["bge"] = StubEncoder
    text_embeds = torch.randn(1, 3, DIM_TEXT)
    model = make_transformer(
        make_autoencoder(codebook_size=32),
        coarse_pre_gateloop_depth=2,
        fine_pre_gateloop_depth=2,
        fine_cross_attend_text=True,
        num_sos_tokens=1,
        condition_on_text=True,
        text_condition_model_types=("bge",),
        text_condition_cond_drop_prob=0.0,
    )
    model.save(folder / "hub" / "mesh-transformer.bin")
    return expected | outputs("hub_transformer", model, text_embeds) | {"text_embeds": text_embeds}


def write_rounded_codebook(folder: Path) -> dict[str, Tensor]:
    """Write models that were asked for 12 codes, of which lookup-free quantisation makes 8."""
    torch.manual_seed(2)
    autoencoder = make_autoencoder(codebook_size=12)
    autoencoder.save(folder / "autoencoder_12_codes.pt")
    model = make_transformer(make_autoencoder(codebook_size=12))
    model.save(folder / "transformer_12_codes.pt")
    expected = outputs("autoencoder_12_codes", autoencoder)
    return expected | outputs("transformer_12_codes", model)


def main(folder: Path) -> None:
    """Write everything into a folder."""
    vertices, faces = box()
    expected = {"vertices": vertices, "faces": faces}
    expected |= write_autoencoders(folder) | write_transformers(folder)
    expected |= write_rounded_codebook(folder)
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
