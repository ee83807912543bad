"""Models small enough to run at once, a text encoder, and random codes."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.transformer.text import EncodedText

AnyModule = TypeVar("AnyModule", bound=nn.Module)

TEXTS = ["a chair", "a table with four legs", "sofa"]
CODEBOOK_SIZE = 32
EOS = CODEBOOK_SIZE


class LetterEncoder:
    """Embeds each letter of a text, so that the words of a text are all in its encoding."""

    def __init__(self, dim_latent: int = 12) -> None:
        self.dim_latent = dim_latent

    def embed(self, texts: list[str]) -> EncodedText:
        length = max(map(len, texts))
        ids = torch.tensor([[ord(letter) for letter in f"{text:{length}}"] for text in texts])
        mask = torch.tensor([[i < len(text) for i in range(length)] for text in texts])
        return EncodedText((ids[..., None] * torch.arange(1, self.dim_latent + 1)).sin(), mask)


def make_autoencoder(**options: Any) -> MeshAutoencoder:
    """An autoencoder that was not trained, but tells vertices apart."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_discrete_coors": 32,
        "dim_coor_embed": 4,
        "dim_area_embed": 4,
        "dim_normal_embed": 4,
        "dim_angle_embed": 4,
        "encoder_dims_through_depth": (8, 8),
        "decoder_dims_through_depth": (8, 8),
        "dim_codebook": 8,
        "codebook_size": CODEBOOK_SIZE,
    }
    return unsettle(MeshAutoencoder(**{**sizes, **options}), noise=0.3)


def make_transformer(
    *, num_quantizers: int = 2, autoencoder: MeshAutoencoder | None = None, **options: Any
) -> MeshTransformer:
    """A transformer in eval mode, of two coarse and one fine layers, and up to 12 faces."""
    quads = options.get("quads", False)
    if autoencoder is None:
        autoencoder = make_autoencoder(quads=quads, num_quantizers=num_quantizers)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dim": 16,
        "max_seq_len": 12 * autoencoder.num_vertices_per_face * autoencoder.num_quantizers,
        "attn_depth": 2,
        "attn_dim_head": 8,
        "attn_heads": 2,
        "fine_attn_depth": 1,
        "coarse_pre_gateloop_depth": 1,
        "fine_pre_gateloop_depth": 1,
    }
    model = MeshTransformer(autoencoder, **{**sizes, **options})
    return unsettle(model).eval()


def make_text_transformer(**options: Any) -> MeshTransformer:
    return make_transformer(
        **{"condition_on_text": True, "text_encoder": LetterEncoder(), **options}
    )


def unsettle(model: AnyModule, noise: float = 0.2) -> AnyModule:
    """Move weights away from where they start: FiLM and the norms start without any effect."""
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def random_codes(
    model: MeshTransformer, num_faces: float, *, batch: int = 3, seed: int = 0
) -> Tensor:
    """Codes of meshes, ``b n``; not always whole faces."""
    generator = torch.Generator().manual_seed(seed)
    length = int(num_faces * model.num_codes_per_face)
    return torch.randint(0, model.codebook_size, (batch, length), generator=generator)


def end_early(model: MeshTransformer, codes: Tensor) -> Tensor:
    """Pad each row after the first one face earlier than the row before."""
    codes = codes.clone()
    for row in range(1, len(codes)):
        codes[row, codes.shape[1] - row * model.num_codes_per_face :] = model.pad_id
    return codes


def logits_of(model: MeshTransformer, codes: Tensor, **inputs: Any) -> Tensor:
    """Predict all codes, and the one after the last, in one pass."""
    return model.forward_on_codes(codes, return_loss=False, append_eos=False, **inputs)


def prefixes(codes: Tensor, start: int = 0) -> Iterator[Tensor]:
    """The first ``start`` codes of each row, and then one more each time, to all of them."""
    for length in range(start, codes.shape[1] + 1):
        yield codes[:, :length]


class EndRowsAfter:
    """A filter_logits_fn that ends each row after as many faces as it is told, and not before.

    The logits of other ids are left as they are; what is asked for at which position is counted.
    """

    def __init__(
        self, model: MeshTransformer, num_faces: list[int], *, num_prompted: int = 0
    ) -> None:
        self.end_positions = torch.tensor(num_faces) * model.num_codes_per_face
        self.eos_token_id = model.eos_token_id
        self.position = num_prompted

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, self.eos_token_id] = -torch.inf
        logits[self.end_positions == self.position, self.eos_token_id] = 1e4
        self.position += 1
        return logits
