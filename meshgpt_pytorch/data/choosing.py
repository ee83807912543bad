"""Which meshes of a data set: by position, at random with groups kept whole, by look-alikes."""

import csv
from collections.abc import Collection, Hashable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def positions(indices: Sequence[int] | Tensor | np.ndarray[Any, Any], length: int) -> Tensor:
    """Return the positions, int64 from 0, that indices or a bool for each mesh choose.

    Raises:
        ValueError: none is chosen, or there is no mesh at an index.
    """
    items = torch.as_tensor(indices)
    if items.dtype == torch.bool and len(items) == length:
        items = items.nonzero()[:, 0]
    if items.ndim != 1 or len(items) == 0 or items.dtype.is_floating_point:
        raise ValueError(
            f"wanted at least one whole number, or a bool for each of {length} meshes, "
            f"got {items.dtype} of shape {tuple(items.shape)}"
        )
    outside = items[(items < -length) | (items >= length)]
    if items.dtype == torch.bool or len(outside):
        got = f"{len(items)} bools" if items.dtype == torch.bool else outside[0].item()
        raise ValueError(f"indices must be below the {length} meshes there are, got {got}")
    return items.long() % length


def matching(
    num_faces: Tensor,
    max_faces: int | None,
    categories: Sequence[str] | None,
    category: str | Collection[str] | None,
) -> Tensor:
    """Mark the meshes that fulfil every condition: bool "meshes".

    Args:
        num_faces: of each mesh.
        max_faces: most faces of a mesh.
        categories: of each mesh; needed if `category` is given.
        category: one category, or several.

    Raises:
        ValueError: a category does not occur, or no mesh is left.
    """
    keep = torch.ones(len(num_faces), dtype=torch.bool)
    if max_faces is not None:
        keep &= num_faces <= max_faces
    if category is not None and categories is not None:
        wanted = {category} if isinstance(category, str) else set(category)
        unknown = wanted - set(categories)
        if unknown:
            raise ValueError(
                f"category must be among {sorted(set(categories))}, got {sorted(unknown)}"
            )
        keep &= torch.tensor([label in wanted for label in categories])
    if not keep.any():
        raise ValueError(
            f"no mesh of {len(num_faces)} is left with max_faces={max_faces}, "
            f"category={category!r}; the smallest has {int(num_faces.min())} faces"
        )
    return keep


def held_out(length: int, fraction: float, seed: int, groups: Sequence[Hashable] | None) -> Tensor:
    """Choose meshes to validate with at random, groups as a whole: bool "length".

    Raises:
        ValueError: a fraction outside (0, 1), labels of another length, or only one group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    labels = range(length) if groups is None else groups
    if len(labels) != length:
        raise ValueError(f"wanted a group for each of {length} meshes, got {len(labels)}")
    parts = members_of_groups(labels)
    if len(parts) < 2:
        raise ValueError(f"a split needs at least 2 groups of meshes, got {len(parts)}")

    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))
    wanted = max(1, round(fraction * length))
    chosen: list[int] = []
    for part in order.tolist():
        if len(chosen) + len(parts[part]) <= min(wanted, length - 1):
            chosen += parts[part]
    mask = torch.zeros(length, dtype=torch.bool)
    mask[chosen or min(parts, key=len)] = True
    return mask


def members_of_groups(labels: Iterable[Hashable]) -> list[list[int]]:
    """List the meshes of each group, in the order of their first meshes.

    Args:
        labels: of each mesh. One that lacks it, which is None, nan or an empty text, is a group of
            its own: what is missing is nothing that meshes share.
    """
    members: dict[Hashable, list[int]] = {}
    for mesh, label in enumerate(labels):
        is_missing = label is None or label == "" or label != label
        members.setdefault((mesh, "alone") if is_missing else (label,), []).append(mesh)
    return list(members.values())


def near_duplicate_groups(
    pairs: str | PathLike[str] | Iterable[tuple[str, str]], keys: Sequence[str]
) -> list[int]:
    """Number the groups of meshes that look alike, directly or by way of others.

    For ``dataset.split(0.1, groups=near_duplicate_groups(pairs, dataset.labels["key"]))``.

    Args:
        pairs: pairs of keys of meshes that look alike, or the path of a table of such pairs: lines
            of values with tabs between them, the first naming the columns ``key_a`` and ``key_b``.
            Meshes that the data set lacks may connect others.
        keys: the key of each mesh of the data set.

    Returns:
        a number for each mesh; those of one group share it.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table has other columns.
    """
    if isinstance(pairs, str | PathLike):
        pairs = _read_pairs(Path(pairs))
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for one, other in pairs:
        parent[root(one)] = root(other)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(str(key)), len(numbers)) for key in keys]


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        missing = {"key_a", "key_b"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(
                f"a table of near duplicates has the columns key_a and key_b with tabs between "
                f"them, got {table.fieldnames} in {path}"
            )
        return [(row["key_a"], row["key_b"]) for row in table]
