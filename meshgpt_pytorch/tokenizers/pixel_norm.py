"""Normalise each face over its channels, then activate: one step that keeps its input alone."""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# least norm that a face is divided by
LEAST_NORM = 1e-4


class PixelNormSiLU(torch.autograd.Function):
    """The step with its gradient, which makes what lies between norm and activation again."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "b nf d"], mask: Bool[Tensor, "b nf 1"]
    ) -> Float[Tensor, "b nf d"]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        dtype = norm.dtype
        # a face's scale and slope are beyond the range of half precision
        norm = norm.to(torch.promote_types(dtype, torch.float32))
        scale = sqrt(x.shape[-1]) / norm.clamp(min=LEAST_NORM) * mask
        # a norm at its bound is no function of x
        slope = (scale / norm.square()).masked_fill(norm < LEAST_NORM, 0.0)
        ctx.save_for_backward(x, scale, slope)
        return F.silu(x * scale, inplace=True).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Float[Tensor, "b nf d"]) -> tuple[Tensor, None]:
        x, scale, slope = ctx.saved_tensors
        dtype, x = x.dtype, x.to(scale.dtype)
        grad_normed = torch.ops.aten.silu_backward(grad_output.to(scale.dtype), x * scale)
        along_x = (grad_normed * x).sum(dim=-1, keepdim=True)
        grad_x = (grad_normed.mul_(scale)).addcmul_(x, along_x * slope, value=-1)
        return grad_x.to(dtype), None


def pixel_norm_silu(
    x: Float[Tensor, "b nf d"], mask: Bool[Tensor, "b nf 1"]
) -> Float[Tensor, "b nf d"]:
    """Scale each face to unit mean square (Karras et al., 1710.10196), then apply SiLU.

    Args:
        x: features.
        mask: True where a face exists.

    Returns:
        ``silu(x / max(|x|, 1e-4) * sqrt(d))``, zero where padded.
    """
    if torch.compiler.is_compiling():
        # a compiler does by itself what is done by hand here, and cannot read it
        return F.silu(F.normalize(x, dim=-1, eps=LEAST_NORM) * sqrt(x.shape[-1]) * mask)
    activated: Tensor = PixelNormSiLU.apply(x, mask)
    return activated
