"""What is derived from the meshes of a folder, kept in that folder.

::

    prepared/caches/codes/<id>/
      cache.json             format version, maker, dtype
      keys.npy               uint8 (n, 32): the sha256 of the mesh, or text, of each row
      rows.npy, rows_offsets.npy

A row is found by the hash of what it was derived from, so rows of meshes that changed are never
found, and only what is missing is computed. A segment is written under a name of its own, synced,
and renamed: processes never write to the same one, and a killed one leaves those it finished.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from meshgpt_pytorch.checkpoint.atomic import sync_to_disk
from meshgpt_pytorch.data.arrays import (
    MappedRows,
    RaggedWriter,
    read_array,
    remove_leftovers,
    save_array,
)
from meshgpt_pytorch.data.store import Column, JoinedRows

CACHE_VERSION = 1
ROWS_A_SEGMENT = 4096

# from items to a tensor for each
Derive = Callable[[list[int]], list[Tensor]]


@dataclass(frozen=True)
class Segment:
    """Rows that one maker derived at one time."""

    path: Path
    maker: str
    keys: list[bytes]
    rows: MappedRows


class CacheFolder:
    """One kind of derived data of the meshes in a folder.

    Args:
        folder: the data set.
        kind: "face_edges", "codes" or "text_encodings".
        remedy: the call that makes it anew, for messages.
    """

    def __init__(self, folder: Path, kind: str, remedy: str) -> None:
        self.path = folder / "caches" / kind
        self.kind = kind
        self.remedy = remedy

    def segments(self) -> list[Segment]:
        """Open what there is, the newest last.

        Raises:
            ValueError: a segment is damaged, or of another format version.
        """
        found = sorted(self._paths(), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [self._open(path) for path in found]

    def _paths(self) -> list[Path]:
        return [path for path in self.path.glob("*") if not path.name.startswith(".")]

    def _open(self, path: Path) -> Segment:
        try:
            facts = json.loads((path / "cache.json").read_text())
            if facts["version"] != CACHE_VERSION:
                raise ValueError(
                    f"it has format version {facts['version']}, this library reads {CACHE_VERSION}"
                )
            keys = read_array(path / "keys.npy", in_memory=True)
            rows = MappedRows(path, "rows", getattr(torch, facts["dtype"]))
            if len(keys) != len(rows):
                raise ValueError(f"it has {len(keys)} keys for {len(rows)} rows")
            return Segment(path, facts["maker"], [key.tobytes() for key in keys], rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the {self.kind} cached in {path} cannot be used: {error}; make them anew with "
                f"{self.remedy}"
            ) from error

    def find(self, keys: np.ndarray[Any, Any]) -> Column | None:
        """Return a row for each key, all of one maker, the newest that has all; or None.

        Args:
            keys: uint8 "items 32".

        Raises:
            ValueError: a segment is damaged, or of another format version.
        """
        segments = self.segments()
        for maker in dict.fromkeys(segment.maker for segment in reversed(segments)):
            column = join_segments([each for each in segments if each.maker == maker], keys)
            if column is not None:
                return column
        return None

    def count(self, keys: np.ndarray[Any, Any]) -> int:
        """Count the keys that have a row of any maker."""
        known = {key for segment in self.segments() for key in segment.keys}
        return sum(key.tobytes() in known for key in keys)

    def find_or_derive(
        self, keys: np.ndarray[Any, Any], maker: str, derive: Derive, *, rebuild: bool
    ) -> Column:
        """Return a row for each key, and derive and write those that are missing.

        Args:
            keys: uint8 "items 32".
            maker: fingerprint of what `derive` computes with.
            derive: computes rows of items.
            rebuild: replace whatever there is.

        Raises:
            ValueError: without `rebuild`, if the rows that are there come from another maker, are
                damaged, or of another format version.
            OSError: the folder cannot be written.
        """
        segments = [] if rebuild else self.segments()
        if any(segment.maker != maker for segment in segments):
            raise other_maker(f"the {self.kind} cached in {self.path}", self.remedy)
        replaced = self._paths() if rebuild else []
        known = {key for segment in segments for key in segment.keys}
        missing = first_items(keys, known)
        for start in range(0, len(missing), ROWS_A_SEGMENT):
            items = missing[start : start + ROWS_A_SEGMENT]
            segments.append(self.write(keys[items], derive(items), maker))
        for path in replaced:
            shutil.rmtree(path, ignore_errors=True)
        column = join_segments(segments, keys)
        assert column is not None, "what was missing has been written"
        return column

    def write(self, keys: np.ndarray[Any, Any], rows: Sequence[Tensor], maker: str) -> Segment:
        """Write rows in one step.

        Args:
            keys: uint8 "rows 32".
            rows: tensors that agree in all but their first axis.
            maker: fingerprint of what computed them.

        Raises:
            OSError: the folder cannot be written, or the disk is full; nothing is left behind.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path, ".*.tmp")
        name = uuid4().hex[:16]
        temporary = self.path / f".{name}.tmp"
        try:
            temporary.mkdir()
            with RaggedWriter(temporary, "rows", rows[0]) as writer:
                for row in rows:
                    writer.append(row)
            save_array(temporary / "keys.npy", keys)
            dtype = str(rows[0].dtype).removeprefix("torch.")
            facts = {"version": CACHE_VERSION, "kind": self.kind, "maker": maker, "dtype": dtype}
            (temporary / "cache.json").write_text(json.dumps(facts, indent=2) + "\n")
            sync_to_disk(temporary)
            temporary.rename(self.path / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self._open(self.path / name)

    def remove_other_makers(self, maker: str) -> None:
        """Remove the segments of every maker but one; and those that cannot be used."""
        for path in self._paths():
            with suppress(ValueError):
                if self._open(path).maker == maker:
                    continue
            shutil.rmtree(path, ignore_errors=True)


def other_maker(what: str, remedy: str) -> ValueError:
    """Return the error of derived data that is not of what is asked for."""
    return ValueError(
        f"{what} must come from what is asked for now, got those of another one, or of other "
        f"weights; make them anew with {remedy}"
    )


def first_items(keys: np.ndarray[Any, Any], known: set[bytes]) -> list[int]:
    """List the first item of each distinct key that is not known."""
    seen = set(known)
    items = []
    for item, key in enumerate(keys):
        if key.tobytes() not in seen:
            seen.add(key.tobytes())
            items.append(item)
    return items


def join_segments(segments: Sequence[Segment], keys: np.ndarray[Any, Any]) -> Column | None:
    """Return a row of several segments for each key (uint8 "items 32"), or None if some lack."""
    row_of_key: dict[bytes, int] = {}
    start = 0
    for segment in segments:
        row_of_key.update(zip(segment.keys, range(start, start + len(segment.keys)), strict=True))
        start += len(segment.keys)
    rows = [row_of_key.get(key.tobytes(), -1) for key in keys]
    if not segments or min(rows) < 0:
        return None
    parts = [segment.rows for segment in segments]
    return Column(
        parts[0] if len(parts) == 1 else JoinedRows(parts), torch.tensor(rows), segments[0].maker
    )
