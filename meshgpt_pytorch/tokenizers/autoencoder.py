"""Stage 4 and 7 of the flow: faces -> residual codes, and residual codes -> faces.

A graph convolution network reads faces, with the faces beside them as neighbours; what the faces
know of a vertex is averaged and quantised; a 1-D ResNet over the face sequence reads the quantised
vertices and predicts a bin for each coordinate of each face. (MeshGPT, Siddiqui et al. 2023,
arXiv 2311.15475, section 3.1.)
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, get_args

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import ModuleList

from meshgpt_pytorch.checkpoint import SavedModule
from meshgpt_pytorch.mesh import (
    check_mesh_batch,
    check_mesh_shapes,
    derive_face_edges_from_faces,
)
from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.tokenizers.consistency import average_over_corners
from meshgpt_pytorch.tokenizers.decoder import FaceDecoder
from meshgpt_pytorch.tokenizers.encoder import FaceEncoder
from meshgpt_pytorch.tokenizers.layers import AttentionBlock
from meshgpt_pytorch.tokenizers.losses import blurred_cross_entropy
from meshgpt_pytorch.tokenizers.outputs import (
    EncodedFaces,
    LossBreakdown,
    LossOutput,
    ReconLossOutput,
    ReconOutput,
)
from meshgpt_pytorch.tokenizers.quantizer import (
    RLFQ_DEFAULTS,
    RQ_DEFAULTS,
    RVQ_DEFAULTS,
    QuantizerKind,
    build_quantizer,
)
from meshgpt_pytorch.tokenizers.quantizer_start import spread_over_codes
from meshgpt_pytorch.tokenizers.vertex_quantizer import VertexQuantizer
from meshgpt_pytorch.typing import typecheck

SAGECONV_DEFAULTS: Mapping[str, Any] = MappingProxyType({"normalize": True, "project": True})
LOCAL_ATTN_DEFAULTS: Mapping[str, Any] = MappingProxyType({"dim_head": 32, "heads": 8})
LINEAR_ATTN_DEFAULTS: Mapping[str, Any] = MappingProxyType({"dim_head": 8, "heads": 16})


DECODER_DIMS = (*(128,) * 4, *(192,) * 4, *(256,) * 6, *(384,) * 3)


def check_options(
    coor_continuous_range: Sequence[float | int],
    quantizer: QuantizerKind,
    checkpoint_quantizer: bool,
    pad_id: int,
) -> None:
    """Refuse options that do not go together, see ``MeshAutoencoder``."""
    if quantizer not in get_args(QuantizerKind):
        raise ValueError(
            f"quantizer must be one of {get_args(QuantizerKind)}, or None to follow "
            f"use_residual_lfq, got {quantizer!r}; upstream's default is 'lfq'"
        )
    if checkpoint_quantizer and quantizer == "rvq":
        raise ValueError(
            "checkpoint_quantizer needs use_residual_lfq=True: a learned codebook is updated in "
            "the forward pass, which cannot be run twice; pass checkpoint_quantizer=False"
        )
    if len(coor_continuous_range) != 2 or not coor_continuous_range[0] < coor_continuous_range[1]:
        raise ValueError(
            f"coor_continuous_range must be (low, high), got {tuple(coor_continuous_range)}; "
            "the usual range is (-1., 1.)"
        )
    if pad_id >= 0:
        raise ValueError(f"pad_id must be below 0, where no vertex is, got {pad_id}; use -1")


class MeshAutoencoder(FaceEncoder, VertexQuantizer, FaceDecoder, SavedModule):
    """Turn the faces of a mesh into residual codes, and codes back into faces.

    Coordinates are read as bins of ``coor_continuous_range``; those outside are clamped to the
    first or last bin, with a warning. Faces are padded with ``pad_id``, at any place of their row;
    vertices with any finite numbers.

    Args:
        num_discrete_coors: bins of a coordinate.
        coor_continuous_range: lower and upper end of the coordinates (and, as in upstream's
            weights, of the normals).
        dim_coor_embed, dim_area_embed, dim_normal_embed, dim_angle_embed: widths of the
            embeddings of one coordinate, one area, one axis of a normal, one angle.
        num_discrete_area, num_discrete_normals, num_discrete_angle: bins of those features.
        encoder_dims_through_depth: widths of the graph convolutions.
        init_decoder_conv_kernel: faces that the decoder's first convolution spans; odd.
        decoder_dims_through_depth: widths of the decoder's convolution and its ResNet blocks.
        dim_codebook: width of a vertex where it is quantised.
        num_quantizers: codes a vertex (D in the paper).
        codebook_size: ids of a code; a power of two for lookup-free quantisation, the product of
            fsq_levels for ``fsq``.
        use_residual_lfq: lookup-free quantisation, or else learned codebooks; not read if
            quantizer is given.
        rq_kwargs: options of all kinds of quantizer but ``fsq``. Like each ``..._kwargs`` option
            here, a given mapping replaces the default one as a whole.
        rvq_kwargs, rlfq_kwargs: options of ``ResidualVQ`` and ``ResidualLFQ``.
        rvq_stochastic_sample_codes: sample codes by distance in training (``ResidualVQ``).
        sageconv_kwargs: options of ``SAGEConv``.
        commit_loss_weight: weight of the quantizer's losses in the total.
        bin_smooth_blur_sigma: how far reconstruction targets are blurred over bins; 0 or less
            switches the blur off.
        attn_encoder_depth, attn_decoder_depth: attention blocks behind the encoder and before
            the decoder.
        local_attn_kwargs, local_attn_window_size: options of attention over a window of faces.
        linear_attn_kwargs, use_linear_attn: options of linear attention over all faces.
        pad_id: what padded faces hold, and padded codes.
        flash_attn: accepted as upstream does; windows this small have no flash kernel.
        attn_dropout, ff_dropout, resnet_dropout: shares dropped in training.
        checkpoint_quantizer: recompute the quantizer in the backward pass, to save memory; not
            for ``rvq``.
        quads: faces have 4 vertices.
        checkpoint_activations: compute the inside of layers again in the backward pass instead of
            keeping it: less memory for about a third more time.
        quantizer: ``lfq``, ``rvq``, ``fsq`` or ``simvq``, see ``build_quantizer``; None follows
            use_residual_lfq.
        fsq_levels: digits of a code along each axis of ``fsq``; with two quantizers there are
            ``levels ** 2`` steps along an axis.
        vertex_shortcut: lead coordinates of vertices straight to their codes, and codes straight
            to coordinates, beside the networks over faces, see ``VertexShortcut``; for ``fsq``
            with three axes.
        vertex_consistent: average the logits of the corners that share a vertex, in the loss and
            when codes are decoded, so that shared vertices of a mesh coincide.

    Raises:
        ValueError: options that do not go together.
    """

    @typecheck
    def __init__(
        self,
        num_discrete_coors: int = 128,
        coor_continuous_range: Sequence[float | int] = (-1.0, 1.0),
        dim_coor_embed: int = 64,
        num_discrete_area: int = 128,
        dim_area_embed: int = 16,
        num_discrete_normals: int = 128,
        dim_normal_embed: int = 64,
        num_discrete_angle: int = 128,
        dim_angle_embed: int = 16,
        encoder_dims_through_depth: Sequence[int] = (64, 128, 256, 256, 576),
        init_decoder_conv_kernel: int = 7,
        decoder_dims_through_depth: Sequence[int] = DECODER_DIMS,
        dim_codebook: int = 192,
        num_quantizers: int = 2,
        codebook_size: int = 16384,
        use_residual_lfq: bool = True,
        rq_kwargs: Mapping[str, Any] = RQ_DEFAULTS,
        rvq_kwargs: Mapping[str, Any] = RVQ_DEFAULTS,
        rlfq_kwargs: Mapping[str, Any] = RLFQ_DEFAULTS,
        rvq_stochastic_sample_codes: bool = True,
        sageconv_kwargs: Mapping[str, Any] = SAGECONV_DEFAULTS,
        commit_loss_weight: float | int = 0.1,
        bin_smooth_blur_sigma: float | int = 0.4,
        attn_encoder_depth: int = 0,
        attn_decoder_depth: int = 0,
        local_attn_kwargs: Mapping[str, Any] = LOCAL_ATTN_DEFAULTS,
        local_attn_window_size: int = 64,
        linear_attn_kwargs: Mapping[str, Any] = LINEAR_ATTN_DEFAULTS,
        use_linear_attn: bool = True,
        pad_id: int = -1,
        flash_attn: bool = True,
        attn_dropout: float | int = 0.0,
        ff_dropout: float | int = 0.0,
        resnet_dropout: float | int = 0.0,
        checkpoint_quantizer: bool = False,
        quads: bool = False,
        *,
        checkpoint_activations: bool = False,
        quantizer: QuantizerKind | None = None,
        fsq_levels: Sequence[int] = (32, 32, 16),
        vertex_shortcut: bool = False,
        vertex_consistent: bool = False,
    ) -> None:
        super().__init__()
        if quantizer is None:
            quantizer = "lfq" if use_residual_lfq else "rvq"
        check_options(coor_continuous_range, quantizer, checkpoint_quantizer, pad_id)
        self.num_vertices_per_face = nvf = 4 if quads else 3
        self.num_discrete_coors = num_discrete_coors
        self.coor_continuous_range = (
            float(coor_continuous_range[0]),
            float(coor_continuous_range[1]),
        )
        self.pad_id = pad_id
        self.codebook_size = codebook_size
        self.num_quantizers = num_quantizers
        self.commit_loss_weight = commit_loss_weight
        self.bin_smooth_blur_sigma = bin_smooth_blur_sigma
        self.checkpoint_quantizer = checkpoint_quantizer
        self.checkpoint_activations = checkpoint_activations
        self.vertex_consistent = vertex_consistent

        self._build_features(
            num_discrete={
                "area": num_discrete_area,
                "normal": num_discrete_normals,
                "angle": num_discrete_angle,
            },
            dim_embed={
                "coor": dim_coor_embed,
                "area": dim_area_embed,
                "normal": dim_normal_embed,
                "angle": dim_angle_embed,
            },
            dim_codebook=dim_codebook,
        )
        self._build_encoder(dim_codebook, encoder_dims_through_depth, sageconv_kwargs)
        dim_encoded = encoder_dims_through_depth[-1]
        self.project_dim_codebook = nn.Linear(dim_encoded, dim_codebook * nvf)
        self.quantizer = build_quantizer(
            quantizer,
            dim_codebook,
            num_quantizers=num_quantizers,
            codebook_size=codebook_size,
            rq_kwargs=rq_kwargs,
            rvq_kwargs=rvq_kwargs,
            rlfq_kwargs=rlfq_kwargs,
            rvq_stochastic_sample_codes=rvq_stochastic_sample_codes,
            fsq_levels=fsq_levels,
        )
        self.vertex_shortcut = (
            self._build_vertex_shortcut(dim_codebook, num_discrete_coors)
            if vertex_shortcut
            else None
        )
        self._build_decoder(
            dim_codebook * nvf, decoder_dims_through_depth, init_decoder_conv_kernel, resnet_dropout
        )

        attention_block = partial(
            AttentionBlock,
            window_size=local_attn_window_size,
            local_attn_kwargs=local_attn_kwargs,
            linear_attn_kwargs=linear_attn_kwargs if use_linear_attn else None,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
        )
        self.encoder_attn_blocks = ModuleList(
            attention_block(dim_encoded) for _ in range(attn_encoder_depth)
        )
        self.decoder_attn_blocks = ModuleList(
            attention_block(dim_codebook * nvf) for _ in range(attn_decoder_depth)
        )

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.project_in.weight.device

    @typecheck
    @torch.no_grad()
    def tokenize(
        self,
        vertices: Float[Tensor, "*b nv 3"],
        faces: Int[Tensor, "*b nf nvf"],
        face_edges: Int[Tensor, "*b e 2"] | None = None,
    ) -> Int[Tensor, "*b n q"]:
        """Turn meshes into codes, in eval mode; each part's own mode returns afterwards.

        Args:
            vertices: coordinates, ``b nv 3``, or ``nv 3`` for one mesh.
            faces: vertex indices, ``b nf nvf`` padded with ``pad_id``, or ``nf nvf``.
            face_edges: neighbouring faces, ``b e 2`` or ``e 2``; derived if not given.

        Returns:
            codes ``b (nf nvf) q`` in the order of the faces' corners, ``pad_id`` where padded;
            without the batch axis if the mesh came without.

        Raises:
            ValueError: bad meshes, as for ``forward``; some inputs batched and others not.
            RuntimeError: a codebook that was never initialised.
        """
        inputs = [vertices, faces] if face_edges is None else [vertices, faces, face_edges]
        ndims = [tensor.ndim for tensor in inputs]
        if set(ndims) not in ({2}, {3}):
            raise ValueError(
                "vertices, faces and face_edges must all have a batch axis, or all none, got "
                f"{ndims} axes; index them alike, as in vertices[None], faces[None]"
            )
        single = ndims[0] == 2
        if single:
            vertices, faces = vertices[None], faces[None]
            face_edges = None if face_edges is None else face_edges[None]
        codes = self.forward(
            vertices=vertices, faces=faces, face_edges=face_edges, return_codes=True
        )
        assert isinstance(codes, Tensor), "return_codes returns codes alone"
        return codes[0] if single else codes

    @typecheck
    @torch.no_grad()
    def start_quantizer(
        self,
        *,
        vertices: Float[Tensor, "b nv 3"],
        faces: Int[Tensor, "b nf nvf"],
        face_edges: Int[Tensor, "b e 2"] | None = None,
    ) -> None:
        """Spread the vertices of some meshes over lookup-free codes, before training.

        Only the projection into the quantizer changes, see ``spread_over_codes``.

        Args:
            vertices, faces, face_edges: a batch of meshes, as for ``forward``; a few dozen do.

        Raises:
            ValueError: bad meshes, or another quantizer.
        """
        with evaluating(self):
            encoded, face_mask = self._encode_mesh(vertices, faces, face_edges)
            features, referenced = self._vertex_features(
                encoded.face_embed, faces, face_mask, vertices.shape[1], vertices
            )
        spread_over_codes(self.quantizer, features[referenced])

    def _encode_mesh(
        self, vertices: Tensor, faces: Tensor, face_edges: Tensor | None
    ) -> tuple[EncodedFaces, Bool[Tensor, "b nf"]]:
        """Check a batch and encode it."""
        check_mesh_shapes(vertices, faces, num_vertices_per_face=self.num_vertices_per_face)
        check_mesh_batch(
            vertices,
            faces,
            face_edges,
            pad_id=self.pad_id,
            coor_continuous_range=self.coor_continuous_range,
        )
        if face_edges is None:
            face_edges = derive_face_edges_from_faces(faces, pad_id=self.pad_id)
        face_mask = reduce(faces != self.pad_id, "b nf nvf -> b nf", "all")
        encoded = self.encode(
            vertices=vertices,
            faces=faces,
            face_edges=face_edges,
            face_mask=face_mask,
            face_edges_mask=reduce(face_edges != self.pad_id, "b e ij -> b e", "all"),
            return_face_coordinates=True,
        )
        assert isinstance(encoded, EncodedFaces), "coordinates were asked for"
        return encoded, face_mask

    @typecheck
    def forward(
        self,
        *,
        vertices: Float[Tensor, "b nv 3"],
        faces: Int[Tensor, "b nf nvf"],
        face_edges: Int[Tensor, "b e 2"] | None = None,
        return_codes: bool = False,
        return_loss_breakdown: bool = False,
        return_recon_faces: bool = False,
        only_return_recon_faces: bool = False,
        rvq_sample_codebook_temp: float | int = 1.0,
        skip_quantizer: bool = False,
    ) -> Tensor | LossOutput | ReconOutput | ReconLossOutput:
        """Reconstruct a batch of meshes and return its loss.

        Args:
            vertices: coordinates in ``coor_continuous_range``; rows that no face refers to are
                ignored.
            faces: vertex indices, padded with ``pad_id``.
            face_edges: neighbouring faces, padded with ``pad_id``; derived if not given.
            return_codes: return the codes ``b (nf nvf) q`` alone, computed in eval mode.
            return_loss_breakdown: return the parts of the loss too.
            return_recon_faces: return the reconstructed face coordinates too.
            only_return_recon_faces: return the reconstructed face coordinates alone.
            rvq_sample_codebook_temp: temperature of stochastic codes in training.
            skip_quantizer: reconstruct from unquantised vertices, as at the start of a training
                that lets the quantizer in later.

        Returns:
            the loss, a mean over the coordinates of all faces in the batch plus the weighted
            commitment losses; or a named tuple ``(recon_faces, loss, breakdown)`` of what was
            asked for, in this order.

        Raises:
            ValueError: meshes that are empty, unbatched, of another kind of face, not finite, or
                with indices out of range; flags that exclude one another.
        """
        return_faces = return_recon_faces or only_return_recon_faces
        if return_codes and (return_loss_breakdown or return_faces or skip_quantizer):
            raise ValueError(
                "return_codes returns codes alone, got return_loss_breakdown, return_recon_faces, "
                "only_return_recon_faces or skip_quantizer with it; call the autoencoder once for "
                "each"
            )
        with evaluating(self) if return_codes else nullcontext():
            encoded, face_mask = self._encode_mesh(vertices, faces, face_edges)
            quantized = self.quantize(
                faces=faces,
                face_mask=face_mask,
                face_embed=encoded.face_embed,
                rvq_sample_codebook_temp=rvq_sample_codebook_temp,
                num_vertices=vertices.shape[1],
                skip_quantizer=skip_quantizer,
                vertices=vertices,
            )
        if return_codes:
            return quantized.codes

        logits = self._coordinate_logits(quantized.quantized, face_mask)
        if self.vertex_consistent:
            ids = rearrange(faces, "b nf nvf -> b nf nvf 1")
            if not (self.training or skip_quantizer):
                # as codes are decoded; while training, other vertices may still share them
                ids = rearrange(quantized.codes, "b (nf nvf) q -> b nf nvf q", nf=faces.shape[1])
            logits = average_over_corners(logits, ids, face_mask)

        if return_faces:
            bins = rearrange(logits.argmax(dim=-1), "b nf (nvf c) -> b nf nvf c", c=3)
            recon_faces = self._coordinates_of_bins(bins, face_mask)
        if only_return_recon_faces:
            return recon_faces

        recon_loss = self.run_part(
            self._reconstruction_loss, logits, encoded.face_coordinates, face_mask
        )
        loss = recon_loss + quantized.commit_loss.sum() * self.commit_loss_weight
        breakdown = LossBreakdown(recon_loss, quantized.commit_loss)
        if return_recon_faces and return_loss_breakdown:
            return ReconLossOutput(recon_faces, loss, breakdown)
        if return_recon_faces:
            return ReconOutput(recon_faces, loss)
        return LossOutput(loss, breakdown) if return_loss_breakdown else loss

    def _reconstruction_loss(
        self,
        logits: Float[Tensor, "b nf c num_bins"],
        face_coordinates: Int[Tensor, "b nf c"],
        face_mask: Bool[Tensor, "b nf"],
    ) -> Float[Tensor, ""]:
        losses = blurred_cross_entropy(logits, face_coordinates, sigma=self.bin_smooth_blur_sigma)
        weight = repeat(face_mask, "b nf -> b nf c", c=face_coordinates.shape[-1]).float()
        return (losses * weight).sum() / weight.sum()
