"""Refuse codes that the transformer cannot model, before they become a wrong number."""

import torch
from jaxtyping import Int
from torch import Tensor

from meshgpt_pytorch.tokenizers.checks import check_code_ids


def check_codes(codes: Int[Tensor, "b n"], *, num_ids: int, pad_id: int, max_seq_len: int) -> None:
    """Check codes of a batch, flattened to a row a mesh.

    Args:
        codes: ids in ``[0, num_ids)``; ``pad_id`` behind the last of a row.
        num_ids: size of the vocabulary.
        pad_id: what padded codes hold.
        max_seq_len: most codes of a row.

    Raises:
        ValueError: too long, an id outside the vocabulary, or padding before the end of a row (on
            an accelerator the last two are assertions of the device).
    """
    if codes.shape[1] > max_seq_len:
        raise ValueError(
            f"codes must be at most max_seq_len = {max_seq_len} long, got {codes.shape[1]}; build "
            "the transformer with a larger max_seq_len, or leave out meshes with more faces"
        )
    check_code_ids(codes, num_ids, pad_id)
    is_pad = codes == pad_id
    after_pad = is_pad[:, :-1] & ~is_pad[:, 1:]
    if codes.device.type != "cpu":
        torch._assert_async(~after_pad.any(), "padding must come last in a row of codes")
    elif bool(after_pad.any()):
        row, position = after_pad.nonzero()[0].tolist()
        raise ValueError(
            f"padding ({pad_id}) must come last in a row of codes, got a code behind padding in "
            f"row {row} at {position + 1}; move the codes together"
        )


def check_rows_have_codes(codes: Int[Tensor, "b n"], pad_id: int) -> None:
    """Check that each row has a code to learn from.

    Raises:
        ValueError: a row of padding alone (an assertion of the device on an accelerator).
    """
    if codes.shape[1] == 0:
        raise ValueError(
            "codes must hold at least one code to compute a loss, got none; use generate() to "
            "start from nothing"
        )
    empty = (codes == pad_id).all(dim=1)
    if codes.device.type != "cpu":
        torch._assert_async(~empty.any(), "each row of codes must hold a code")
    elif bool(empty.any()):
        raise ValueError(
            f"each row must hold at least one code, got only padding in row "
            f"{int(empty.nonzero()[0])}; leave empty meshes out of the batch"
        )
