"""Refuse codes that the transformer cannot model, before they become a wrong number."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor

from meshgpt_pytorch.mesh import holds
from meshgpt_pytorch.tokenizers.checks import check_code_ids


def check_pad_id(pad_id: int, eos_token_id: int) -> None:
    """Check that padding cannot be mistaken for a code, or for the end.

    Raises:
        ValueError: the pad id is an id of the vocabulary.
    """
    if 0 <= pad_id <= eos_token_id:
        raise ValueError(
            f"pad_id must not be one of the codes and the eos id, 0 to {eos_token_id}, got "
            f"{pad_id}; use -1"
        )


def check_heads(dim: int, heads: int, dim_head: int, attn_kwargs: Mapping[str, Any]) -> None:
    """Check that what attention puts out has the width of its stage.

    Raises:
        ValueError: a single head of another width, which x-transformers does not project.
    """
    if heads == 1 and dim_head != dim and not attn_kwargs.get("attn_project_out"):
        raise ValueError(
            f"a single attention head must be as wide as its stage, {dim}, got {dim_head}; use "
            "more heads, or attn_kwargs with attn_project_out=True"
        )


def check_length(codes: Int[Tensor, "b n"], max_seq_len: int) -> None:
    """Check that the model has a position for each code, and for eos where it is appended.

    Raises:
        ValueError: too long.
    """
    if codes.shape[1] > max_seq_len:
        raise ValueError(
            f"codes must be at most max_seq_len = {max_seq_len} long (for logits, with the eos id "
            f"that append_eos adds), got {codes.shape[1]}; build the transformer with a larger "
            "max_seq_len, or leave out meshes with more faces"
        )


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
    check_length(codes, max_seq_len)
    check_code_ids(codes, num_ids, pad_id)
    is_pad = codes == pad_id
    after_pad = is_pad[:, :-1] & ~is_pad[:, 1:]
    if not holds(~after_pad.any(), "padding must come last in a row of codes"):
        row, position = after_pad.nonzero()[0].tolist()
        raise ValueError(
            f"padding ({pad_id}) must come last in a row of codes, got a code behind padding in "
            f"row {row} at {position + 1}; move the codes together"
        )


def check_rows(codes: Int[Tensor, "b n"], pad_id: int, per_face: int) -> None:
    """Check that each row has something to learn from, and only whole pieces of it.

    Args:
        codes: ids, ``pad_id`` behind the last of a row.
        pad_id: what padded codes hold.
        per_face: how many codes make a piece: those of a face, or 1.

    Raises:
        ValueError: a part of a face, or a row of padding alone (an assertion of the device on an
            accelerator).
    """
    if codes.shape[1] == 0:
        raise ValueError(
            "codes must hold at least one face to compute a loss, got none; use generate() to "
            "start from nothing"
        )
    lengths = (codes != pad_id).sum(dim=1)
    wrong = (lengths == 0) | (lengths % per_face != 0)
    if not holds(~wrong.any(), f"rows must hold whole faces of {per_face} codes"):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"each row must hold whole faces of {per_face} codes, and one at least, got "
            f"{int(lengths[row])} codes in row {row}; leave out empty meshes, cut off parts of "
            "faces, and give codes of one mesh a batch axis with codes[None]"
        )


def check_cache(cache: Any, *, can_cache: bool, is_guided: bool) -> None:
    """Check that a cache can be used, and fits the call that it is passed to.

    Args:
        cache: the cache passed, None at the first call.
        can_cache: whether the decoders are exact with a cache.
        is_guided: whether the call predicts with and without text, and so needs two caches.

    Raises:
        ValueError: decoder options under which a cache is not exact; one cache instead of a pair,
            or the reverse.
    """
    if not can_cache:
        raise ValueError(
            "a cache needs decoder options under which it is exact, got others in attn_kwargs "
            "(transformer.layers.EXACT_WITH_CACHE lists them); call without cache and return_cache"
        )
    if cache is not None and isinstance(cache, tuple) != is_guided:
        raise ValueError(
            "cache must be a pair (with and without text) where cond_scale is not 1, and a single "
            f"cache else, got {'a pair' if isinstance(cache, tuple) else 'a single cache'}; keep "
            "cond_scale the same from call to call"
        )
