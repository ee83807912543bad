"""The columns behind a data set: rows of different length, end to end in one tensor.

A column is a storage of rows and, for each item, the row that belongs to it. Choosing items moves
row numbers only, and items that share a row (equal captions) share its memory. Whatever has
``__len__``, ``__getitem__`` and ``lengths`` can take the place of `RaggedRows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """Storage of tensors that agree in everything but their first axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Tensor: ...

    @property
    def lengths(self) -> Tensor: ...


@dataclass(frozen=True)
class RaggedRows:
    """Hold rows of different length in one tensor, in memory.

    Args:
        values: "total ..." all rows, one after the other.
        offsets: "rows + 1" int64; row i is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor]) -> "RaggedRows":
        """Pack tensors of one dtype; integers are narrowed to int32, which is enough for ids."""
        lengths = torch.tensor([len(row) for row in rows])
        values = torch.cat(list(rows))
        if not values.is_floating_point():
            values = values.int()
        return cls(values, torch.cat((lengths.new_zeros(1), lengths.cumsum(dim=0))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        start, end = self.offsets[row : row + 2].tolist()
        # a copy: a view would carry the whole storage along to another process, and let an
        # augmentation write into the data set
        return self.values[start:end].clone()

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    def row_of(self, value: int) -> int:
        """Tell to which row an index into `values` belongs."""
        return int(torch.searchsorted(self.offsets, value, right=True)) - 1


class JoinedRows:
    """Several storages of rows, one behind the other.

    Args:
        parts: storages of tensors of one kind.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Tensor:
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[part][row - int(self._ends[part]) + len(self.parts[part])]

    @property
    def lengths(self) -> Tensor:
        """The length of each row, int64."""
        return torch.cat([part.lengths for part in self.parts])


@dataclass(frozen=True)
class Column:
    """One tensor for each item.

    Args:
        rows: where the tensors are.
        row_of_item: "items" int64, the row of each item.
        maker: fingerprint of what computed the column; None if it does not depend on a model.
    """

    rows: Rows
    row_of_item: Tensor
    maker: str | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor], *, maker: str | None = None) -> "Column":
        """Make a column with a row of its own for each item."""
        return cls(RaggedRows.from_rows(rows), torch.arange(len(rows)), maker)

    def __getitem__(self, item: int) -> Tensor:
        row = self.rows[int(self.row_of_item[item])]
        return row if row.is_floating_point() else row.long()

    def select(self, items: Tensor) -> "Column":
        """Choose items (int64) without copying rows."""
        return Column(self.rows, self.row_of_item[items], self.maker)

    @property
    def lengths(self) -> Tensor:
        return self.rows.lengths[self.row_of_item]


@dataclass
class MeshTable:
    """Everything that is known about each mesh of a data set.

    Args:
        columns: tensors: "vertices", "faces", and what was derived from them.
        labels: facts a reader needs besides: "caption", "category", "name", "licence", ...
        hashes: "items 32" uint8, the sha256 of each mesh, where they are known.
        folder: where the meshes live on disk, and what is derived from them is kept; None for
            meshes in memory.
    """

    columns: dict[str, Column]
    labels: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    hashes: np.ndarray[Any, Any] | None = None
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.columns["faces"].row_of_item)

    def select(self, items: Tensor) -> "MeshTable":
        """Choose items (int64), along with all that was derived from them."""
        columns = {name: column.select(items) for name, column in self.columns.items()}
        labels = {name: values[items.numpy()] for name, values in self.labels.items()}
        hashes = None if self.hashes is None else self.hashes[items.numpy()]
        return MeshTable(columns, labels, hashes, self.folder)

    def describe(self, item: int) -> str:
        """Name an item in a message: its index, and its name where it has one."""
        names = self.labels.get("name")
        return f"mesh {item}" if names is None else f"mesh {item} ({str(names[item])!r})"
