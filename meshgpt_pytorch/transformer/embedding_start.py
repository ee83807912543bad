"""Start what a transformer knows of codes from their digits, so that near codes begin alike.

A code of a grid is a few digits, one an axis; a lookup-free code is a row of bits. A table of
independent rows knows nothing of that, and has to learn each of thousands of codes by itself.
"""

from math import pi

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module
from vector_quantize_pytorch import ResidualLFQ

from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer

# half waves over the range of a digit
NUM_WAVES = 4
# of the variance, so that no two codes are bound to each other
RANDOM_SHARE = 0.05


def digits_of_codes(quantizer: Module) -> Float[Tensor, "num_codes axes"]:
    """Return the digits of each code, between -1 and 1.

    Args:
        quantizer: ``fsq`` or ``lfq`` of an autoencoder.

    Raises:
        ValueError: another quantizer, whose codes have no digits.
    """
    if isinstance(quantizer, FiniteScalarQuantizer):
        levels, basis = quantizer.levels, quantizer.basis
    elif isinstance(quantizer, ResidualLFQ):
        levels = torch.full((quantizer.layers[0].codebook_dim,), 2)
        basis = 2 ** torch.arange(len(levels))
    else:
        raise ValueError(
            "codes must have digits, those of an autoencoder with quantizer='fsq' or 'lfq', got a "
            f"{type(quantizer).__name__}; train the transformer from its random start"
        )
    ids = torch.arange(int(levels.prod()), device=levels.device)
    digits = rearrange(ids, "num_codes -> num_codes 1") // basis % levels
    return (2 * digits + 1 - levels) / levels


@torch.no_grad()
def start_rows(weight: Float[Tensor, "num_ids d"], digits: Float[Tensor, "num_codes axes"]) -> None:
    """Make the rows of codes waves of their digits, in random directions, as long as before.

    Args:
        weight: changed in place; rows behind those of codes stay.
        digits: see ``digits_of_codes``.
    """
    rows = weight[: len(digits)]
    frequencies = pi / 2 * torch.arange(1, NUM_WAVES + 1, device=digits.device)
    phases = einsum(digits, frequencies, "num_codes axes, waves -> num_codes axes waves")
    waves = rearrange(
        [phases.sin(), phases.cos()], "kind num_codes axes waves -> num_codes (kind axes waves)"
    ).to(rows)
    mixed = waves @ torch.randn(waves.shape[1], rows.shape[1]).to(rows)
    # what all codes have in common tells them apart from the end of a mesh alone
    mixed = mixed - mixed.mean(dim=0)
    mixed = mixed * (rows.std() / mixed.std())
    rows.copy_((1 - RANDOM_SHARE) ** 0.5 * mixed + RANDOM_SHARE**0.5 * rows)
