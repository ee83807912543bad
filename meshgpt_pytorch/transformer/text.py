"""Condition a model on text: encodings with masks, a trained projection, dropping of whole texts.

Padding is what the mask says, wherever a mask is at hand; in tensors that travel alone, such as
upstream's text_embeds, a row of -1 is padding. It never enters a mean or an attention.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import Linear, Module, ModuleList

from meshgpt_pytorch.mesh import holds
from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.transformer.text_encoders import (
    PAD_VALUE,
    AutoModelEncoder,
    EncodedText,
    GuidanceLibraryEncoder,
    T5Encoder,
    TextEncoder,
    build_text_encoders,
    minilm_path,
)
from meshgpt_pytorch.typing import typecheck

__all__ = [
    "AutoModelEncoder",
    "EncodedText",
    "GuidanceLibraryEncoder",
    "T5Encoder",
    "TextConditioner",
    "TextEncoder",
    "build_text_encoders",
    "masked_mean",
    "minilm_path",
]


@typecheck
def masked_mean(tensor: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """Average over tokens, in float32 or wider.

    Args:
        tensor: embeddings of tokens; those outside the mask may be anything, also nan.
        mask: True where a token counts.

    Returns:
        the mean "b d" in the tensor's dtype, zero where no token counts.
    """
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    wide = wide.masked_fill(~rearrange(mask, "b n -> b n 1"), 0.0)
    count = rearrange(mask.sum(dim=1), "b -> b 1").clamp(min=1)
    return (reduce(wide, "b n d -> b d", "sum") / count).to(tensor.dtype)


class TextConditioner(Module):
    """Encode texts with frozen encoders and project them, trainably, to one width.

    The encoders are not part of the state dict, nor of what ``.to()`` and ``.parameters()`` see;
    they follow the module to its device when they are used.

    Args:
        encoders: one or more; their tokens are concatenated.
        cond_drop_prob: probability, 0 to 1, that a text is dropped in training.
        pad_value: what fills the rows of padding in embeddings.

    Raises:
        ValueError: no encoder, not an encoder, or not a probability.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        *,
        cond_drop_prob: float = 0.25,
        pad_value: float = PAD_VALUE,
    ) -> None:
        super().__init__()
        check_probability(cond_drop_prob)
        self.encoders = list(encoders)
        if not self.encoders:
            raise ValueError("encoders must hold a text encoder, got none; pass [T5Encoder()]")
        for encoder in self.encoders:
            if not isinstance(encoder, TextEncoder):
                raise ValueError(
                    "a text encoder must have dim_latent and embed(texts), got a "
                    f"{type(encoder).__name__}; see meshgpt_pytorch.transformer.text.TextEncoder"
                )
        self.cond_drop_prob = cond_drop_prob
        self.pad_value = pad_value
        self.latent_dims = [encoder.dim_latent for encoder in self.encoders]
        self.dim_latent = max(self.latent_dims)
        self.to_latent_dims = ModuleList([Linear(dim, self.dim_latent) for dim in self.latent_dims])

    @property
    def device(self) -> torch.device:
        """Device of the projection, where results are."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return next(self.to_latent_dims.parameters())

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode texts, without gradient; this is what a data set caches.

        Args:
            texts: b texts.

        Returns:
            for each encoder its embeddings "b n d" on the module's device, in the encoder's dtype
            and with pad_value in the rows of padding, and their mask "b n".

        Raises:
            ValueError: texts are not a list of strings, or an encoder's result has a wrong shape.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"texts must be a list of strings, got {texts!r}; pass a single text as [text]"
            )
        if not texts:
            raise ValueError("texts must hold a text, got none; pass one for each mesh")
        return [self._encode_with(encoder, list(texts)) for encoder in self.encoders]

    @torch.no_grad()
    def _encode_with(self, encoder: TextEncoder, texts: list[str]) -> EncodedText:
        if hasattr(encoder, "to"):
            encoder.to(self.device)
        with evaluating(encoder) if isinstance(encoder, Module) else nullcontext():
            embeddings, mask = encoder.embed(texts)
        wanted = (len(texts), mask.shape[-1], encoder.dim_latent)
        if embeddings.shape != wanted or mask.shape != wanted[:2]:
            raise ValueError(
                f"{type(encoder).__name__}.embed must return embeddings and mask of shapes "
                f"{wanted} and {wanted[:2]}, got {tuple(embeddings.shape)} and "
                f"{tuple(mask.shape)}; its dim_latent is {encoder.dim_latent}"
            )
        embeddings, mask = embeddings.to(self.device), mask.to(self.device, torch.bool)
        return EncodedText(self._fill_padding(embeddings, mask), mask)

    def _fill_padding(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return embeddings.masked_fill(~rearrange(mask, "b n -> b n 1"), self.pad_value)

    def project(self, encodings: Sequence[EncodedText]) -> EncodedText:
        """Project encodings to dim_latent, and concatenate the tokens of all encoders.

        Args:
            encodings: for each encoder its embeddings "b n d" and mask "b n", as from `encode` or
                `read_encodings`.

        Returns:
            embeddings "b n dim_latent" in the projection's dtype (autocast's under autocast),
            with pad_value in the rows of padding, and their mask "b n".

        Raises:
            ValueError: not one for each encoder.
        """
        self._check_one_for_each_encoder(len(encodings))
        projected = [
            self._fill_padding(to_latent(embeddings.to(self._weight)), mask.to(self.device))
            for to_latent, (embeddings, mask) in zip(self.to_latent_dims, encodings, strict=True)
        ]
        masks = [mask.to(self.device) for _, mask in encodings]
        return EncodedText(torch.cat(projected, dim=1), torch.cat(masks, dim=1))

    @typecheck
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Encode and project texts.

        Args:
            texts: b texts.

        Returns:
            embeddings "b n dim_latent", to be given as text_embeds; rows of pad_value are padding.

        Raises:
            ValueError: texts are not a list of strings.
        """
        return self.project(self.encode(texts)).embeddings

    @typecheck
    def mask_of(self, text_embeds: Float[Tensor, "b n d"]) -> Bool[Tensor, "b n"]:
        """Tell tokens (True) from padding: rows in which every value is pad_value."""
        return (text_embeds != self.pad_value).any(dim=-1)

    def read_embeds(self, text_embeds: Tensor, text_mask: Tensor | None = None) -> EncodedText:
        """Take embeddings that are projected already, as from `embed_texts`.

        Args:
            text_embeds: float "b n dim_latent".
            text_mask: bool "b n", True where there is a token; None: rows of pad_value are padding.

        Returns:
            embeddings on the module's device and in its dtype, pad_value in the rows of padding,
            and their mask.

        Raises:
            ValueError: wrong shape, or a text of no token (an assertion of the device on an
                accelerator).
        """
        remedy = "pass an encoder's own output as text_encodings"
        embeds, mask = self._read(text_embeds, text_mask, "text_embeds", self.dim_latent, remedy)
        return EncodedText(embeds.to(self._weight), mask)

    def read_encodings(
        self,
        text_encodings: Tensor | Sequence[Tensor],
        text_mask: Tensor | Sequence[Tensor] | None = None,
    ) -> list[EncodedText]:
        """Take an encoder's own output, as from `encode`, before the projection.

        Args:
            text_encodings: float "b n d", d the encoder's width; one for each encoder if there
                are several.
            text_mask: bool "b n" for each, True where there is a token; None: rows of pad_value
                are padding.

        Returns:
            encodings to be given to `project`.

        Raises:
            ValueError: wrong shape, not one for each encoder, or (an assertion of the device
                on an accelerator) a text of no token.
        """
        encodings = [text_encodings] if isinstance(text_encodings, Tensor) else text_encodings
        self._check_one_for_each_encoder(len(encodings))
        if text_mask is None:
            masks: Sequence[Tensor | None] = [None] * len(encodings)
        else:
            masks = [text_mask] if isinstance(text_mask, Tensor) else text_mask
            self._check_one_for_each_encoder(len(masks))
        remedy = "pass what this encoder's embed gives, or projected embeddings as text_embeds"
        return [
            self._read(encoding, mask, "text_encodings", width, remedy)
            for encoding, mask, width in zip(encodings, masks, self.latent_dims, strict=True)
        ]

    def _read(
        self, embeddings: Tensor, mask: Tensor | None, name: str, width: int, remedy: str
    ) -> EncodedText:
        if embeddings.ndim != 3 or embeddings.shape[-1] != width:
            raise ValueError(
                f"{name} must have shape (batch, tokens, {width}), got "
                f"{tuple(embeddings.shape)}; {remedy}"
            )
        embeddings = embeddings.to(self.device)
        if mask is None:
            mask = self.mask_of(embeddings)
        elif mask.shape != embeddings.shape[:2]:
            raise ValueError(
                f"text_mask must have the shape {tuple(embeddings.shape[:2])} of the tokens of "
                f"{name}, got {tuple(mask.shape)}; pass one value for each token"
            )
        mask = mask.to(self.device, torch.bool)
        check_texts_have_tokens(mask, name)
        check_tokens_are_finite(embeddings, mask, name)
        return EncodedText(self._fill_padding(embeddings, mask), mask)

    def _check_one_for_each_encoder(self, number: int) -> None:
        if number != len(self.encoders):
            raise ValueError(
                f"text encodings must come as one for each of the {len(self.encoders)} encoders, "
                f"got {number}; keep the order of the encoders"
            )

    @typecheck
    def drop(
        self,
        mask: Bool[Tensor, "b n"],
        cond_drop_prob: float | int | None = None,
        generator: torch.Generator | None = None,
    ) -> Bool[Tensor, "b n"]:
        """Drop whole texts at random, for classifier-free guidance (arXiv 2207.12598).

        Args:
            mask: True where there is a token.
            cond_drop_prob: probability, 0 to 1, that a text is dropped; 0 keeps and 1 drops all.
                None: the module's own in training, 0 in eval mode.
            generator: source of randomness.

        Returns:
            the mask, all False in the rows of dropped texts.

        Raises:
            ValueError: not a probability.
        """
        if cond_drop_prob is None:
            cond_drop_prob = self.cond_drop_prob if self.training else 0.0
        check_probability(cond_drop_prob)
        if cond_drop_prob == 0:
            return mask
        device = mask.device if generator is None else generator.device
        drawn = torch.rand(len(mask), 1, device=device, generator=generator)
        return mask & (drawn >= cond_drop_prob).to(mask.device)


def check_probability(cond_drop_prob: float) -> None:
    """Raise ValueError unless the number is a probability."""
    if not 0 <= cond_drop_prob <= 1:
        raise ValueError(
            f"cond_drop_prob must be from 0 to 1, got {cond_drop_prob}; 0. keeps every text"
        )


def check_texts_have_tokens(mask: Tensor, name: str) -> None:
    """Raise ValueError where a row has no token (an assertion of the device on an accelerator)."""
    has_token = mask.any(dim=1)
    if not holds(has_token.all(), f"every row of {name} must have a token"):
        rows = (~has_token).nonzero().flatten().tolist()
        raise ValueError(
            f"every row of {name} must have a token, got none in rows {rows}; an empty text still "
            "has its special tokens, and a text is dropped by cond_drop_prob=1."
        )


def check_tokens_are_finite(embeddings: Tensor, mask: Tensor, name: str) -> None:
    """Raise ValueError where a token is not finite (an assertion of the device as above)."""
    is_finite = embeddings.isfinite().all(dim=-1) | ~mask
    if not holds(is_finite.all(), f"{name} must be finite"):
        row, token = (~is_finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be finite, got nan or infinity in row {row} at token {token}; encode the "
            "text again"
        )
