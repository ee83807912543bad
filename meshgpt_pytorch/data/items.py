"""The meshes of a table as items of a data set, and what is known of each."""

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from meshgpt_pytorch.data.disk import mesh_hashes
from meshgpt_pytorch.data.store import MeshTable

KEYS = ("vertices", "faces", "texts", "face_edges", "codes", "text_encodings")


class MeshItems(Dataset[dict[str, Any]]):
    """Read a table of meshes, one dict of tensors for each; `MeshDataset` chooses and derives.

    Args:
        table: meshes, labels and what was derived.
        keys: of an item; None for all there are.
    """

    def __init__(self, table: MeshTable, keys: tuple[str, ...] | None = None) -> None:
        self._table = table
        self._keys = keys

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} meshes, keys={self.item_keys})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = int(index)
        if not -len(self) <= item < len(self):
            raise IndexError(f"index {item} is out of range for {len(self)} meshes")
        item %= len(self)
        return {
            key: str(self._table.labels["caption"][item])
            if key == "texts"
            else self._table.columns[key][item]
            for key in self.item_keys
        }

    @property
    def item_keys(self) -> tuple[str, ...]:
        """The keys of an item: those chosen with `with_keys`, or else all there are."""
        return self._available if self._keys is None else self._keys

    @property
    def _available(self) -> tuple[str, ...]:
        has_texts = "caption" in self._table.labels
        return tuple(
            key for key in KEYS if key in self._table.columns or (key == "texts" and has_texts)
        )

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption of each mesh. Raises ValueError where there are none."""
        return self._label("caption")

    @property
    def categories(self) -> tuple[str, ...]:
        """The category of each mesh. Raises ValueError where there are none."""
        return self._label("category")

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each mesh. Raises ValueError where there are none."""
        return self._label("name")

    def _label(self, name: str) -> tuple[str, ...]:
        return tuple(self._label_values(name).astype(np.str_).tolist())

    def _label_values(self, name: str) -> np.ndarray[Any, Any]:
        if name not in self._table.labels:
            raise ValueError(
                f"this data set has no {name} for its meshes, only {sorted(self._table.labels)}"
            )
        return self._table.labels[name]

    @property
    def labels(self) -> dict[str, np.ndarray[Any, Any]]:
        """All labels by name, one entry for each mesh: of a pack also licence, creator, ..."""
        return dict(self._table.labels)

    @property
    def num_faces(self) -> Tensor:
        """The number of faces of each mesh, int64 "meshes"."""
        return self._table.columns["faces"].lengths

    @property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each mesh, hexadecimal; what is on disk is not read for it."""
        return tuple(row.tobytes().hex() for row in mesh_hashes(self._table))

    @property
    def codes_fingerprint(self) -> str | None:
        """The hash of the autoencoder that made the codes; None where none are cached."""
        column = self._table.columns.get("codes")
        return None if column is None else column.maker

    @property
    def text_encodings_fingerprint(self) -> str | None:
        """What made the text encodings; None where none are cached."""
        column = self._table.columns.get("text_encodings")
        return None if column is None else column.maker
