"""How a text reaches the transformer: as words, as an encoder's output, or as embeddings."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import Module

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.checkpoint.atomic import PathLike
from meshgpt_pytorch.checkpoint.module import TransientFacts
from meshgpt_pytorch.transformer.encoder_identity import identify, read_identity
from meshgpt_pytorch.transformer.text import (
    EncodedText,
    TextConditioner,
    TextEncoder,
    build_text_encoders,
)
from meshgpt_pytorch.typing import typecheck


def build_conditioner(
    text_encoder: TextEncoder | Sequence[TextEncoder] | None,
    model_types: Sequence[str],
    model_kwargs: Sequence[Mapping[str, Any]],
    cond_drop_prob: float,
) -> TextConditioner:
    """Build the conditioner from ready encoders, or from encoders named by type.

    Args:
        text_encoder: one encoder or several; None to build those that ``model_types`` names.
        model_types, model_kwargs: see ``build_text_encoders``.
        cond_drop_prob: how often a text is dropped in training.

    Returns:
        the conditioner, with a trainable projection for each encoder.
    """
    if text_encoder is None:
        encoders = build_text_encoders(model_types, model_kwargs)
    elif isinstance(text_encoder, Sequence):
        encoders = list(text_encoder)
    else:
        encoders = [text_encoder]
    return TextConditioner(encoders, cond_drop_prob=cond_drop_prob)


class TextConditioning(Module):
    """The text part of ``MeshTransformer``, which inherits it and owns the conditioner."""

    conditioner: TextConditioner | None

    @property
    def condition_on_text(self) -> bool:
        """Whether the model expects a text with each mesh."""
        return self.conditioner is not None

    @typecheck
    @torch.no_grad()
    def embed_texts(self, texts: str | Sequence[str]) -> Float[Tensor, "*b n d"]:
        """Embed texts as ``text_embeds`` of this model: encoded and projected, without gradient.

        The projection is a trainable part of the model: embeddings taken before training, or kept
        through it, are not what the model computes from the texts. A data set caches what
        ``conditioner.encode`` gives (``text_encodings``) instead.

        Args:
            texts: one text, or several.

        Returns:
            embeddings ``n d`` of one text, or ``b n d`` with rows of -1 as padding.

        Raises:
            RuntimeError: the model is not conditioned on text.
        """
        if self.conditioner is None:
            raise RuntimeError(
                "embed_texts needs a text encoder, got a model without; build it with "
                "condition_on_text=True"
            )
        if isinstance(texts, str):
            return self.conditioner.embed_texts([texts])[0]
        return self.conditioner.embed_texts(texts)

    def transient_facts(self) -> TransientFacts:
        """Return which text encoders the model was trained with, for its file."""
        if self.conditioner is None:
            return {}
        encoders = [identify(encoder)._asdict() for encoder in self.conditioner.encoders]
        return {"text_encoders": encoders}

    def check_transient_facts(self, facts: TransientFacts, path: PathLike, strict: bool) -> None:
        """Compare the text encoders of a file with those that the model has.

        Args:
            facts: what `transient_facts` returned when the file was written; nothing if it is old.
            path: the file, for the message.
            strict: whether another encoder is an error.

        Warns:
            UserWarning: an encoder has another name, and its weights are not known on both sides;
                or it is another one, and `strict` is False.

        Raises:
            CheckpointError: an encoder has other weights, and `strict` is True.
        """
        encoders = [] if self.conditioner is None else self.conditioner.encoders
        for saved_facts, encoder in zip(facts.get("text_encoders", ()), encoders, strict=False):
            saved, given = read_identity(saved_facts), identify(encoder)
            is_same = given.is_same(saved)
            if is_same:
                continue
            message = f"{path} was trained with the text encoder {saved}, got {given}"
            if is_same is None:
                warnings.warn(f"{message}; make sure that they are the same", stacklevel=4)
            elif strict:
                raise CheckpointError(
                    f"{message} with other weights; pass that one, or strict=False to go on with "
                    f"this one"
                )
            else:
                warnings.warn(f"{message} with other weights", stacklevel=4)

    def _read_text(
        self,
        texts: Sequence[str] | None,
        text_embeds: Tensor | None,
        text_encodings: Tensor | Sequence[Tensor] | None,
        text_mask: Tensor | Sequence[Tensor] | None,
    ) -> EncodedText | None:
        """Read the text in whichever form it came; its projection is differentiable."""
        if text_mask is not None and text_embeds is None and text_encodings is None:
            raise ValueError(
                "text_mask tells which rows of text_embeds or text_encodings are tokens, got it "
                "without either; leave it out"
            )
        forms = {"texts": texts, "text_embeds": text_embeds, "text_encodings": text_encodings}
        given = [name for name, form in forms.items() if form is not None]
        if self.conditioner is None:
            if given:
                raise ValueError(
                    f"a model without text takes no {given[0]}; build it with "
                    "condition_on_text=True, or leave the text out"
                )
            return None
        if len(given) != 1:
            raise ValueError(
                "exactly one of texts, text_embeds and text_encodings must be given "
                f"(condition_on_text=True), got {' and '.join(given) or 'none'}"
            )
        if texts is not None:
            return self.conditioner.project(self.conditioner.encode(texts))
        if text_embeds is not None:
            if text_mask is not None and not isinstance(text_mask, Tensor):
                raise ValueError(
                    "text_mask of text_embeds must be one tensor, got a sequence; text_embeds hold "
                    "the tokens of all encoders, so concatenate their masks"
                )
            return self.conditioner.read_embeds(text_embeds, text_mask)
        assert text_encodings is not None, "one form of text was given"
        return self.conditioner.project(self.conditioner.read_encodings(text_encodings, text_mask))

    def _drop_text(self, text: EncodedText | None, cond_drop_prob: float | None) -> Any:
        """Drop whole texts at random: their tokens are masked out."""
        if text is None or self.conditioner is None:
            return None
        return EncodedText(text.embeddings, self.conditioner.drop(text.mask, cond_drop_prob))


def match_batch(text: EncodedText | None, batch: int) -> EncodedText | None:
    """Repeat a single text over a batch; check that several are as many as the batch.

    Raises:
        ValueError: another number of texts than of meshes, and not one.
    """
    if text is None or len(text.mask) == batch:
        return text
    if len(text.mask) != 1:
        raise ValueError(
            f"texts must be one for each of the {batch} meshes, or one for all, got "
            f"{len(text.mask)}; pass as many texts as meshes"
        )
    embeddings = repeat(text.embeddings, "1 n d -> b n d", b=batch)
    mask: Bool[Tensor, "b n"] = repeat(text.mask, "1 n -> b n", b=batch)
    return EncodedText(embeddings, mask)
