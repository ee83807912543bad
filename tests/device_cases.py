"""Models, a batch and a step that tests of devices go through: simulated ones and real ones."""

from typing import Any

import torch
from torch import Tensor, nn

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from tests.helpers import box_mesh, pad_batch, pyramid_mesh

TEXTS = ["a box", "a roof"]
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "lookup_free": {"attn_encoder_depth": 1, "attn_decoder_depth": 1},
    "codebook": {"use_residual_lfq": False},
    "recomputed": {"checkpoint_quantizer": True, "num_quantizers": 1},
    "quads": {"quads": True},
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all_of_text": {
        "dim": (16, 24),
        "text_cond_with_film": True,
        "coarse_adaptive_rmsnorm": True,
        "fine_cross_attend_text": True,
        "coarse_post_gateloop_depth": 1,
        "gateloop_use_heinsen": True,
    },
}


def mesh_batch(quads: bool = False, device: str = "cpu") -> dict[str, Tensor]:
    """Two meshes of different sizes, with their edges."""
    meshes = [box_mesh(quads), box_mesh(quads, (0.3, 0.9, 0.6)) if quads else pyramid_mesh()]
    vertices, faces = pad_batch(meshes)
    edges = derive_face_edges_from_faces(faces)
    batch = {"vertices": vertices, "faces": faces, "face_edges": edges}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of a model, on the CPU."""
    named = model.named_parameters()
    return {name: each.grad.cpu() for name, each in named if each.grad is not None}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, **batch: Any) -> None:
    """Take a training step, without reading its loss."""
    model(**batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
