"""Start lookup-free codes from statistics, so that they tell vertices apart before they learn.

The features of an untrained encoder differ little from vertex to vertex. A projection that knows
nothing of their mean and scale gives nearly all of them the same signs, that is the same codes, and
the decoder has nothing to read.
"""

from math import sqrt

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Module
from vector_quantize_pytorch import ResidualLFQ

from meshgpt_pytorch.typing import typecheck


@typecheck
@torch.no_grad()
def spread_over_codes(quantizer: Module, features: Float[Tensor, "n d"]) -> None:
    """Scale and shift a quantizer's projection, so that features fill the range of its codes.

    Along each axis, a bit of each code, they get the mean 0 and the standard deviation of a uniform
    distribution over the range (data-dependent initialisation, Salimans & Kingma 2016, arXiv
    1602.07868).

    Args:
        quantizer: lookup-free, changed in place.
        features: vertices to start from.

    Raises:
        ValueError: another quantizer, or features that do not differ along an axis.
    """
    if not (isinstance(quantizer, ResidualLFQ) and isinstance(quantizer.project_in, nn.Linear)):
        raise ValueError(
            "quantizer must be 'lfq', with a dim_codebook other than its number of bits, got "
            f"{type(quantizer).__name__}; train it as it is ('rvq' starts by k-means by itself)"
        )
    project_in = quantizer.project_in
    spread, mean = torch.std_mean(project_in(features).float(), dim=0, correction=0)
    if not bool((spread > 0).all()):
        raise ValueError(
            f"features must differ along each axis, got {len(features)} with the spreads "
            f"{spread.tolist()}; start from more meshes"
        )
    # the levels 1, 1/2, 1/4, ... reach from -2 to 2
    scale = 2 / sqrt(3) / spread
    project_in.bias.copy_((project_in.bias - mean) * scale)
    project_in.weight.mul_(rearrange(scale, "a -> a 1"))
