"""Vertex features <-> residual codes, on top of vector-quantize-pytorch.

Faces that share a vertex give it one feature, their mean, and so one tuple of codes: that is what
lets a language model copy a vertex instead of inventing it anew (MeshGPT, section 3.1).
"""

from collections.abc import Mapping, Sequence
from math import ceil, log2, prod
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import ResidualLFQ, ResidualSimVQ, ResidualVQ

from meshgpt_pytorch.tokenizers.checks import check_is_positive
from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer
from meshgpt_pytorch.tokenizers.lookup_free import factorize_entropy
from meshgpt_pytorch.tokenizers.row_groups import group_rows, mean_of_groups
from meshgpt_pytorch.typing import typecheck

QuantizerKind: TypeAlias = Literal["lfq", "rvq", "fsq", "simvq"]
Quantizer: TypeAlias = ResidualLFQ | ResidualVQ | ResidualSimVQ | FiniteScalarQuantizer

RQ_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "quantize_dropout": True,
        "quantize_dropout_cutoff_index": 1,
        "quantize_dropout_multiple_of": 1,
    }
)
RVQ_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"kmeans_init": True, "threshold_ema_dead_code": 2}
)
RLFQ_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "frac_per_sample_entropy": 1.0,
        "soft_clamp_input_value": 10.0,
        "experimental_softplus_entropy_loss": True,
    }
)


class QuantizedVertices(NamedTuple):
    """Vertices after quantisation.

    quantized: ``b nv d``, what the decoder reads.
    codes: ``b nv q``, ids in ``[0, codebook_size)``.
    commit_loss: ``q``, one for each quantizer; zero in eval mode.
    """

    quantized: Float[Tensor, "b nv d"]
    codes: Int[Tensor, "b nv q"]
    commit_loss: Float[Tensor, " q"]


def build_quantizer(
    kind: QuantizerKind,
    dim: int,
    *,
    num_quantizers: int,
    codebook_size: int,
    rq_kwargs: Mapping[str, Any],
    rvq_kwargs: Mapping[str, Any],
    rlfq_kwargs: Mapping[str, Any],
    rvq_stochastic_sample_codes: bool,
    fsq_levels: Sequence[int],
) -> Quantizer:
    """Build the residual quantizer of vertex features.

    Args:
        kind: ``lfq``, lookup-free quantisation (Yu et al., arXiv 2310.05737); ``rvq``, a learned
            codebook shared by all levels (Zeghidour et al., 2107.03312); ``fsq``, finite scalar
            quantisation (Mentzer et al., 2309.15505); ``simvq``, fixed random codebooks behind a
            learned linear map (Zhu et al., 2411.02038).
        dim: width of a vertex feature.
        num_quantizers: codes a vertex, D in the paper.
        codebook_size: ids of a code.
        rq_kwargs: options of all kinds but ``fsq``, whose codes are never dropped.
        rvq_kwargs: options of ``ResidualVQ`` alone.
        rlfq_kwargs: options of ``ResidualLFQ`` alone.
        rvq_stochastic_sample_codes: sample codes by distance while training ``ResidualVQ``.
        fsq_levels: digits of a code along each axis of ``fsq``.

    Returns:
        the quantizer module.

    Raises:
        ValueError: a codebook size that the kind cannot have.
    """
    check_is_positive(num_quantizers=num_quantizers, codebook_size=codebook_size)
    sizes = {"dim": dim, "num_quantizers": num_quantizers, "codebook_size": codebook_size}
    if kind == "rvq":
        return ResidualVQ(
            **sizes,
            shared_codebook=True,
            commitment_weight=1.0,
            rotation_trick=True,
            stochastic_sample_codes=rvq_stochastic_sample_codes,
            **rvq_kwargs,
            **rq_kwargs,
        )
    if kind == "simvq":
        return ResidualSimVQ(**sizes, **rq_kwargs)
    if kind == "fsq":
        if prod(fsq_levels) != codebook_size:
            raise ValueError(
                f"codebook_size must be the product of fsq_levels {tuple(fsq_levels)}, "
                f"{prod(fsq_levels)}, with quantizer='fsq', got {codebook_size}; pass "
                f"codebook_size={prod(fsq_levels)}, or other levels"
            )
        return FiniteScalarQuantizer(dim, levels=fsq_levels, num_quantizers=num_quantizers)
    if codebook_size < 2 or not log2(codebook_size).is_integer():
        nearest = 2 ** max(1, ceil(log2(max(codebook_size, 2))))
        raise ValueError(
            f"codebook_size must be a power of two with use_residual_lfq=True, got "
            f"{codebook_size}; use {nearest}, or use_residual_lfq=False for a learned codebook of "
            "any size"
        )
    lookup_free = ResidualLFQ(**sizes, commitment_loss_weight=1.0, **rlfq_kwargs, **rq_kwargs)
    return factorize_entropy(lookup_free)


@typecheck
def scatter_mean(
    tgt: Tensor, indices: Int[Tensor, "..."], src: Tensor, *, dim: int = -1, eps: float = 1e-5
) -> Tensor:
    """Average source values that share an index along an axis.

    Args:
        tgt: starting values, usually zeros, of the result's shape and dtype.
        indices: where each source value goes along ``dim``; of the source's shape.
        src: values to average.
        dim: axis of ``tgt`` that the indices refer to.
        eps: least divisor, so that rows without a source stay as ``tgt`` has them.

    Returns:
        the sum of ``tgt`` and its sources over the number of sources.
    """
    total = tgt.scatter_add(dim, indices, src)
    count = torch.zeros_like(tgt).scatter_add(dim, indices, torch.ones_like(src))
    return total / count.clamp(min=eps)


@typecheck
def average_over_vertices(
    corner_features: Float[Tensor, "b nf nvf d"],
    faces: Int[Tensor, "b nf nvf"],
    face_mask: Bool[Tensor, "b nf"],
    *,
    num_vertices: int,
) -> tuple[Float[Tensor, "b nv d"], Bool[Tensor, "b nv"]]:
    """Give each vertex the mean of the features that its faces have for it.

    Args:
        corner_features: feature of each corner of each face.
        faces: vertex index of each corner.
        face_mask: True where a face exists; the others are left out.
        num_vertices: rows of the result.

    Returns:
        features ``b nv d``, and a mask ``b nv`` of the vertices that some face refers to.
    """
    batch = len(faces)
    # half precision cannot add up many corners
    sum_dtype = torch.promote_types(corner_features.dtype, torch.float32)
    # all meshes as one list of vertices; padded faces go to one more of each, cut off again
    vertices = faces.masked_fill(~rearrange(face_mask, "b nf -> b nf 1"), num_vertices)
    offset = torch.arange(batch, device=faces.device) * (num_vertices + 1)
    vertices = rearrange(vertices + rearrange(offset, "b -> b 1 1"), "b nf nvf -> (b nf nvf)")
    corners = torch.arange(len(vertices), device=faces.device)
    groups = group_rows(
        torch.stack((corners, vertices)),
        num_rows=len(corners),
        num_groups=batch * (num_vertices + 1),
    )
    features = mean_of_groups(
        rearrange(corner_features, "b nf nvf d -> (b nf nvf) d").to(sum_dtype), groups
    )
    features = rearrange(features, "(b nv) d -> b nv d", b=batch)[:, :-1]
    referenced = rearrange(groups.sizes > 0, "(b nv) -> b nv", b=batch)[:, :-1]
    return features.to(corner_features.dtype), referenced


def require_initialized(quantizer: Quantizer) -> None:
    """Refuse to read codes from a codebook that k-means has not filled yet.

    Raises:
        RuntimeError: the first training batch, which initialises the codebook, has not run.
    """
    if not isinstance(quantizer, ResidualVQ) or quantizer.training:
        return
    if not bool(quantizer.layers[0]._codebook.initted):
        raise RuntimeError(
            "codes need a codebook, but k-means has not initialised it yet: it does so on the "
            "first training batch; train or load the autoencoder first, or build it with "
            "rvq_kwargs without kmeans_init"
        )


def quantize_vertices(
    quantizer: Quantizer,
    features: Float[Tensor, "b nv d"],
    referenced: Bool[Tensor, "b nv"],
    *,
    sample_codebook_temp: float | int = 1.0,
    memory_checkpoint: bool = False,
) -> QuantizedVertices:
    """Quantise vertex features; only vertices that a face refers to count in training.

    Args:
        quantizer: module made by ``build_quantizer``.
        features: vertex features.
        referenced: True for the vertices that the codebook, its statistics and its losses see.
        sample_codebook_temp: temperature of stochastic codes (``ResidualVQ`` in training).
        memory_checkpoint: recompute the quantizer in the backward pass; not for ``ResidualVQ``.

    Returns:
        quantised features, codes and commitment losses; rows not referenced are undefined while
        training.

    Raises:
        RuntimeError: eval mode before the codebook was initialised.
    """
    require_initialized(quantizer)

    def run(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(quantizer, ResidualVQ):
            return quantizer(inputs, sample_codebook_temp=sample_codebook_temp)
        if not isinstance(quantizer, ResidualLFQ):
            return quantizer(inputs)
        # with a mask, even of ones, the library takes entropies vertex by vertex, as upstream does
        return quantizer(inputs, mask=torch.ones_like(inputs[..., 0], dtype=torch.bool))

    if not quantizer.training:
        quantized, codes, commit_loss = run(features)
        return QuantizedVertices(quantized, codes, torch.zeros_like(commit_loss))

    # places rather than a mask, which would have to be searched again in the backward pass
    inputs = rearrange(features[referenced.nonzero(as_tuple=True)], "n d -> 1 n d")
    if memory_checkpoint:
        quantized, codes, commit_loss = checkpoint(run, inputs, use_reentrant=False)
    else:
        quantized, codes, commit_loss = run(inputs)
    # back to their rows: the i-th referenced vertex is the i-th row that was quantised
    row = rearrange(referenced.flatten().cumsum(dim=0) - 1, "(b nv) -> b nv", b=len(features))
    row = row.clamp(min=0)
    return QuantizedVertices(quantized[0][row], codes[0][row], commit_loss.flatten())
