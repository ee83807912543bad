"""Models of either package, by the same arguments."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from benchmarks.upstream import use_as_t5
from benchmarks.workload import Context
from meshgpt_pytorch import MeshAutoencoder, MeshTransformer

SEED = 0
TEXT_WIDTH = 768

# upstream's default but for its four residual streams, which the installed x-transformers breaks
ATTN_KWARGS = MappingProxyType(
    {
        "ff_glu": True,
        "attn_num_mem_kv": 4,
        "add_value_residual": True,
        "learned_value_residual_mix": True,
        "num_residual_streams": 1,
    }
)

# the autoencoder does nothing in most rows of the transformer: it lends its codebook
SMALL_AUTOENCODER: Mapping[str, Any] = MappingProxyType(
    {"encoder_dims_through_depth": (16, 16), "decoder_dims_through_depth": (16, 16)}
)

SMALL_SIZE: Mapping[str, Any] = MappingProxyType(
    {"dim": 64, "attn_depth": 2, "attn_heads": 2, "attn_dim_head": 32}
)
TINY_SIZE: Mapping[str, Any] = MappingProxyType(
    {"dim": 16, "attn_depth": 1, "attn_heads": 2, "attn_dim_head": 8}
)


class TextEncoderStandIn:
    """An encoder of text that has a width alone: rows with text give the embeddings."""

    def __init__(self, name: str | None = None, **options: Any) -> None:
        self.dim_latent = TEXT_WIDTH

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Refuse: nobody encodes a text here."""
        raise NotImplementedError("text rows pass text_embeds")


def text_arguments() -> dict[str, Any]:
    """Return the arguments that give a transformer of this package the stand-in encoder."""
    if "text_encoder" in inspect.signature(MeshTransformer.__init__).parameters:
        return {"condition_on_text": True, "text_encoder": TextEncoderStandIn()}
    # it takes encoders by name alone
    use_as_t5(TextEncoderStandIn)
    return {"condition_on_text": True}


def build_autoencoder(context: Context, **arguments: Any) -> MeshAutoencoder:
    """Build an autoencoder with the shared weights."""
    torch.manual_seed(SEED)
    return context.share(MeshAutoencoder(**arguments))


def build_transformer(
    context: Context, max_seq_len: int, *, with_text: bool = False, **arguments: Any
) -> MeshTransformer:
    """Build a transformer with the shared weights over the default codebook."""
    torch.manual_seed(SEED)
    text = text_arguments() if with_text else {}
    model = MeshTransformer(
        MeshAutoencoder(**SMALL_AUTOENCODER),
        max_seq_len=max_seq_len,
        attn_kwargs=dict(ATTN_KWARGS),
        **text,
        **arguments,
    )
    return context.share(model)


def random_codes(model: MeshTransformer, batch: int, num_codes: int) -> Tensor:
    """Draw codes ``b n``, the same on each call."""
    generator = torch.Generator().manual_seed(SEED)
    codes = torch.randint(model.codebook_size, (batch, num_codes), generator=generator)
    return codes.to(model.to_logits.weight.device)
