"""Refuse codes that no codebook has, before they become a wrong mesh."""

import torch
from jaxtyping import Int
from torch import Tensor


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
    if codes.device.type != "cpu":
        torch._assert_async(valid.all(), f"code ids must be in [0, {num_ids}) or {pad_id}")
        return
    if not bool(valid.all()):
        row, *position = (~valid).nonzero()[0].tolist()
        raise ValueError(
            f"code ids must be in [0, {num_ids}), or {pad_id} for padding, got "
            f"{int(codes[~valid][0])} in row {row} at {tuple(position)}; these codes are not from "
            "this autoencoder, or an eos id was left in them"
        )
