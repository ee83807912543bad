"""The two stages of the transformer a code at a time, over buffers that stay where they are.

``NetworkStep`` computes what ``TwoStageNetwork`` does. The work of a code does not grow with the
codes before it, but for attention of the coarse stage. Nothing looks at the values of a tensor from
Python. After ``make_static`` the steps of one face do the same to the same memory as those of the
next: only the place in a face is counted in Python, faces are counted by the device.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from meshgpt_pytorch.transformer.network import TransformerCache, TwoStageNetwork
from meshgpt_pytorch.transformer.step_linear import StepLinear, StepLinears, step_dtype
from meshgpt_pytorch.transformer.stepping import DecoderStep, FiLMStep, GateLoopStep
from meshgpt_pytorch.transformer.text import EncodedText, masked_mean
from meshgpt_pytorch.transformer.vertex_copy_step import VertexCopyStep


class NetworkStep:
    """Predict the code after the first of a mesh, then after each one more.

    Args:
        model: the model; its weights are read now.
        codes: ``b n``, the first codes, which are run in one pass by the modules; may be none.
        text: the text of each row.
        linears: linear layers of the model.

    Attributes:
        logits: ``b c`` of the code after those given.
    """

    def __init__(
        self,
        model: TwoStageNetwork,
        codes: Int[Tensor, "b n"],
        text: EncodedText | None,
        linears: StepLinears,
    ) -> None:
        pooled = None if text is None else masked_mean(*text)
        self.logits, cache = model._predict_last(codes, text, pooled)
        self.per_face = model.num_codes_per_face
        self.num_vertices_per_face = model.num_vertices_per_face
        self.num_codes = codes.shape[1]
        # how many faces are complete, once the device counts; codes then count the place in a face
        self.num_faces: Int[Tensor, " 1"] | None = None
        self._read_embeddings(model)
        self.face_codes = cache.face_codes.new_empty(
            len(codes), self.per_face, cache.face_codes.shape[-1], dtype=self.dtype
        )
        self.face_codes[:, : cache.face_codes.shape[1]] = cache.face_codes
        self._read_projections(model, linears)
        self._read_stages(model, cache, text, pooled, linears)
        self.copies = None
        if model.vertex_copier is not None:
            self.copies = VertexCopyStep(
                model.vertex_copier,
                self.token_embed,
                codes,
                model.num_quantizers,
                linears,
            )

    def _read_embeddings(self, model: TwoStageNetwork) -> None:
        self.dtype = step_dtype(model.token_embed.weight.dtype)
        self.token_embed = model.token_embed.weight
        self.position_embed = model.abs_pos_emb.weight
        # embedding of each place in a face: its vertex and its quantizer
        places = model.vertex_embed[:, None].to(self.dtype) + model.quantize_level_embed
        self.place_embed = places.flatten(0, 1)
        self.places: list[Tensor] = []

    def _read_projections(self, model: TwoStageNetwork, linears: StepLinears) -> None:
        linear, norm = model.to_face_tokens
        assert isinstance(linear, nn.Linear), "a face token is a projection of its codes"
        assert isinstance(norm, nn.LayerNorm), "and a norm"
        self.to_face_token = linears.read(linear)
        self.face_gain, self.face_bias = norm.weight.to(self.dtype), norm.bias.to(self.dtype)
        self.face_eps = norm.eps
        self.to_logits = linears.read(model.to_logits)
        self.coarse_to_fine = read_maybe(model.maybe_project_coarse_to_fine, linears)
        self.tokens_to_fine = read_maybe(model.maybe_project_tokens_to_fine, linears)

    def _read_stages(
        self,
        model: TwoStageNetwork,
        cache: TransformerCache,
        text: EncodedText | None,
        pooled: Float[Tensor, "b d"] | None,
        linears: StepLinears,
    ) -> None:
        mask = None if text is None else text.mask
        condition = pooled if model.coarse_adaptive_rmsnorm else None
        film = model.text_coarse_film_cond
        fine_film = model.text_fine_film_cond
        self.coarse_film = None if film is None or pooled is None else FiLMStep(film, pooled)
        self.fine_film = (
            None if fine_film is None or pooled is None else FiLMStep(fine_film, pooled)
        )
        self.coarse = DecoderStep(
            model.decoder, cache.coarse, linears, context_mask=mask, condition=condition
        )
        self.fine = DecoderStep(model.fine_decoder, cache.fine, linears, context_mask=mask)
        blocks = (
            (model.coarse_gateloop_block, cache.coarse_gateloop),
            (model.coarse_post_gateloop_block, cache.coarse_post_gateloop),
            (model.fine_gateloop_block, cache.fine_gateloop),
        )
        self.coarse_gateloop, self.post_gateloop, self.fine_gateloop = (
            GateLoopStep(block, states, linears) for block, states in blocks
        )

    def make_static(self, num_faces: int) -> None:
        """Let the device count from now on, in memory with room for so many more faces.

        It is called where a face begins. What is made again is then elsewhere than before: the
        coarse keys and values, and the vertices to copy. Other memory of a step moves in ``select``
        alone.
        """
        assert self.num_codes % self.per_face == 0, "a face begins"
        if self.num_faces is None:
            device = self.face_codes.device
            self.num_faces = torch.full((1,), self.num_codes // self.per_face, device=device)
            self.fine.reserve(self.per_face)
        self.coarse.make_static(num_faces)
        if self.copies is not None:
            self.copies.make_static(num_faces * self.num_vertices_per_face)

    def step(self, code: Int[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """Run one more code of each row, and return the logits of the next."""
        token = self._embed(code)
        if self.copies is not None:
            self.copies.append(code)
        if self.num_codes % self.per_face == 0:
            self.fine.restart()
            x = self.coarse_to_fine(self._step_coarse())
        else:
            x = self.tokens_to_fine(token)
        x = self.fine_gateloop(x)
        if self.fine_film is not None:
            x = self.fine_film(x)
        hidden = self.fine(x)
        logits = self.to_logits(hidden)
        return logits if self.copies is None else self.copies.add_to(logits, hidden)

    def _embed(self, code: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Embed a code by id, position, quantizer and vertex, and keep it as one of its face."""
        place = self.num_codes % self.per_face
        if place == 0 or not self.places:
            self.places = list((self._embed_positions(place) + self.place_embed).unbind())
        token = F.embedding(code, self.token_embed) + self.places[place]
        self.face_codes[:, place] = token
        self.num_codes += 1
        return token

    def _embed_positions(self, place: int) -> Float[Tensor, "per_face d"]:
        """Embed the positions of the face that the next code, at this place of it, is part of."""
        if self.num_faces is None:
            start = self.num_codes - place
            return self.position_embed[start : start + self.per_face]
        by_face = self.position_embed.unflatten(0, (-1, self.per_face))
        return by_face.index_select(0, self.num_faces)[0]

    def _step_coarse(self) -> Float[Tensor, "b d"]:
        """Run one more face of each row through the coarse stage."""
        if self.num_faces is not None:
            self.num_faces.add_(1)
        x = self.to_face_token(self.face_codes.flatten(start_dim=1))
        x = F.layer_norm(x, x.shape[-1:], self.face_gain, self.face_bias, self.face_eps)
        if self.coarse_film is not None:
            x = self.coarse_film(x)
        return self.post_gateloop(self.coarse(self.coarse_gateloop(x)))

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some rows of the batch."""
        self.face_codes = self.face_codes[rows]
        for part in (
            self.copies,
            self.coarse,
            self.fine,
            self.coarse_gateloop,
            self.post_gateloop,
            self.fine_gateloop,
            self.coarse_film,
            self.fine_film,
        ):
            if part is not None:
                part.select(rows)


def read_maybe(module: nn.Module, linears: StepLinears) -> StepLinear:
    """Read a linear layer, or nothing in its place."""
    return linears.read(module) if isinstance(module, nn.Linear) else module
