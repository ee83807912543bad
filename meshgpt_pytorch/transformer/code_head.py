"""The head of the transformer: from what the fine stage made of faces to logits or a loss."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Module

from meshgpt_pytorch.transformer.losses import linear_cross_entropy
from meshgpt_pytorch.transformer.vertex_copying import (
    CopyWeights,
    VertexCopier,
    copy_into_logits,
    copy_into_next,
    weigh_copies,
)


class CodeHead(Module):
    """Predicts codes: each id by a logit, and vertices that are there already by their copies."""

    num_quantizers: int
    num_vertices_per_face: int
    codebook_size: int
    pad_id: int
    token_embed: nn.Embedding
    to_logits: nn.Linear
    vertex_copier: VertexCopier | None

    def _build_head(self, dim: int, dim_fine: int, *, copy_vertices: bool) -> None:
        self.to_logits = nn.Linear(dim_fine, self.codebook_size + 1)
        self.vertex_copier = (
            VertexCopier(dim, dim_fine, self.num_quantizers, self.num_vertices_per_face)
            if copy_vertices
            else None
        )

    def _logits_of_all(
        self, hidden: Float[Tensor, "b n_plus_one d"], codes: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n_plus_one c"]:
        """Predict each code of a sequence, and the one after it."""
        logits, copier = self.to_logits(hidden), self.vertex_copier
        if copier is None:
            return logits
        num_logits = logits.shape[1]
        missing = -num_logits % self.num_quantizers
        vertices = self._read_vertices(F.pad(codes, (0, 1 + missing), value=self.pad_id))
        by_vertex, queries = (
            rearrange(
                F.pad(each, (0, 0, 0, missing)), "b (v q) d -> b v q d", q=self.num_quantizers
            )
            for each in (logits, copier.to_query(hidden))
        )
        logits = copy_into_logits(copier, by_vertex, queries, self._make_keys(vertices), vertices)
        return rearrange(logits, "b v q c -> b (v q) c")[:, :num_logits]

    def _logits_after(
        self, hidden: Float[Tensor, "b 1 d"], codes: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b 1 c"]:
        """Predict the code after a sequence."""
        logits, copier = self.to_logits(hidden), self.vertex_copier
        if copier is None:
            return logits
        num_vertices = codes.shape[1] // self.num_quantizers
        complete, begun = codes.tensor_split([num_vertices * self.num_quantizers], dim=1)
        vertices = self._read_vertices(complete)
        next_logits = copy_into_next(
            copier,
            logits[:, 0],
            copier.to_query(hidden)[:, 0],
            self._make_keys(vertices),
            vertices,
            vertex=torch.full((1,), num_vertices, device=codes.device),
            begun=begun,
        )
        return rearrange(next_logits, "b c -> b 1 c")

    def _cross_entropy(
        self,
        hidden: Float[Tensor, "faces n d"],
        labels: Int[Tensor, "b nf n"],
        row: Int[Tensor, " faces"],
        face: Int[Tensor, " faces"],
    ) -> Float[Tensor, ""]:
        """Compute the mean cross entropy of codes that are no padding.

        Args:
            hidden: of the faces that are no padding.
            labels: of all faces.
            row, face: where each of ``hidden`` is among the labels.
        """
        copies = None
        if self.vertex_copier is not None:
            copies = self._weigh_copies(self.vertex_copier, hidden, labels, row, face)
        return linear_cross_entropy(
            rearrange(hidden, "faces n d -> (faces n) d"),
            self.to_logits.weight,
            self.to_logits.bias,
            rearrange(labels[row, face], "faces n -> (faces n)"),
            copies=copies,
            ignore_index=self.pad_id,
        )

    def _weigh_copies(
        self,
        copier: VertexCopier,
        hidden: Float[Tensor, "faces n d"],
        labels: Int[Tensor, "b nf n"],
        row: Int[Tensor, " faces"],
        face: Int[Tensor, " faces"],
    ) -> CopyWeights:
        """Weigh copies for the codes of the faces that are no padding."""
        vertices = self._read_vertices(rearrange(labels, "b nf n -> b (nf n)"))
        queries = copier.to_query(hidden)
        padded = queries.new_zeros(*labels.shape, queries.shape[-1])
        padded = padded.index_put((row, face), queries)
        padded = rearrange(padded, "b nf (nvf q) d -> b (nf nvf) q d", q=self.num_quantizers)
        weights = weigh_copies(copier, padded, self._make_keys(vertices), vertices)
        by_face = (
            rearrange(each, "b (nf nvf) q -> b nf (nvf q)", nf=labels.shape[1]) for each in weights
        )
        return CopyWeights(
            *(rearrange(each[row, face], "faces n -> (faces n)") for each in by_face)
        )

    def _read_vertices(self, codes: Int[Tensor, "b n"]) -> Int[Tensor, "b u q"]:
        """Split codes into vertices; padding counts as id 0, as where codes are embedded."""
        codes = codes.masked_fill(codes == self.pad_id, 0)
        return rearrange(codes, "b (u q) -> b u q", q=self.num_quantizers)

    def _make_keys(self, vertices: Int[Tensor, "b u q"]) -> Float[Tensor, "b u d_key"]:
        assert self.vertex_copier is not None, "keys are for copies"
        return self.vertex_copier.make_keys(self.token_embed(vertices))
