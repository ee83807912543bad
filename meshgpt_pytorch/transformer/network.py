"""The two stages of the transformer, over a whole sequence at once or a code at a time.

A face is ``T = nvf * q`` codes. The coarse stage sees one token a face: start tokens, then a
summary of each face. The fine stage sees, for each face, what the coarse stage knows when it
begins, then the face's codes but the last. So with n codes there are n + 1 predictions, and the
prediction at position t depends on the codes before t alone. (Lee et al. 2022, 2203.01941, for the
two stages; MeshGPT section 3.2 for the sequence.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Module
from x_transformers import Decoder
from x_transformers.x_transformers import LayerIntermediates

from meshgpt_pytorch.tokenizers.checks import check_is_positive
from meshgpt_pytorch.transformer.attention import build_decoder
from meshgpt_pytorch.transformer.code_head import CodeHead
from meshgpt_pytorch.transformer.layers import FiLM, GateLoopBlock, GateLoopCache
from meshgpt_pytorch.transformer.text import EncodedText, masked_mean


class DecoderSize(NamedTuple):
    """Width, layers, heads and width of a head of one stage."""

    dim: int
    depth: int
    heads: int
    attn_dim_head: int


@dataclass
class TransformerCache:
    """What the network remembers of the codes it has seen.

    codes: ``b n``, codes seen; the prediction after the last of them has been returned.
    face_codes: ``b j d``, embedded codes of the face that is not complete yet.
    coarse, fine: keys and values of the coarse stage, and of the fine stage in this face.
    coarse_gateloop, coarse_post_gateloop, fine_gateloop: states of the recurrences.
    """

    codes: Int[Tensor, "b n"]
    face_codes: Float[Tensor, "b j d"]
    coarse: LayerIntermediates
    fine: LayerIntermediates
    coarse_gateloop: GateLoopCache | None = None
    coarse_post_gateloop: GateLoopCache | None = None
    fine_gateloop: GateLoopCache | None = None

    @property
    def num_codes(self) -> int:
        """How many codes were seen."""
        return self.codes.shape[1]


class TwoStageNetwork(CodeHead):
    """The network part of ``MeshTransformer``, which inherits it and builds its modules."""

    num_vertices_per_face: int
    max_seq_len: int
    num_sos_tokens: int
    coarse_adaptive_rmsnorm: bool
    fine_cross_attend_text: bool

    sos_token: nn.Parameter
    quantize_level_embed: nn.Parameter
    vertex_embed: nn.Parameter
    abs_pos_emb: nn.Embedding
    to_face_tokens: nn.Sequential
    coarse_gateloop_block: GateLoopBlock | None
    coarse_post_gateloop_block: GateLoopBlock | None
    fine_gateloop_block: GateLoopBlock | None
    text_coarse_film_cond: FiLM | None
    text_fine_film_cond: FiLM | None
    maybe_project_coarse_to_fine: Module
    maybe_project_tokens_to_fine: Module
    decoder: Decoder
    fine_decoder: Decoder

    def _build_embeddings(self, dim: int, dim_fine: int, num_sos_tokens: int) -> None:
        check_is_positive(dim=(dim, dim_fine))
        if num_sos_tokens < 1:
            raise ValueError(f"num_sos_tokens must be at least 1, got {num_sos_tokens}")
        self.num_sos_tokens = num_sos_tokens
        self.sos_token = nn.Parameter(torch.randn(num_sos_tokens, dim))
        self.token_embed = nn.Embedding(self.codebook_size + 1, dim)
        self.quantize_level_embed = nn.Parameter(torch.randn(self.num_quantizers, dim))
        self.vertex_embed = nn.Parameter(torch.randn(self.num_vertices_per_face, dim))
        self.abs_pos_emb = nn.Embedding(self.max_seq_len, dim)
        self.to_face_tokens = nn.Sequential(
            nn.Linear(self.num_codes_per_face * dim, dim), nn.LayerNorm(dim)
        )
        same = dim == dim_fine
        self.maybe_project_coarse_to_fine = nn.Identity() if same else nn.Linear(dim, dim_fine)
        self.maybe_project_tokens_to_fine = nn.Identity() if same else nn.Linear(dim, dim_fine)

    def _build_gateloops(self, *sizes: tuple[int, int], **options: bool) -> None:
        blocks = [
            GateLoopBlock(dim, depth=depth, **options) if depth > 0 else None
            for dim, depth in sizes
        ]
        self.coarse_gateloop_block, self.coarse_post_gateloop_block = blocks[:2]
        self.fine_gateloop_block = blocks[2]

    def _build_film(self, dim_text: int | None, dim: int, dim_fine: int) -> None:
        self.text_coarse_film_cond = self.text_fine_film_cond = None
        if dim_text is not None:
            self.text_coarse_film_cond = FiLM(dim_text, dim)
            self.text_fine_film_cond = FiLM(dim_text, dim_fine)

    def _build_decoders(
        self,
        coarse: DecoderSize,
        fine: DecoderSize,
        *,
        dim_text: int | None,
        options: Mapping[str, Any],
    ) -> None:
        options = {**options, "cross_attn_dim_context": dim_text}
        self.decoder = build_decoder(
            **coarse._asdict(),
            use_adaptive_rmsnorm=self.coarse_adaptive_rmsnorm,
            dim_condition=dim_text,
            cross_attend=dim_text is not None,
            **options,
        )
        self.fine_decoder = build_decoder(
            **fine._asdict(), cross_attend=self.fine_cross_attend_text, **options
        )

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.sos_token.device

    @property
    def num_codes_per_face(self) -> int:
        """Codes of one face: its vertices times the quantizers."""
        return self.num_vertices_per_face * self.num_quantizers

    def _predict_all(
        self, codes: Int[Tensor, "b n"], text: EncodedText | None, *, with_cache: bool = False
    ) -> tuple[Float[Tensor, "b n_plus_one num_ids"], TransformerCache | None]:
        """Predict each code of a sequence, and the one after it, in one pass."""
        pooled = None if text is None else masked_mean(*text)
        tokens, fine, caches = self._read_all(codes, text, pooled)
        by_face = self._split_faces(fine)
        attended, _ = self._run_fine(by_face, text, pooled)
        attended = rearrange(attended, "(b nf) n d -> b (nf n) d", b=len(codes))
        logits = self._logits_of_all(attended[:, : fine.shape[1]], codes)
        if not with_cache:
            return logits, None
        _, cache = self._end_in_cache(codes, tokens, fine, caches, text, pooled)
        return logits, cache

    def _predict_last(
        self,
        codes: Int[Tensor, "b n"],
        text: EncodedText | None,
        pooled: Float[Tensor, "b d_text"] | None,
    ) -> tuple[Float[Tensor, "b num_ids"], TransformerCache]:
        """Predict the code after a sequence in one pass, without the logits of those before."""
        tokens, fine, caches = self._read_all(codes, text, pooled)
        attended, cache = self._end_in_cache(codes, tokens, fine, caches, text, pooled)
        return self._logits_after(attended[:, -1:], codes)[:, 0], cache

    def _end_in_cache(
        self,
        codes: Int[Tensor, "b n"],
        tokens: Float[Tensor, "b n d"],
        fine: Float[Tensor, "b n_plus_one d_fine"],
        caches: dict[str, Any],
        text: EncodedText | None,
        pooled: Float[Tensor, "b d_text"] | None,
    ) -> tuple[Float[Tensor, "b j_plus_one d_fine"], TransformerCache]:
        """Run the last face, of j codes, through the fine stage; gather what a next code needs."""
        num_codes = codes.shape[1]
        complete = num_codes // self.num_codes_per_face * self.num_codes_per_face
        attended, fine_cache = self._run_fine(fine[:, complete:], text, pooled)
        cache = TransformerCache(codes, tokens[:, complete:], fine=fine_cache, **caches)
        return attended, cache

    def _loss_of_all(
        self, labels: Int[Tensor, "b n"], text: EncodedText | None
    ) -> Float[Tensor, ""]:
        """Compute the cross entropy of a sequence; faces of padding alone cost nothing."""
        pooled = None if text is None else masked_mean(*text)
        _, fine, _ = self._read_all(labels[:, :-1], text, pooled, with_cache=False)
        by_face = self._split_faces(fine)
        per_face = self.num_codes_per_face
        labels = F.pad(labels, (0, -labels.shape[1] % per_face), value=self.pad_id)
        labels = rearrange(labels, "b (nf n) -> b nf n", n=per_face)
        # on CUDA the one place of the step that waits: the number of faces is a size from here on
        row, face = (labels != self.pad_id).any(dim=-1).nonzero(as_tuple=True)
        by_face = rearrange(by_face, "(b nf) n d -> b nf n d", b=len(fine))[row, face]
        attended, _ = self._run_fine(by_face, text, pooled, row=row, with_cache=False)
        return self._cross_entropy(attended, labels, row, face)

    def _read_all(
        self,
        codes: Int[Tensor, "b n"],
        text: EncodedText | None,
        pooled: Float[Tensor, "b d_text"] | None,
        *,
        with_cache: bool = True,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n_plus_one d_fine"], dict[str, Any]]:
        """Embed a sequence, run its coarse stage, and lay out what the fine stage reads."""
        per_face = self.num_codes_per_face
        batch, num_codes = codes.shape
        num_faces, in_face = divmod(num_codes, per_face)
        tokens = self._embed_codes(codes)
        face_tokens = rearrange(
            tokens[:, : num_faces * per_face], "b (nf n) d -> b nf (n d)", n=per_face
        )
        sos = repeat(self.sos_token, "n d -> b n d", b=batch)
        coarse = torch.cat((sos, self.to_face_tokens(face_tokens)), dim=1)
        context, caches = self._run_coarse(coarse, text, pooled, with_cache=with_cache)

        # each face begins with what the coarse stage knows; its last code begins the next face
        context = context[:, self.num_sos_tokens - 1 :]
        fine_tokens = self.maybe_project_tokens_to_fine(tokens)
        fine_tokens = F.pad(fine_tokens, (0, 0, 0, per_face - in_face))
        fine_tokens = rearrange(fine_tokens, "b (nf n) d -> b nf n d", n=per_face)
        fine = torch.cat((rearrange(context, "b nf d -> b nf 1 d"), fine_tokens[:, :, :-1]), dim=2)
        fine = rearrange(fine, "b nf n d -> b (nf n) d")[:, : num_codes + 1]
        caches["fine_gateloop"] = None
        if self.fine_gateloop_block is not None:
            fine, caches["fine_gateloop"] = self.fine_gateloop_block(fine)
        return tokens, fine, caches

    def _split_faces(self, fine: Float[Tensor, "b n d"]) -> Float[Tensor, "b_nf n_face d"]:
        """Make each face a row of its own; the last may be filled up."""
        per_face = self.num_codes_per_face
        filled = F.pad(fine, (0, 0, 0, -fine.shape[1] % per_face))
        return rearrange(filled, "b (nf n) d -> (b nf) n d", n=per_face)

    def _predict_next(
        self, code: Int[Tensor, "b 1"], text: EncodedText | None, cache: TransformerCache
    ) -> tuple[Float[Tensor, "b 1 num_ids"], TransformerCache]:
        """Predict the code after one more code; the cache given is left as it is."""
        pooled = None if text is None else masked_mean(*text)
        token = self._embed_codes(code, start=cache.num_codes)
        face_codes = torch.cat((cache.face_codes, token), dim=1)
        coarse_caches = {
            "coarse": cache.coarse,
            "coarse_gateloop": cache.coarse_gateloop,
            "coarse_post_gateloop": cache.coarse_post_gateloop,
        }
        if face_codes.shape[1] == self.num_codes_per_face:
            face_token = self.to_face_tokens(rearrange(face_codes, "b n d -> b 1 (n d)"))
            fine, coarse_caches = self._run_coarse(face_token, text, pooled, **coarse_caches)
            face_codes, fine_cache = face_codes[:, :0], None
        else:
            fine, fine_cache = self.maybe_project_tokens_to_fine(token), cache.fine

        fine_gateloop = None
        if self.fine_gateloop_block is not None:
            fine, fine_gateloop = self.fine_gateloop_block(fine, cache.fine_gateloop)
        attended, fine_cache = self._run_fine(fine, text, pooled, fine_cache)
        codes = torch.cat((cache.codes, code), dim=1)
        cache = TransformerCache(
            codes,
            face_codes,
            fine=fine_cache,
            fine_gateloop=fine_gateloop,
            **coarse_caches,
        )
        return self._logits_after(attended, codes), cache

    def _embed_codes(self, codes: Int[Tensor, "b n"], start: int = 0) -> Float[Tensor, "b n d"]:
        """Embed codes by id, position, quantizer and vertex; padding counts as id 0."""
        position = torch.arange(start, start + codes.shape[1], device=codes.device)
        level = position % self.num_quantizers
        vertex = position // self.num_quantizers % self.num_vertices_per_face
        tokens = self.token_embed(codes.masked_fill(codes == self.pad_id, 0))
        return (
            tokens
            + self.abs_pos_emb(position)
            + self.quantize_level_embed[level]
            + self.vertex_embed[vertex]
        )

    def _run_coarse(
        self,
        face_tokens: Float[Tensor, "b nf d"],
        text: EncodedText | None,
        pooled: Float[Tensor, "b d_text"] | None,
        coarse: LayerIntermediates | None = None,
        coarse_gateloop: GateLoopCache | None = None,
        coarse_post_gateloop: GateLoopCache | None = None,
        *,
        with_cache: bool = True,
    ) -> tuple[Float[Tensor, "b nf d_fine"], dict]:
        """Run face tokens, or the next of them, through the coarse stage."""
        x = face_tokens
        if self.text_coarse_film_cond is not None:
            x = self.text_coarse_film_cond(x, pooled)
        if self.coarse_gateloop_block is not None:
            x, coarse_gateloop = self.coarse_gateloop_block(x, coarse_gateloop)
        x, coarse = run_decoder(
            self.decoder,
            x,
            cache=coarse,
            with_cache=with_cache,
            context=None if text is None else text.embeddings,
            context_mask=None if text is None else text.mask,
            condition=pooled if self.coarse_adaptive_rmsnorm else None,
        )
        if self.coarse_post_gateloop_block is not None:
            x, coarse_post_gateloop = self.coarse_post_gateloop_block(x, coarse_post_gateloop)
        caches = {
            "coarse": coarse,
            "coarse_gateloop": coarse_gateloop,
            "coarse_post_gateloop": coarse_post_gateloop,
        }
        return self.maybe_project_coarse_to_fine(x), caches

    def _run_fine(
        self,
        tokens: Float[Tensor, "faces n d_fine"],
        text: EncodedText | None,
        pooled: Float[Tensor, "b d_text"] | None,
        cache: LayerIntermediates | None = None,
        *,
        row: Int[Tensor, " faces"] | None = None,
        with_cache: bool = True,
    ) -> tuple[Float[Tensor, "faces n d_fine"], LayerIntermediates | None]:
        """Run faces, or the next token of one face a mesh, through the fine stage.

        Each face belongs to the mesh in ``row``; without it, all meshes have as many faces.
        """
        context = context_mask = None
        if text is not None:
            if row is None:
                mesh = torch.arange(len(text.mask), device=tokens.device)
                row = repeat(mesh, "b -> (b nf)", nf=len(tokens) // len(mesh))
            if self.text_fine_film_cond is not None and pooled is not None:
                tokens = self.text_fine_film_cond(tokens, pooled[row])
            if self.fine_cross_attend_text:
                context, context_mask = text.embeddings[row], text.mask[row]
        return run_decoder(
            self.fine_decoder,
            tokens,
            cache=cache,
            with_cache=with_cache,
            context=context,
            context_mask=context_mask,
        )


def run_decoder(
    decoder: Decoder, x: Float[Tensor, "b n d"], *, with_cache: bool, **inputs: Any
) -> tuple[Float[Tensor, "b n d"], LayerIntermediates | None]:
    """Run a decoder; keys, values and hidden states outlive it only for a cache."""
    if with_cache:
        return decoder(x, return_hiddens=True, **inputs)
    return decoder(x, **inputs), None
