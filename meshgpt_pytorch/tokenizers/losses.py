"""Reconstruction loss: cross entropy over coordinate bins, with neighbouring bins nearly right."""

from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from meshgpt_pytorch.typing import typecheck


def gaussian_kernel(sigma: float | int, device: torch.device) -> Float[Tensor, " width"]:
    """Sample a Gaussian at whole bins, weights summing to one.

    Args:
        sigma: standard deviation in bins; 0 or less gives a single weight, so no blur.
        device: where the weights are computed; a copy from the CPU would wait for it.

    Returns:
        an odd number of weights, the middle one for the bin itself; about five sigma wide.
    """
    if sigma <= 0.0:
        return torch.ones(1, device=device)
    width = ceil(sigma * 5)
    width += (width + 1) % 2
    distance = torch.arange(width, dtype=torch.float32, device=device) - width // 2
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    return weights / weights.sum()


@typecheck
def gaussian_blur_1d(
    t: Float[Tensor, "b n d"], *, sigma: float | int = 1.0
) -> Float[Tensor, "b n d"]:
    """Blur along the middle axis; mass that leaves at an end is lost.

    Args:
        t: values ``b n d``, blurred over n, each channel d by itself.
        sigma: standard deviation in steps of n; 0 leaves the values as they are.

    Returns:
        blurred values of the same shape.
    """
    kernel = gaussian_kernel(sigma, t.device).to(t.dtype)
    channels = t.shape[-1]
    blurred = F.conv1d(
        rearrange(t, "b n d -> b d n"),
        repeat(kernel, "width -> d 1 width", d=channels),
        padding=len(kernel) // 2,
        groups=channels,
    )
    return rearrange(blurred, "b d n -> b n d")


@typecheck
def blurred_cross_entropy(
    logits: Float[Tensor, "... num_bins"], targets: Int[Tensor, "..."], *, sigma: float | int
) -> Float[Tensor, "..."]:
    """Compare bin logits with targets smoothed over their neighbours.

    Equal to the cross entropy against ``gaussian_blur_1d`` of the one-hot targets, gathered bin by
    bin so that no one-hot tensor is made. Computed in float32.

    Args:
        logits: unnormalised log probabilities of the bins.
        targets: bin of each coordinate, in ``[0, num_bins)``.
        sigma: blur in bins; 0 or less compares with the targets themselves.

    Returns:
        the loss of each coordinate.
    """
    num_bins = logits.shape[-1]
    log_prob = logits.float().log_softmax(dim=-1)
    kernel = gaussian_kernel(sigma, logits.device)
    offsets = torch.arange(len(kernel), device=logits.device) - len(kernel) // 2
    bins = targets[..., None] + offsets
    # weight that the blur moves past the first or last bin is lost
    weights = kernel * ((bins >= 0) & (bins < num_bins))
    return -(log_prob.gather(-1, bins.clamp(0, num_bins - 1)) * weights).sum(dim=-1)
