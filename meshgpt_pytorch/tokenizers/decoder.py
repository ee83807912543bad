"""Stage 7, first half: codes or quantised faces -> a bin for each coordinate of each face."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange, reduce
from einops.layers.torch import Rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import ModuleList

from meshgpt_pytorch.mesh import undiscretize
from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.recompute import PartRunner
from meshgpt_pytorch.tokenizers.checks import check_code_ids, check_is_positive, flatten_codes
from meshgpt_pytorch.tokenizers.consistency import average_over_corners
from meshgpt_pytorch.tokenizers.layers import (
    InitialConvolution,
    ResnetBlock,
    order_padding_last,
)
from meshgpt_pytorch.tokenizers.outputs import DecodedFaces, DiscreteFaces
from meshgpt_pytorch.tokenizers.quantizer import Quantizer, require_initialized
from meshgpt_pytorch.tokenizers.row_groups import take_rows
from meshgpt_pytorch.tokenizers.vertex_shortcut import VertexShortcut
from meshgpt_pytorch.typing import typecheck


class FaceDecoder(PartRunner):
    """The decoder part of ``MeshAutoencoder``, which inherits it so that weights keep their names.

    Reads ``quantizer`` and the sizes below of the whole; ``decoder_attn_blocks`` may be empty.
    """

    num_vertices_per_face: int
    num_quantizers: int
    codebook_size: int
    num_discrete_coors: int
    coor_continuous_range: tuple[float, float]
    pad_id: int
    quantizer: Quantizer
    vertex_shortcut: VertexShortcut | None
    vertex_consistent: bool
    decoder_attn_blocks: ModuleList

    def _build_decoder(
        self, dim_face: int, dims: Sequence[int], kernel_size: int, dropout: float
    ) -> None:
        check_is_positive(decoder_dims_through_depth=dims)
        self.init_decoder_conv = InitialConvolution(dim_face, dims[0], kernel_size)
        self.decoders = ModuleList(
            ResnetBlock(dim, dim_out, dropout=dropout) for dim, dim_out in pairwise(dims)
        )
        num_coordinates = self.num_vertices_per_face * 3
        self.to_coor_logits = nn.Sequential(
            nn.Linear(dims[-1], self.num_discrete_coors * num_coordinates),
            Rearrange("... (c bins) -> ... c bins", c=num_coordinates),
        )

    @typecheck
    def decode(
        self, quantized: Float[Tensor, "b nf d"], face_mask: Bool[Tensor, "b nf"]
    ) -> Float[Tensor, "b nf d_out"]:
        """Read quantised faces into features that coordinate logits are made from.

        Args:
            quantized: quantised faces, their vertices side by side.
            face_mask: True where a face exists; padding may stand anywhere.

        Returns:
            features ``b nf d``, zero where padded.
        """
        order = order_padding_last(face_mask)
        mask = face_mask.gather(1, order)
        x = take_rows(quantized, order)
        for attention in self.decoder_attn_blocks:
            x = self.run_part(attention, x, mask)
        conv_mask = rearrange(mask, "b nf -> b nf 1")
        x = self.init_decoder_conv(x.masked_fill(~conv_mask, 0.0), conv_mask)
        for block in self.decoders:
            x = self.run_part(block, x, conv_mask)
        return take_rows(x, order.argsort(dim=1))

    @typecheck
    @torch.no_grad()
    def decode_from_codes_to_faces(
        self,
        codes: Int[Tensor, "b *n"],
        face_mask: Bool[Tensor, "b nf"] | None = None,
        return_discrete_codes: bool = False,
        *,
        vertex_consistent: bool | None = None,
    ) -> DecodedFaces | DiscreteFaces:
        """Decode codes into face coordinates, in eval mode.

        Args:
            codes: ids ``b n``, ``b (nf nvf) q`` or any shape that flattens to them; ``pad_id`` in
                faces that do not exist.
            face_mask: faces that exist; those whose codes all do, if not given. A face in the
                mask may lack codes of some quantizers: they add nothing to its vertices.
            return_discrete_codes: return the bins of the coordinates too.
            vertex_consistent: average the logits of corners with equal codes, which are one
                vertex, so that they coincide; the autoencoder's own option by default.

        Returns:
            coordinates ``b nf nvf 3``, nan where padded, and the mask ``b nf``.

        Raises:
            ValueError: codes that are not whole faces, ids outside the codebook, or a mask of
                another number of faces.
            RuntimeError: a codebook that was never initialised.
        """
        nvf, q = self.num_vertices_per_face, self.num_quantizers
        codes = flatten_codes(codes, q)
        if codes.shape[1] % (nvf * q):
            raise ValueError(
                f"codes must come in whole faces of {nvf} vertices x {q} quantizers = {nvf * q}, "
                f"got {codes.shape[1]} codes a row; cut them to a multiple of {nvf * q}"
            )
        check_code_ids(codes, self.codebook_size, self.pad_id)
        codes = rearrange(codes, "b (nf nvf q) -> b nf nvf q", nvf=nvf, q=q)
        if face_mask is None:
            face_mask = reduce(codes != self.pad_id, "b nf nvf q -> b nf", "all")
        if face_mask.shape != codes.shape[:2]:
            raise ValueError(
                f"face_mask must have an entry for each face of codes, {(*codes.shape[:2],)}, got "
                f"shape {(*face_mask.shape,)}; leave it out to derive it from the codes"
            )
        if codes.numel() == 0:
            bins = codes.new_zeros((*codes.shape[:2], nvf, 3))
        else:
            with evaluating(self):
                bins = self._predict_bins(codes, face_mask, vertex_consistent)

        face_coords = self._coordinates_of_bins(bins, face_mask)
        if return_discrete_codes:
            return DiscreteFaces(face_coords, bins, face_mask)
        return DecodedFaces(face_coords, face_mask)

    def _predict_bins(
        self,
        codes: Int[Tensor, "b nf nvf q"],
        face_mask: Bool[Tensor, "b nf"],
        vertex_consistent: bool | None,
    ) -> Int[Tensor, "b nf nvf 3"]:
        require_initialized(self.quantizer)
        # the quantizer's own mark for a code that adds nothing
        ids = codes.masked_fill(codes == self.pad_id, -1)
        quantized = self.quantizer.get_output_from_indices(
            rearrange(ids, "b nf nvf q -> b (nf nvf) q")
        )
        quantized = rearrange(
            quantized, "b (nf nvf) d -> b nf (nvf d)", nvf=self.num_vertices_per_face
        )
        logits = self._coordinate_logits(quantized, face_mask)
        if self.vertex_consistent if vertex_consistent is None else vertex_consistent:
            logits = average_over_corners(logits, ids, face_mask)
        return rearrange(logits.argmax(dim=-1), "b nf (nvf c) -> b nf nvf c", c=3)

    def _coordinate_logits(
        self, quantized: Float[Tensor, "b nf d"], face_mask: Bool[Tensor, "b nf"]
    ) -> Float[Tensor, "b nf c num_bins"]:
        """Decode quantised faces; zeros, or what the shortcut makes of them, where padded."""
        logits = self.to_coor_logits(self.decode(quantized, face_mask))
        if self.vertex_shortcut is None:
            return logits
        return self.vertex_shortcut.add_logits(logits, quantized)

    def _coordinates_of_bins(
        self, bins: Int[Tensor, "b nf nvf 3"], face_mask: Bool[Tensor, "b nf"]
    ) -> Float[Tensor, "b nf nvf 3"]:
        coordinates = undiscretize(
            bins, num_discrete=self.num_discrete_coors, continuous_range=self.coor_continuous_range
        )
        return coordinates.masked_fill(~rearrange(face_mask, "b nf -> b nf 1 1"), float("nan"))
