"""Columns of derived data: kept in the folder of the data set, or in memory if it has none."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meshgpt_pytorch.data.cache_folder import CacheFolder, Derive, first_items, other_maker
from meshgpt_pytorch.data.disk import hashes_array, mesh_hashes
from meshgpt_pytorch.data.fingerprints import hash_text
from meshgpt_pytorch.data.store import Column, MeshTable, RaggedRows

# kinds of derived data, and the call that makes each anew
REBUILD = {
    "face_edges": "cache_face_edges(rebuild=True)",
    "codes": "cache_codes(autoencoder, rebuild=True)",
    "text_encodings": "cache_text_encodings(encoder, rebuild=True)",
}
# to be raised when face edges change
FACE_EDGES_MAKER = "face edges 1"


def derive_column(
    table: MeshTable, kind: str, maker: str, derive: Derive, *, rebuild: bool
) -> Column:
    """Return derived data of each mesh: what is cached, if `maker` made it, or computed now.

    Args:
        table: the meshes. Where they live in a folder, the column is kept there.
        kind: a key of `REBUILD`.
        maker: fingerprint of what `derive` computes with.
        derive: computes rows of items.
        rebuild: compute in any case.

    Raises:
        ValueError: without `rebuild`, if there is what another maker made, or what cannot be used.
        OSError: the folder cannot be written.
    """
    column = table.columns.get(kind)
    if column is not None and column.maker == maker and not rebuild:
        return column
    if table.folder is not None:
        cache = cache_folder(table.folder, kind)
        return cache.find_or_derive(keys_of(table, kind), maker, derive, rebuild=rebuild)
    if column is not None and not rebuild:
        raise other_maker(f"the {kind} of this data set", REBUILD[kind])
    if kind != "text_encodings":
        return Column.from_rows(derive(list(range(len(table)))), maker=maker)
    keys = keys_of(table, kind)
    items = first_items(keys, set())
    row_of_key = {keys[item].tobytes(): row for row, item in enumerate(items)}
    row_of_item = torch.tensor([row_of_key[key.tobytes()] for key in keys])
    return Column(RaggedRows.from_rows(derive(items)), row_of_item, maker)


def attach_columns(table: MeshTable, *, warn: bool) -> None:
    """Add the derived data that the folder holds for every mesh of a table.

    Args:
        table: the meshes, changed in place.
        warn: whether to warn of what cannot be used.
    """
    if table.folder is None:
        return
    for kind in REBUILD:
        if kind in table.columns or (kind == "text_encodings" and "caption" not in table.labels):
            continue
        cache = cache_folder(table.folder, kind)
        if not cache.path.is_dir():
            continue
        try:
            column = cache.find(keys_of(table, kind))
        except ValueError as error:
            if warn:
                warnings.warn(str(error), stacklevel=3)
            continue
        if column is not None:
            table.columns[kind] = column


def explain_missing(table: MeshTable, kind: str) -> str:
    """Tell for how many meshes of a table the folder holds derived data; "" if it holds none.

    Raises:
        ValueError: what it holds cannot be used.
    """
    if table.folder is None or kind not in REBUILD:
        return ""
    if kind == "text_encodings" and "caption" not in table.labels:
        return ""
    count = cache_folder(table.folder, kind).count(keys_of(table, kind))
    return f" (the folder holds it for {count} of {len(table)} meshes)" if count else ""


def save_columns(table: MeshTable, folder: Path) -> None:
    """Write what was derived from the meshes of a table to a folder; drop what is there."""
    for kind in REBUILD.keys() & table.columns.keys():
        column = table.columns[kind]
        assert column.maker is not None, "derived data knows its maker"
        cache, keys = cache_folder(folder, kind), keys_of(table, kind)
        items = first_items(keys, set())
        cache.write(keys[items], [column[item] for item in items], column.maker)
        cache.remove_other_makers(column.maker)


def cache_folder(folder: Path, kind: str) -> CacheFolder:
    """Return the cache of one kind of derived data."""
    return CacheFolder(folder, kind, REBUILD[kind])


def keys_of(table: MeshTable, kind: str) -> np.ndarray[Any, Any]:
    """Return the hash of what a kind of data is derived from for each item, uint8 "items 32"."""
    if kind == "text_encodings":
        return hashes_array([hash_text(str(text)) for text in table.labels["caption"]])
    return mesh_hashes(table)
