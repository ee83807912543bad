"""Refuse codes that no codebook has, before they become a wrong mesh."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from meshgpt_pytorch.mesh import holds


def flatten_codes(codes: Int[Tensor, "b *n"], num_quantizers: int) -> Int[Tensor, "b n"]:
    """Flatten the codes of a batch to a row a mesh.

    Raises:
        ValueError: no batch axis, another number of quantizers, or no integers.
    """
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, got {codes.dtype}; pass ids of codes")
    if codes.ndim < 2:
        raise ValueError(
            f"codes must have the shape (b, n) or (b, n, q), got {tuple(codes.shape)}; add a batch "
            "axis with codes[None]"
        )
    if codes.ndim > 2 and codes.shape[-1] != num_quantizers:
        raise ValueError(
            f"codes must have the shape (b, n, {num_quantizers}), one for each quantizer, got "
            f"{tuple(codes.shape)}; these codes are not from this autoencoder"
        )
    return codes.flatten(start_dim=1).long()


def check_code_ids(codes: Int[Tensor, "b *n"], num_ids: int, pad_id: int) -> None:
    """Check that code ids are in their range, without waiting for a device.

    Args:
        codes: ids of codes.
        num_ids: ids run from 0 to ``num_ids - 1``.
        pad_id: the one other value allowed, for codes that do not exist.

    Raises:
        ValueError: an id outside the range (on an accelerator: an assertion of the device).
    """
    if codes.numel() == 0:
        return
    valid = ((codes >= 0) & (codes < num_ids)) | (codes == pad_id)
    if not holds(valid.all(), f"code ids must be in [0, {num_ids}) or {pad_id}"):
        row, *position = (~valid).nonzero()[0].tolist()
        raise ValueError(
            f"code ids must be in [0, {num_ids}), or {pad_id} for padding, got "
            f"{int(codes[~valid][0])} in row {row} at {tuple(position)}; these codes are not from "
            "this autoencoder, or an eos id was left in them"
        )


def check_is_positive(**options: int | Sequence[int]) -> None:
    """Check options that count something, or that are not empty sequences of such.

    Raises:
        ValueError: the first option that is below 1, or has an entry below 1.
    """
    for name, value in options.items():
        counts = value if isinstance(value, Sequence) else (value,)
        if len(counts) == 0 or min(counts) < 1:
            raise ValueError(f"{name} must be at least 1 everywhere, got {value}")
