"""Building blocks of the autoencoder: the 1-D ResNet over faces, and attention between faces.

Feature maps of the ResNet, ``b nf d``, come with a mask ``b nf 1`` of the faces that exist. They
are zero where padded, and each block leaves them so. Padded faces then never reach a mean, a norm
or a neighbour, and what a block computes for a mesh does not depend on the batch around it.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from jaxtyping import Bool, Float, Int
from local_attention import LocalMHA
from taylor_series_linear_attention import TaylorSeriesLinearAttn
from torch import Tensor, nn
from torch.nn import Module, ModuleList
from x_transformers.x_transformers import FeedForward, RMSNorm

from meshgpt_pytorch.tokenizers.checks import check_is_positive
from meshgpt_pytorch.tokenizers.pixel_norm import pixel_norm_silu


def order_padding_last(face_mask: Bool[Tensor, "b nf"]) -> Int[Tensor, "b nf"]:
    """Order the faces of each row so that padding comes last; its argsort undoes that.

    Convolutions and windows of attention count places: a padded face between two others must not
    keep them apart.

    Args:
        face_mask: True where a face exists.

    Returns:
        the place that each face of the new order is taken from, for ``take_rows``.
    """
    return (~face_mask).int().argsort(dim=1, stable=True)


def convolve_faces(conv: nn.Conv1d, x: Float[Tensor, "b nf d"]) -> Float[Tensor, "b nf d_out"]:
    """Convolve over the faces of each row, as many zeros beside it as the convolution pads with.

    Args:
        conv: the convolution; its own ``forward`` would want channels before faces.
        x: features.

    Returns:
        features of as many faces.
    """
    # an image one face high, whose channels lie side by side already
    image = rearrange(x, "b nf d -> b d 1 nf")
    weight = rearrange(conv.weight, "d_out d width -> d_out d 1 width")
    convolved = F.conv2d(image, weight, conv.bias, padding=(0, conv.kernel_size[0] // 2))
    return rearrange(convolved, "b d 1 nf -> b nf d")


class SqueezeExcite(Module):
    """Gate channels by a summary of the whole mesh (Hu et al., 1709.01507).

    Args:
        dim: number of channels.
        reduction_factor: how much narrower the bottleneck is.
        min_dim: least width of the bottleneck.
    """

    def __init__(self, dim: int, reduction_factor: int = 4, min_dim: int = 16) -> None:
        super().__init__()
        dim_inner = max(dim // reduction_factor, min_dim)
        self.net = nn.Sequential(
            nn.Linear(dim, dim_inner),
            nn.SiLU(),
            nn.Linear(dim_inner, dim),
            nn.Sigmoid(),
            Rearrange("b d -> b 1 d"),
        )

    def forward(
        self, x: Float[Tensor, "b nf d"], mask: Bool[Tensor, "b nf 1"]
    ) -> Float[Tensor, "b 1 d"]:
        """Return the gate of each channel."""
        num_faces = mask.sum(dim=1).clamp(min=1)
        return self.net(x.sum(dim=1) / num_faces)


class Block(Module):
    """Convolve over neighbouring faces, then normalise and activate.

    Args:
        dim: channels in.
        dim_out: channels out.
        dropout: share of activations dropped.
    """

    def __init__(self, dim: int, dim_out: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv1d(dim, dim_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b nf d"], mask: Bool[Tensor, "b nf 1"]
    ) -> Float[Tensor, "b nf d_out"]:
        return self.dropout(pixel_norm_silu(convolve_faces(self.proj, x), mask))


class ResnetBlock(Module):
    """Add two gated convolution blocks to a shortcut (He et al., 1512.03385).

    Args:
        dim: channels in.
        dim_out: channels out; the shortcut is a 1x1 convolution where they differ.
        dropout: share of activations dropped in each block.
    """

    def __init__(self, dim: int, dim_out: int, *, dropout: float | int = 0.0) -> None:
        super().__init__()
        self.block1 = Block(dim, dim_out, dropout=dropout)
        self.block2 = Block(dim_out, dim_out, dropout=dropout)
        self.excite = SqueezeExcite(dim_out)
        self.residual_conv = nn.Conv1d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b nf d"], mask: Bool[Tensor, "b nf 1"]
    ) -> Float[Tensor, "b nf d_out"]:
        hidden = self.block2(self.block1(x, mask), mask)
        shortcut = x
        if isinstance(self.residual_conv, nn.Conv1d):
            # its bias reaches padded faces
            shortcut = convolve_faces(self.residual_conv, x) * mask
        return torch.addcmul(shortcut, hidden, self.excite(hidden, mask))


class AttentionBlock(ModuleList):
    """Attend between faces: linear attention over all, softmax attention over a window, MLP.

    A list of its three parts, so that its weights are named as upstream's.

    Args:
        dim: width of a face.
        window_size: faces on each side that softmax attention sees.
        local_attn_kwargs: options of ``local_attention.LocalMHA``.
        linear_attn_kwargs: options of ``taylor_series_linear_attention.TaylorSeriesLinearAttn``,
            or None to leave linear attention out.
        attn_dropout: share of attention weights dropped.
        ff_dropout: share of the MLP's activations dropped.
    """

    def __init__(
        self,
        dim: int,
        *,
        window_size: int,
        local_attn_kwargs: Mapping[str, Any],
        linear_attn_kwargs: Mapping[str, Any] | None,
        attn_dropout: float | int = 0.0,
        ff_dropout: float | int = 0.0,
    ) -> None:
        check_is_positive(local_attn_window_size=window_size)
        linear_attn = None
        if linear_attn_kwargs is not None:
            linear_attn = TaylorSeriesLinearAttn(
                dim, **{"prenorm": True, "dropout": attn_dropout, **linear_attn_kwargs}
            )
        local_attn = LocalMHA(
            dim=dim,
            window_size=window_size,
            **{"causal": False, "prenorm": True, **local_attn_kwargs},
        )
        # LocalMHA keeps its dropout option to itself
        local_attn.attn_fn.dropout.p = local_attn_kwargs.get("dropout", attn_dropout)
        feed_forward = nn.Sequential(RMSNorm(dim), FeedForward(dim, glu=True, dropout=ff_dropout))
        super().__init__()
        for place, part in enumerate((linear_attn, local_attn, feed_forward)):
            self.add_module(str(place), part)

    def forward(
        self, x: Float[Tensor, "b nf d"], face_mask: Bool[Tensor, "b nf"]
    ) -> Float[Tensor, "b nf d"]:
        linear_attn, local_attn, feed_forward = self
        if linear_attn is not None:
            x = linear_attn(x, mask=face_mask) + x
        # its rotary embedding is float32, also where the model was cast to half precision
        half = x.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(x.device.type, dtype=x.dtype) if half else nullcontext():
            attended = local_attn(x, mask=face_mask)
        x = attended + x
        return feed_forward(x) + x


class InitialConvolution(ModuleList):
    """Convolve over faces, activate and normalise: the first step of the decoder.

    A list of parts whose normalisation is the fourth, as upstream's, so that weights keep names.

    Args:
        dim: width of a face, all its vertices side by side.
        dim_out: channels out.
        kernel_size: faces that a window spans; odd, so that it is centred on one.

    Raises:
        ValueError: the kernel is even.
    """

    def __init__(self, dim: int, dim_out: int, kernel_size: int) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(
                f"init_decoder_conv_kernel must be odd, to be centred on a face, got {kernel_size};"
                f" use {kernel_size - 1} or {kernel_size + 1}"
            )
        conv = nn.Conv1d(dim, dim_out, kernel_size, padding=kernel_size // 2)
        super().__init__((conv, nn.SiLU(), nn.Identity(), nn.LayerNorm(dim_out)))

    def forward(
        self, x: Float[Tensor, "b nf d"], mask: Bool[Tensor, "b nf 1"]
    ) -> Float[Tensor, "b nf d_out"]:
        conv, activation, _, norm = self
        assert isinstance(conv, nn.Conv1d), "as it was built"
        return norm(activation(convolve_faces(conv, x))) * mask
