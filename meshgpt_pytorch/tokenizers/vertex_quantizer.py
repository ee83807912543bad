"""Stage 4, second half: face features -> a quantised feature and codes for each vertex."""

from functools import partial

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import Module

from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer
from meshgpt_pytorch.tokenizers.outputs import QuantizedFaces
from meshgpt_pytorch.tokenizers.quantizer import (
    QuantizedVertices,
    Quantizer,
    average_over_vertices,
    quantize_vertices,
)
from meshgpt_pytorch.tokenizers.row_groups import take_rows
from meshgpt_pytorch.tokenizers.vertex_shortcut import VertexShortcut
from meshgpt_pytorch.typing import typecheck


class VertexQuantizer(Module):
    """The quantising part of ``MeshAutoencoder``, which inherits it so that names stay.

    Reads the sizes below of the whole, its projection to vertices, and its quantizer.
    """

    num_vertices_per_face: int
    num_quantizers: int
    pad_id: int
    checkpoint_quantizer: bool
    project_dim_codebook: nn.Linear
    quantizer: Quantizer
    vertex_shortcut: VertexShortcut | None
    discretize_face_coords: partial[Tensor]

    @typecheck
    def quantize(
        self,
        *,
        faces: Int[Tensor, "b nf nvf"],
        face_mask: Bool[Tensor, "b nf"],
        face_embed: Float[Tensor, "b nf d"],
        pad_id: int | None = None,
        rvq_sample_codebook_temp: float | int = 1.0,
        num_vertices: int | None = None,
        skip_quantizer: bool = False,
        vertices: Float[Tensor, "b nv 3"] | None = None,
    ) -> QuantizedFaces:
        """Average face features over shared vertices and quantise the vertices.

        Args:
            faces: vertex indices.
            face_mask: True where a face exists.
            face_embed: features from ``encode``.
            pad_id: what codes of padded faces hold; the autoencoder's own by default.
            rvq_sample_codebook_temp: temperature of stochastic codes in training.
            num_vertices: more than the highest index in ``faces``; read from it if not given,
                which waits for the device.
            skip_quantizer: hand the averaged features on as they are; all codes are padding.
            vertices: coordinates, which an autoencoder with ``vertex_shortcut`` needs.

        Returns:
            quantised faces, codes in the order of the corners, and commitment losses.

        Raises:
            ValueError: no vertices for an autoencoder with ``vertex_shortcut``.
        """
        if num_vertices is None:
            num_vertices = int(faces.amax()) + 1 if vertices is None else vertices.shape[1]
        features, referenced = self._vertex_features(
            face_embed, faces, face_mask, num_vertices, vertices
        )
        if skip_quantizer:
            quantized = self._unquantized(features)
        else:
            quantized = quantize_vertices(
                self.quantizer,
                features,
                referenced,
                sample_codebook_temp=rvq_sample_codebook_temp,
                memory_checkpoint=self.checkpoint_quantizer,
            )

        no_face = ~rearrange(face_mask, "b nf -> b nf 1")
        corner = rearrange(faces.masked_fill(no_face, 0).long(), "b nf nvf -> b (nf nvf)")
        quantized_faces = rearrange(
            take_rows(quantized.quantized, corner),
            "b (nf nvf) d -> b nf (nvf d)",
            nvf=self.num_vertices_per_face,
        )
        codes = take_rows(quantized.codes, corner).masked_fill(
            ~repeat(face_mask, "b nf -> b (nf nvf) 1", nvf=self.num_vertices_per_face),
            self.pad_id if pad_id is None else pad_id,
        )
        return QuantizedFaces(quantized_faces, codes, quantized.commit_loss)

    def _vertex_features(
        self,
        face_embed: Float[Tensor, "b nf d"],
        faces: Int[Tensor, "b nf nvf"],
        face_mask: Bool[Tensor, "b nf"],
        num_vertices: int,
        vertices: Float[Tensor, "b nv 3"] | None,
    ) -> tuple[Float[Tensor, "b nv d"], Bool[Tensor, "b nv"]]:
        """Return what is quantised, and a mask of the vertices that faces refer to."""
        corner_features = rearrange(
            self.project_dim_codebook(face_embed),
            "b nf (nvf d) -> b nf nvf d",
            nvf=self.num_vertices_per_face,
        )
        features, referenced = average_over_vertices(
            corner_features, faces.long(), face_mask, num_vertices=num_vertices
        )
        if self.vertex_shortcut is not None:
            if vertices is None:
                raise ValueError(
                    "quantize needs the coordinates of vertices with vertex_shortcut=True, got "
                    "None; pass vertices="
                )
            bins = self.discretize_face_coords(vertices)
            features = self.vertex_shortcut.add_coordinates(features, bins)
        return features, referenced

    def _build_vertex_shortcut(self, dim: int, num_bins: int) -> VertexShortcut:
        quantizer = self.quantizer
        is_grid = isinstance(quantizer, FiniteScalarQuantizer)
        if not is_grid or len(quantizer.levels) != 3:
            found = f"{len(quantizer.levels)} axes" if is_grid else f"a {type(quantizer).__name__}"
            raise ValueError(
                f"vertex_shortcut needs a grid with an axis for each coordinate, got {found}; pass "
                "quantizer='fsq' and three fsq_levels, (16, 16, 16) with codebook_size=4096"
            )
        shortcut = VertexShortcut(dim, num_bins)
        shortcut.start_as_identity(quantizer)
        return shortcut

    def _unquantized(self, features: Float[Tensor, "b nv d"]) -> QuantizedVertices:
        codes = torch.full(
            (*features.shape[:2], self.num_quantizers), self.pad_id, device=features.device
        )
        return QuantizedVertices(features, codes, features.new_zeros(self.num_quantizers))
