"""Pad samples of different size into one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meshgpt_pytorch.mesh import check_mesh_batch

TEXT_KEYS = frozenset({"text_embeds", "text_encodings"})


def custom_collate(
    data: Sequence[Any],
    pad_id: int = -1,
    *,
    data_kwargs: Sequence[str] | None = None,
    coor_continuous_range: tuple[float, float] | None = None,
) -> Any:
    """Batch samples of a data set, padded at the end to the longest one.

    Tensors and arrays are padded along their first axis and stacked: integers (faces, face edges,
    codes) with `pad_id`, bools with False, floats of shape "n 3" (vertices) with 0, other floats
    (text embeddings) with rows of `pad_id`. Scalars are stacked. Strings, numbers and None come
    back as a list. Vertices may be integers in a sample, not in the batch.

    Args:
        data: samples: all mappings with the same keys, in any order, or all tuples or lists of
            the same length.
        pad_id: marks padding.
        data_kwargs: names of the entries of tuples. Without them, a tuple that begins with
            floats "nv 3" and integers "nf 3" or "nf 4" is taken to begin with a mesh.
        coor_continuous_range: warn about vertices of faces outside (low, high).

    Returns:
        a dict with the keys of the samples in the order of the first one, or a tuple.

    Raises:
        ValueError: no samples; samples of different keys, lengths or kinds; tensors that cannot
            be stacked; or a mesh with NaN, indices it has no vertices for, or no faces.
            The message names the sample and the key.
    """
    if len(data) == 0:
        raise ValueError("a batch needs at least one sample, got none")
    if isinstance(data[0], Mapping):
        for item, sample in enumerate(data):
            _check_keys(item, sample, data[0])
        batch = {
            key: _collate_values(key, [sample[key] for sample in data], pad_id) for key in data[0]
        }
        _check_meshes(data, batch, pad_id, coor_continuous_range)
        return batch

    for item, sample in enumerate(data):
        if not isinstance(sample, (tuple, list)) or len(sample) != len(data[0]):
            raise ValueError(
                f"samples of a batch must all be dicts, or all be tuples of one length: wanted "
                f"{_describe(data[0])} as in sample 0, got {_describe(sample)} in sample {item}"
            )
    names = _names_of_entries(data[0], data_kwargs)
    columns = tuple(
        _collate_values(name, list(values), pad_id)
        for name, values in zip(names, zip(*data, strict=True), strict=True)
    )
    named = [dict(zip(names, sample, strict=True)) for sample in data]
    _check_meshes(named, dict(zip(names, columns, strict=True)), pad_id, coor_continuous_range)
    return columns


def _names_of_entries(sample: Sequence[Any], data_kwargs: Sequence[str] | None) -> list[str | int]:
    """Name the entries of a tuple, by their place where no name is known."""
    names: list[str | int] = list(range(len(sample)))
    if data_kwargs is None and len(sample) > 1 and _is_mesh(sample[0], sample[1]):
        data_kwargs = ("vertices", "faces")
    known = list(data_kwargs or ())[: len(sample)]
    return [*known, *names[len(known) :]]


def _is_mesh(vertices: Any, faces: Any) -> bool:
    if not (_is_tensor(vertices) and _is_tensor(faces)):
        return False
    if vertices.ndim != 2 or faces.ndim != 2:
        return False
    of_faces = _to_tensor(faces).dtype
    is_integer = not (of_faces.is_floating_point or of_faces == torch.bool)
    is_float = _to_tensor(vertices).dtype.is_floating_point
    return is_float and is_integer and vertices.shape[1] == 3 and faces.shape[1] in (3, 4)


def _describe(sample: Any) -> str:
    if isinstance(sample, (tuple, list)):
        return f"a {type(sample).__name__} of {len(sample)}"
    return f"a {type(sample).__name__}"


def _check_keys(item: int, sample: Any, first: Mapping[str, Any]) -> None:
    if not isinstance(sample, Mapping):
        raise ValueError(
            f"samples of a batch must all be dicts, or all be tuples of one length: wanted a dict "
            f"as in sample 0, got {_describe(sample)} in sample {item}"
        )
    missing, extra = sorted(first.keys() - sample.keys()), sorted(sample.keys() - first.keys())
    if missing or extra:
        raise ValueError(
            f"samples of a batch must have the same keys, wanted {sorted(first)} as in sample 0, "
            f"got {sorted(sample)} in sample {item} (missing: {missing}, extra: {extra}); leave "
            f"out of every sample what one lacks"
        )


def _check_meshes(
    data: Sequence[Mapping[Any, Any]],
    batch: Mapping[Any, Any],
    pad_id: int,
    coor_continuous_range: tuple[float, float] | None,
) -> None:
    vertices, faces, face_edges = (batch.get(key) for key in ("vertices", "faces", "face_edges"))
    if not isinstance(vertices, Tensor) or not isinstance(faces, Tensor) or vertices.ndim != 3:
        return
    check_mesh_batch(
        vertices,
        faces,
        face_edges if isinstance(face_edges, Tensor) else None,
        pad_id=pad_id,
        coor_continuous_range=coor_continuous_range,
    )
    # an index into the padding that a longer neighbour in the batch made passes the check above
    for item, last in enumerate(faces.flatten(1).amax(dim=1).tolist()):
        num_vertices = len(data[item]["vertices"])
        if last >= num_vertices:
            raise ValueError(
                f"faces must hold indices from 0 to {num_vertices - 1} in sample {item}, which "
                f"has {num_vertices} vertices, got {last}"
            )


def _collate_values(key: str | int, values: list[Any], pad_id: int) -> Any:
    are_tensors = [_is_tensor(value) for value in values]
    if not any(are_tensors):
        return values
    if not all(are_tensors):
        odd = are_tensors.index(not are_tensors[0])
        raise ValueError(
            f"{key!r} must be a tensor in every sample or in none, got "
            f"{type(values[0]).__name__} in sample 0, {type(values[odd]).__name__} in sample {odd}"
        )

    tensors = [_to_tensor(value) for value in values]
    if key == "vertices":
        tensors = [t if t.is_floating_point() else t.float() for t in tensors]
    for item, tensor in enumerate(tensors):
        if tensor.ndim != tensors[0].ndim or tensor.shape[1:] != tensors[0].shape[1:]:
            raise ValueError(
                f"{key!r} may differ between samples in its first axis only, got shape "
                f"{tuple(tensors[0].shape)} in sample 0, {tuple(tensor.shape)} in sample {item}"
            )
    dtype = _common_dtype(key, [tensor.dtype for tensor in tensors])
    tensors = [tensor.to(dtype) for tensor in tensors]
    if tensors[0].ndim == 0:
        return torch.stack(tensors)
    return pad_sequence(
        tensors, batch_first=True, padding_value=_padding_value(key, tensors[0], pad_id)
    )


def _is_tensor(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "biuf"
    return isinstance(value, Tensor)


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    # a copy, since an array may be read-only or have negative strides
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def _common_dtype(key: str | int, dtypes: list[torch.dtype]) -> torch.dtype:
    kinds = {
        "bool" if d == torch.bool else "float" if d.is_floating_point else "int" for d in dtypes
    }
    if len(kinds) > 1:
        raise ValueError(
            f"{key!r} must be of one kind in every sample, got "
            f"{', '.join(str(dtype) for dtype in dict.fromkeys(dtypes))}; convert them before "
            f"batching"
        )
    if "int" in kinds and (len(set(dtypes)) > 1 or not dtypes[0].is_signed):
        return torch.int64
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return common


def _padding_value(key: str | int, tensor: Tensor, pad_id: int) -> float:
    if tensor.dtype == torch.bool:
        return False
    if not tensor.is_floating_point() or key in TEXT_KEYS:
        return pad_id
    is_vertices = key == "vertices" or (tensor.ndim == 2 and tensor.shape[1] == 3)
    return 0.0 if is_vertices else pad_id
