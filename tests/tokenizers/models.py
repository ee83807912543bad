"""Small autoencoders of every kind, and batches of real meshes for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.helpers import box_mesh, pad_batch

TINY: Mapping[str, Any] = {
    "num_discrete_coors": 32,
    "dim_coor_embed": 8,
    "num_discrete_area": 16,
    "dim_area_embed": 4,
    "num_discrete_normals": 16,
    "dim_normal_embed": 8,
    "num_discrete_angle": 16,
    "dim_angle_embed": 4,
    "encoder_dims_through_depth": (16, 24),
    "decoder_dims_through_depth": (16, 16, 24),
    "dim_codebook": 12,
    "codebook_size": 64,
    "local_attn_window_size": 8,
    "local_attn_kwargs": {"dim_head": 8, "heads": 2},
    "linear_attn_kwargs": {"dim_head": 4, "heads": 2},
}

ATTENTION = {"attn_encoder_depth": 1, "attn_decoder_depth": 1}
# codebooks without k-means, dead codes and sampling: nothing in them is random
PLAIN_RVQ = {
    "use_residual_lfq": False,
    "codebook_size": 16,
    "rvq_kwargs": {},
    "rvq_stochastic_sample_codes": False,
}

FSQ = {"quantizer": "fsq", "fsq_levels": (8, 4, 2)}

KINDS: Mapping[str, Mapping[str, Any]] = {
    "lfq": {},
    "lfq, attention": ATTENTION,
    "rvq": PLAIN_RVQ,
    "rvq, attention": {**PLAIN_RVQ, **ATTENTION},
    "simvq": {"quantizer": "simvq"},
    "fsq": FSQ,
    "fsq, shortcut": {**FSQ, "vertex_shortcut": True},
    "fsq, shortcut, consistent": {**FSQ, "vertex_shortcut": True, "vertex_consistent": True},
    "lfq, consistent": {"vertex_consistent": True},
    "quads": {"quads": True},
    "quads, attention": {"quads": True, **ATTENTION},
    "quads, rvq": {"quads": True, **PLAIN_RVQ},
    "quads, fsq, shortcut, consistent": {
        "quads": True,
        **FSQ,
        "vertex_shortcut": True,
        "vertex_consistent": True,
    },
}


def tiny_autoencoder(kind: str = "lfq", **options: Any) -> MeshAutoencoder:
    """Build a tiny autoencoder, the same at every call, whose codes differ between vertices."""
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(**{**TINY, **KINDS[kind], **options})
    # as initialised, what all vertices have in common decides nearly all codes
    with torch.no_grad():
        autoencoder.project_dim_codebook.bias.zero_()
        autoencoder.project_dim_codebook.weight.mul_(8)
        for conv in (autoencoder.init_sage_conv, *autoencoder.encoders):
            conv.lin_l.bias.zero_()
        for weight in autoencoder.encoder_attn_blocks.parameters():
            weight.mul_(0.5)
        # closed, the gates would hide what the networks compute
        if autoencoder.vertex_shortcut is not None:
            autoencoder.vertex_shortcut.encoder_gate.fill_(1.0)
            autoencoder.vertex_shortcut.decoder_gate.fill_(1.0)
    return autoencoder


def quad_meshes() -> list[Mesh]:
    """A long box, an open box, and a box with two faces left; 6, 5 and 2 quads."""
    long, open_box, flat = (
        box_mesh(True),
        box_mesh(True, (0.9, 0.9, 0.3)),
        box_mesh(True, (1.0, 1.0, 1.0)),
    )
    return [long, Mesh(open_box.vertices, open_box.faces[:5]), Mesh(flat.vertices, flat.faces[3:5])]


def small_furniture(furniture: Sequence[Mesh]) -> list[Mesh]:
    """Four of the smallest furniture meshes, of different sizes: 12 to 32 faces."""
    by_size = sorted(furniture, key=lambda mesh: len(mesh.faces))
    return [by_size[place] for place in (0, 5, 7, 10)]


def meshes_for(kind: str, furniture: Sequence[Mesh]) -> list[Mesh]:
    """Meshes that a kind of autoencoder reads."""
    return quad_meshes() if "quads" in kind else small_furniture(furniture)


def batch_for(kind: str, furniture: Sequence[Mesh]) -> tuple[Tensor, Tensor]:
    """The same as one padded batch."""
    return pad_batch(meshes_for(kind, furniture))
