"""Copies of vertices a code at a time, over buffers that are written in place."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from meshgpt_pytorch.transformer.step_linear import StepLinears, step_dtype
from meshgpt_pytorch.transformer.vertex_copying import VertexCopier, copy_into_next

FIRST_CAPACITY = 16


class VertexCopyStep:
    """Add to the logits of a code the weights of copies, as ``VertexCopier`` does.

    Args:
        copier: the module; its weights are read now.
        token_embed: embedding of each id.
        codes: ``b n``, the first codes; may be none.
        num_quantizers: codes of a vertex.
        linears: linear layers of the model.
    """

    def __init__(
        self,
        copier: VertexCopier,
        token_embed: Float[Tensor, "ids d"],
        codes: Int[Tensor, "b n"],
        num_quantizers: int,
        linears: StepLinears,
    ) -> None:
        self.copier = copier
        self.to_key, self.to_query = linears.read(copier.to_key), linears.read(copier.to_query)
        # keys are made in the dtype of a step, whatever that of the weights
        self.token_embed = token_embed.to(step_dtype(token_embed.dtype))
        self.num_quantizers = num_quantizers
        self.length, self.level = divmod(codes.shape[1], num_quantizers)
        # how many vertices are complete, once the device counts
        self.static_length: Int[Tensor, " 1"] | None = None
        whole = codes[:, : self.length * num_quantizers]
        self.codes = rearrange(whole, "b (u q) -> b u q", q=num_quantizers).contiguous()
        keys = self._make_keys(rearrange(self.codes, "b u q -> (b u) q"))
        self.keys = rearrange(keys, "(b u) d -> b u d", b=len(codes))
        # codes of the vertex that is being written
        self.vertex = codes.new_zeros(len(codes), num_quantizers)
        self.vertex[:, : self.level] = codes[:, whole.shape[1] :]

    def _make_keys(self, vertices: Int[Tensor, "n q"]) -> Float[Tensor, "n d_key"]:
        return self.to_key(F.embedding(vertices, self.token_embed).flatten(start_dim=1))

    def append(self, code: Int[Tensor, " b"]) -> None:
        """Take in one more code of each row."""
        self.vertex[:, self.level] = code
        self.level = (self.level + 1) % self.num_quantizers
        if self.level > 0:
            return
        key = self._make_keys(self.vertex)
        if self.static_length is not None:
            self.codes.index_copy_(1, self.static_length, self.vertex[:, None])
            self.keys.index_copy_(1, self.static_length, key[:, None])
            self.static_length.add_(1)
            return
        if self.length == self.codes.shape[1]:
            self._reserve(self.length + max(self.length, FIRST_CAPACITY))
        self.codes[:, self.length] = self.vertex
        self.keys[:, self.length] = key
        self.length += 1

    def _reserve(self, capacity: int) -> None:
        missing = capacity - self.codes.shape[1]
        self.codes = F.pad(self.codes, (0, 0, 0, missing))
        self.keys = F.pad(self.keys, (0, 0, 0, missing))

    def make_static(self, num_vertices: int) -> None:
        """Let the device count from now on, in memory with room for so many more vertices."""
        if self.static_length is None:
            self.static_length = torch.full((1,), self.length, device=self.codes.device)
            self.codes, self.keys = self.codes[:, : self.length], self.keys[:, : self.length]
        self._reserve(self.codes.shape[1] + num_vertices)

    def add_to(
        self, logits: Float[Tensor, "b c"], hidden: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c"]:
        """Add the weights of copies to the logits of the next code, made from ``hidden``."""
        if self.static_length is None:
            # as many vertices are complete, which is the number of the one being written
            length, vertex = self.length, torch.full((1,), self.length, device=self.codes.device)
        else:
            length, vertex = self.codes.shape[1], self.static_length
        return copy_into_next(
            self.copier,
            logits,
            self.to_query(hidden),
            self.keys[:, :length],
            self.codes[:, :length],
            vertex=vertex,
            begun=self.vertex[:, : self.level],
        )

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some rows of the batch."""
        self.codes, self.keys, self.vertex = self.codes[rows], self.keys[rows], self.vertex[rows]
