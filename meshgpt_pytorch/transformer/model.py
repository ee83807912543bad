"""Stage 5 of the flow: codes -> a loss, or logits of the next codes.

A decoder over faces and a decoder over the codes inside a face model the sequence of codes that
``MeshAutoencoder`` gives a mesh; text may condition both. (MeshGPT, Siddiqui et al. 2023, arXiv
2311.15475, section 3.2; two stages after Lee et al. 2022, arXiv 2203.01941.)
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from meshgpt_pytorch.checkpoint import SavedModule
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.tokenizers.checks import flatten_codes
from meshgpt_pytorch.transformer.checks import (
    check_cache,
    check_codes,
    check_heads,
    check_length,
    check_pad_id,
    check_rows,
)
from meshgpt_pytorch.transformer.conditioning import build_conditioner, match_batch
from meshgpt_pytorch.transformer.embedding_start import digits_of_codes, start_rows
from meshgpt_pytorch.transformer.generation import MeshGeneration
from meshgpt_pytorch.transformer.guidance import check_guidance, guided_logits
from meshgpt_pytorch.transformer.layers import (
    as_pair,
    is_exact_with_cache,
    require_residual_streams,
)
from meshgpt_pytorch.transformer.network import DecoderSize, TransformerCache
from meshgpt_pytorch.transformer.text import EncodedText, TextEncoder
from meshgpt_pytorch.typing import typecheck

ATTN_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "ff_glu": True,
        "attn_num_mem_kv": 4,
        "add_value_residual": True,
        "learned_value_residual_mix": True,
    }
)
DEFAULT_MAX_SEQ_LEN = 8192


class CachedLogits(NamedTuple):
    """Logits ``b n num_ids``, and the cache to pass with the next codes (a pair when guided)."""

    logits: Float[Tensor, "b n num_ids"]
    cache: TransformerCache | tuple[TransformerCache, TransformerCache]


class MeshTransformer(MeshGeneration, SavedModule):
    """Model the codes of meshes, face by face and code by code.

    The autoencoder becomes a part of the model and is frozen: its parameters stop requiring
    gradients, so train it first. Nothing else about it is changed.

    Args:
        autoencoder: a trained autoencoder, which turns meshes into codes and back.
        dim: width of both stages, or a pair (coarse, fine).
        max_seq_len: most codes of a mesh, whole faces; the most that 8192 holds by default.
        flash_attn: use fused attention kernels where there are some.
        attn_depth, attn_dim_head, attn_heads: size of the coarse stage, one token a face.
        attn_kwargs: options of ``x_transformers.Decoder`` for both stages; a given mapping
            replaces the default as a whole.
        cross_attn_num_mem_kv: learned keys and values of cross attention, which keep a row whose
            text was dropped finite.
        dropout: share dropped in attention and feed-forward layers.
        coarse_pre_gateloop_depth, coarse_post_gateloop_depth: gate loops before and after the
            coarse stage.
        coarse_adaptive_rmsnorm: condition the norms of the coarse stage on the pooled text.
        fine_pre_gateloop_depth: gate loops before the fine stage, over all codes.
        gateloop_use_heinsen: sum gate loops by Heinsen's logarithms.
        fine_attn_depth, fine_attn_dim_head, fine_attn_heads: size of the fine stage; head sizes
            as in the coarse stage by default.
        fine_cross_attend_text: let the fine stage attend to the text too.
        pad_id: what padded codes hold.
        num_sos_tokens: start tokens; 1 by default, 4 with text.
        condition_on_text: expect a text with each mesh.
        text_cond_with_film: scale and shift the tokens of both stages by the pooled text.
        text_condition_model_types: text encoders by name: 't5', 'clip', 'bge'.
        text_condition_model_kwargs: options of each of them.
        text_condition_cond_drop_prob: how often a text is dropped in training, so that the model
            learns what guidance compares with.
        quads: faces have 4 vertices, as the autoencoder's.
        text_encoder: a ready encoder, or several, in place of those named by type.
        checkpoint_activations: compute the inside of layers again in the backward pass instead of
            keeping it: several times less memory for about a third more time.
        copy_vertices: predict vertices also as copies of those that the mesh has already, beside
            the logits of all ids.

    Raises:
        ValueError: options that do not go together.
        RuntimeError: residual streams that the installed x-transformers cannot do.
    """

    transient_arguments: ClassVar[tuple[str, ...]] = ("text_encoder",)

    @typecheck
    def __init__(
        self,
        autoencoder: MeshAutoencoder,
        *,
        dim: int | Sequence[int] = 512,
        max_seq_len: int | None = None,
        flash_attn: bool = True,
        attn_depth: int = 12,
        attn_dim_head: int = 64,
        attn_heads: int = 16,
        attn_kwargs: Mapping[str, Any] = ATTN_DEFAULTS,
        cross_attn_num_mem_kv: int = 4,
        dropout: float | int = 0.0,
        coarse_pre_gateloop_depth: int = 2,
        coarse_post_gateloop_depth: int = 0,
        coarse_adaptive_rmsnorm: bool = False,
        fine_pre_gateloop_depth: int = 2,
        gateloop_use_heinsen: bool = False,
        fine_attn_depth: int = 2,
        fine_attn_dim_head: int | None = None,
        fine_attn_heads: int | None = None,
        fine_cross_attend_text: bool = False,
        pad_id: int = -1,
        num_sos_tokens: int | None = None,
        condition_on_text: bool = False,
        text_cond_with_film: bool = False,
        text_condition_model_types: Sequence[str] = ("t5",),
        text_condition_model_kwargs: Sequence[Mapping[str, Any]] = (MappingProxyType({}),),
        text_condition_cond_drop_prob: float | int = 0.25,
        quads: bool = False,
        text_encoder: TextEncoder | Sequence[TextEncoder] | None = None,
        checkpoint_activations: bool = False,
        copy_vertices: bool = False,
    ) -> None:
        super().__init__()
        self._adopt(autoencoder, quads=quads, pad_id=pad_id)
        require_residual_streams(attn_kwargs.get("num_residual_streams", 1))
        self.can_cache = is_exact_with_cache(attn_kwargs)
        self.max_seq_len = self._whole_faces(max_seq_len)

        self.conditioner = None
        if condition_on_text:
            self.conditioner = build_conditioner(
                text_encoder,
                text_condition_model_types,
                text_condition_model_kwargs,
                text_condition_cond_drop_prob,
            )
        elif text_encoder is not None or any(
            (coarse_adaptive_rmsnorm, fine_cross_attend_text, text_cond_with_film)
        ):
            raise ValueError(
                "coarse_adaptive_rmsnorm, fine_cross_attend_text, text_cond_with_film and "
                "text_encoder need a text, got condition_on_text=False; pass condition_on_text=True"
            )
        self.coarse_adaptive_rmsnorm = coarse_adaptive_rmsnorm
        self.fine_cross_attend_text = fine_cross_attend_text

        dim, dim_fine = as_pair(dim)
        default_sos_tokens = 4 if condition_on_text else 1
        num_sos_tokens = default_sos_tokens if num_sos_tokens is None else num_sos_tokens
        self._build_embeddings(dim, dim_fine, num_sos_tokens)
        self._build_gateloops(
            (dim, coarse_pre_gateloop_depth),
            (dim, coarse_post_gateloop_depth),
            (dim_fine, fine_pre_gateloop_depth),
            use_heinsen=gateloop_use_heinsen,
            checkpoint_activations=checkpoint_activations,
        )
        dim_text = self.conditioner.dim_latent if self.conditioner is not None else None
        self._build_film(dim_text if text_cond_with_film else None, dim, dim_fine)

        fine_attn_heads = attn_heads if fine_attn_heads is None else fine_attn_heads
        fine_attn_dim_head = attn_dim_head if fine_attn_dim_head is None else fine_attn_dim_head
        check_heads(dim, attn_heads, attn_dim_head, attn_kwargs)
        check_heads(dim_fine, fine_attn_heads, fine_attn_dim_head, attn_kwargs)
        self._build_decoders(
            DecoderSize(dim, attn_depth, attn_heads, attn_dim_head),
            DecoderSize(dim_fine, fine_attn_depth, fine_attn_heads, fine_attn_dim_head),
            dim_text=dim_text,
            options={
                "attn_flash": flash_attn,
                "attn_dropout": dropout,
                "ff_dropout": dropout,
                "cross_attn_num_mem_kv": cross_attn_num_mem_kv,
                "checkpoint_activations": checkpoint_activations,
                **attn_kwargs,
            },
        )
        self._build_head(dim, dim_fine, copy_vertices=copy_vertices)
        # last, so that options that are refused leave the caller's autoencoder as it was
        self.autoencoder.requires_grad_(False)

    def start_embeddings(self) -> None:
        """Start the embedding and the logit of each code from its digits, before training.

        Codes with like digits begin alike, so that what is learned of one serves its neighbours.
        Only initial weights change; they are drawn by torch's global generator.

        Raises:
            ValueError: an autoencoder whose codes have no digits, such as those of ``rvq``.
        """
        digits = digits_of_codes(self.autoencoder.quantizer)
        for weight in (self.token_embed.weight, self.to_logits.weight):
            start_rows(weight, digits)

    def _adopt(self, autoencoder: MeshAutoencoder, *, quads: bool, pad_id: int) -> None:
        """Take the autoencoder in, and read off it what the codes look like."""
        self.num_vertices_per_face = 4 if quads else 3
        if autoencoder.num_vertices_per_face != self.num_vertices_per_face:
            raise ValueError(
                f"autoencoder and transformer must read the same kind of face, got quads={quads} "
                f"and an autoencoder for {autoencoder.num_vertices_per_face} vertices a face; pass "
                f"quads={not quads}"
            )
        self.autoencoder = autoencoder
        self.codebook_size = autoencoder.codebook_size
        self.num_quantizers = autoencoder.num_quantizers
        self.eos_token_id = self.codebook_size
        check_pad_id(pad_id, self.eos_token_id)
        self.pad_id = pad_id

    def _whole_faces(self, max_seq_len: int | None) -> int:
        per_face = self.num_codes_per_face
        if max_seq_len is None:
            return DEFAULT_MAX_SEQ_LEN // per_face * per_face
        if max_seq_len < per_face or max_seq_len % per_face:
            raise ValueError(
                f"max_seq_len must be a multiple of one face's {self.num_vertices_per_face} x "
                f"{self.num_quantizers} = {per_face} codes, got {max_seq_len}; use "
                f"{max(1, max_seq_len // per_face) * per_face}"
            )
        return max_seq_len

    @typecheck
    def forward(
        self,
        *,
        vertices: Float[Tensor, "b nv 3"] | None = None,
        faces: Int[Tensor, "b nf nvf"] | None = None,
        face_edges: Int[Tensor, "b e 2"] | None = None,
        codes: Int[Tensor, "b *n"] | None = None,
        cache: TransformerCache | tuple[TransformerCache, TransformerCache] | None = None,
        return_loss: bool = True,
        return_cache: bool = False,
        append_eos: bool = True,
        texts: Sequence[str] | None = None,
        text_embeds: Float[Tensor, "b_text t d"] | None = None,
        text_encodings: Tensor | Sequence[Tensor] | None = None,
        text_mask: Tensor | Sequence[Tensor] | None = None,
        cond_drop_prob: float | int | None = None,
        cond_scale: float | int = 1.0,
    ) -> Tensor | CachedLogits:
        """Model a batch of meshes, or of codes that were made before; return the loss.

        Args:
            vertices, faces, face_edges: meshes, as for ``MeshAutoencoder.tokenize``; not needed
                with codes.
            codes: codes of the meshes, in place of vertices and faces.
            cache, return_loss, return_cache, append_eos, texts, text_embeds, text_encodings,
                text_mask, cond_drop_prob, cond_scale: see ``forward_on_codes``.

        Returns:
            what ``forward_on_codes`` returns.

        Raises:
            ValueError: neither meshes nor codes; bad meshes, codes or texts.
        """
        if codes is None:
            if vertices is None or faces is None:
                raise ValueError(
                    "either codes, or vertices and faces, must be given, got none; pass codes from "
                    "autoencoder.tokenize, or the meshes themselves"
                )
            codes = self.tokenize(vertices, faces, face_edges)
        return self.forward_on_codes(
            codes,
            return_loss=return_loss,
            return_cache=return_cache,
            append_eos=append_eos,
            cache=cache,
            texts=texts,
            text_embeds=text_embeds,
            text_encodings=text_encodings,
            text_mask=text_mask,
            cond_drop_prob=cond_drop_prob,
            cond_scale=cond_scale,
        )

    @typecheck
    def forward_on_codes(
        self,
        codes: Int[Tensor, "b *n"],
        return_loss: bool = True,
        return_cache: bool = False,
        append_eos: bool = True,
        cache: TransformerCache | tuple[TransformerCache, TransformerCache] | None = None,
        texts: Sequence[str] | None = None,
        text_embeds: Float[Tensor, "b_text t d"] | None = None,
        cond_drop_prob: float | int | None = None,
        *,
        text_encodings: Tensor | Sequence[Tensor] | None = None,
        text_mask: Tensor | Sequence[Tensor] | None = None,
        cond_scale: float | int = 1.0,
        rescale_phi: float | int = 0.0,
        remove_parallel_component: bool = False,
        keep_parallel_frac: float | int = 0.0,
    ) -> Tensor | CachedLogits:
        """Model codes: return the loss, or the logits of each code and of the one after the last.

        Args:
            codes: ids ``b n``, ``b n q`` or any shape that flattens to a row a mesh; ``pad_id``
                behind the last code of a row.
            return_loss: return the cross entropy, a mean over all codes and eos ids of the batch.
            return_cache: return what the next call needs to see new codes only; an eos id that
                is appended is not in it.
            append_eos: put the eos id behind the last code of each row.
            cache: from a call on the first part of the same codes; the logits returned are those
                that follow it. A pair, with and without text, where cond_scale is not 1.
            texts: a text for each mesh, or one for all.
            text_embeds: texts, already encoded and projected (``embed_texts``), ``b t d``; rows of
                -1 are padding.
            text_encodings: texts as an encoder gives them, before the trainable projection;
                several encoders give a sequence of them.
            text_mask: which rows of embeddings or encodings are tokens, if not told by -1.
            cond_drop_prob: how often a text is dropped; in training the model's own, else 0.
            cond_scale: how far logits are pushed away from those without text; 1 is not at all.
            rescale_phi, remove_parallel_component, keep_parallel_frac: see ``guided_logits``.

        Returns:
            the loss; or logits ``b (n + 1) codebook_size + 1``, the last id for eos (n counts the
            eos id that is appended), with the cache if asked for.

        Raises:
            ValueError: codes too long, not of this autoencoder, or with padding inside; texts
                missing, given twice, or of another batch size; guidance of a loss.
        """
        codes = flatten_codes(codes, self.num_quantizers)
        num_ids = self.codebook_size + (0 if append_eos else 1)
        check_codes(codes, num_ids=num_ids, pad_id=self.pad_id, max_seq_len=self.max_seq_len)
        check_guidance(self, cond_scale, rescale_phi, keep_parallel_frac)
        text = self._read_text(texts, text_embeds, text_encodings, text_mask)
        text = match_batch(text, len(codes))
        if return_loss:
            if cond_scale != 1 or cache is not None or return_cache:
                raise ValueError(
                    "a loss takes neither guidance nor a cache, got cond_scale, cache or "
                    "return_cache; pass return_loss=False for logits"
                )
            return self._loss(codes, self._drop_text(text, cond_drop_prob), append_eos)

        is_guided = text is not None and cond_scale != 1
        if cache is not None or return_cache:
            check_cache(cache, can_cache=self.can_cache, is_guided=is_guided)
        if append_eos:
            codes = append_id(codes, self.eos_token_id, self.pad_id)
            check_length(codes, self.max_seq_len)
        caches: Any = cache
        inputs: dict[str, Any] = {
            "codes": codes,
            "text": text,
            "with_cache": return_cache,
            "num_appended": int(append_eos),
        }
        if not is_guided:
            logits, caches = self._logits(**inputs, cond_drop_prob=cond_drop_prob, cache=caches)
        else:
            logits, caches = guided_logits(
                self,
                MeshTransformer._logits,
                inputs,
                cond_scale=cond_scale,
                rescale_phi=rescale_phi,
                remove_parallel_component=remove_parallel_component,
                keep_parallel_frac=keep_parallel_frac,
                caches=caches or (None, None),
            )
        return CachedLogits(logits, caches) if return_cache else logits

    def _logits(
        self,
        codes: Int[Tensor, "b n"],
        text: EncodedText | None,
        *,
        with_cache: bool,
        cond_drop_prob: float | None,
        cache: TransformerCache | None = None,
        num_appended: int = 0,
    ) -> tuple[Float[Tensor, "b n num_ids"], TransformerCache | None]:
        """Predict all codes, or those behind a cache one by one.

        The cache returned leaves out ``num_appended`` codes at the end.
        """
        text = self._drop_text(text, cond_drop_prob)
        num_cached = codes.shape[1] - num_appended
        logits = []
        if cache is None:
            if not with_cache:
                return self._predict_all(codes, text, with_cache=False)
            first_logits, cache = self._predict_all(codes[:, :num_cached], text, with_cache=True)
            logits.append(first_logits)
        assert cache is not None, "a cache was asked for"
        last = cache
        for position in range(cache.num_codes, codes.shape[1]):
            next_logits, last = self._predict_next(codes[:, position : position + 1], text, last)
            logits.append(next_logits)
            cache = last if position < num_cached else cache
        if not logits:
            raise ValueError(
                f"codes must go on behind the {cache.num_codes} that the cache has seen, got "
                f"{codes.shape[1]}; pass all codes so far"
            )
        return torch.cat(logits, dim=1), cache

    def _loss(
        self, codes: Int[Tensor, "b n"], text: EncodedText | None, append_eos: bool
    ) -> Float[Tensor, ""]:
        # codes that hold their own eos end with a part of a face
        check_rows(codes, self.pad_id, self.num_codes_per_face if append_eos else 1)
        labels = append_id(codes, self.eos_token_id, self.pad_id) if append_eos else codes
        return self._loss_of_all(labels, text)


def append_id(codes: Int[Tensor, "b n"], new_id: int, pad_id: int) -> Int[Tensor, "b n_plus_one"]:
    """Put an id behind the last code of each row."""
    lengths = (codes != pad_id).sum(dim=1, keepdim=True)
    return F.pad(codes, (0, 1), value=pad_id).scatter(1, lengths, new_id)
