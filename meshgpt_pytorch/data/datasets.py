"""Data sets of meshes, as dicts of tensors of their own size; `custom_collate` batches them."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from meshgpt_pytorch.data.derived import (
    Embedder,
    Tokenizer,
    canonical_table,
    codes_column,
    face_edges_column,
    text_encodings_column,
)
from meshgpt_pytorch.data.fingerprints import fingerprint_encoder, fingerprint_weights
from meshgpt_pytorch.data.folders import DatasetFromTransforms
from meshgpt_pytorch.data.packs import read_pack, table_from_meshes
from meshgpt_pytorch.data.store import MeshTable
from meshgpt_pytorch.mesh import Mesh

__all__ = ["DatasetFromTransforms", "DatasetSplit", "MeshDataset"]

# how to make the keys that not every data set has
REMEDIES = {
    "texts": "build the data set with captions",
    "face_edges": "call cache_face_edges() first",
    "codes": "call cache_codes(autoencoder) first",
    "text_encodings": "call cache_text_encodings(encoder) first",
}
KEYS = ("vertices", "faces", *REMEDIES)


class DatasetSplit(NamedTuple):
    """The two parts of a data set."""

    train: "MeshDataset"
    validation: "MeshDataset"


class MeshDataset(Dataset[dict[str, Any]]):
    """Meshes, and what is derived from them once instead of in every step.

    Items are dicts: ``vertices`` float32 "nv 3", ``faces`` int64 "nf nvf", ``texts`` (a string,
    where there are captions), and once cached ``face_edges`` int64 "e 2", ``codes`` int64
    "(nf nvf) q" and ``text_encodings`` "n d". Nothing is padded; batch with `custom_collate`.

    Codes belong to meshes as they are, so put them in order first::

        dataset = MeshDataset("furniture.npz").filter(max_faces=200).canonicalize()
        dataset.cache_codes(autoencoder)
        dataset.cache_text_encodings(encoder)
        train, validation = dataset.with_keys("codes", "text_encodings").split(0.1, seed=0)

    Args:
        source: an npz pack (arrays ``vertices``, ``faces``, ``vertex_offsets``, ``face_offsets``
            and labels such as ``caption``, ``category``, ``name``), or a table of meshes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no pack, is damaged, or holds a mesh that cannot be used.
    """

    def __init__(self, source: str | Path | MeshTable) -> None:
        self._table = source if isinstance(source, MeshTable) else read_pack(Path(source))
        self._keys: tuple[str, ...] | None = None

    @classmethod
    def from_meshes(
        cls,
        meshes: Sequence[Mesh | Mapping[str, Any] | Sequence[Any]],
        texts: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> "MeshDataset":
        """Build a data set from meshes in memory.

        Args:
            meshes: meshes, (vertices, faces) pairs, or dicts with these keys and perhaps "texts";
                tensors or arrays, faces without padding.
            texts: a caption for each mesh.
            categories: a category for each mesh.
            names: a name for each mesh, for messages and reports.

        Raises:
            ValueError: no meshes, labels of another length, or a mesh that cannot be used.
        """
        labels = {"caption": texts, "category": categories, "name": names}
        return cls(table_from_meshes(meshes, labels))

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

    # what there is

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
        if name not in self._table.labels:
            raise ValueError(
                f"this data set has no {name} for its meshes, only {sorted(self._table.labels)}"
            )
        return tuple(self._table.labels[name].astype(np.str_).tolist())

    @property
    def labels(self) -> dict[str, np.ndarray[Any, Any]]:
        """All labels by name, one entry for each mesh: of a pack also licence, creator, ..."""
        return dict(self._table.labels)

    @property
    def num_faces(self) -> Tensor:
        """The number of faces of each mesh, int64 "meshes"."""
        return self._table.columns["faces"].lengths

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

    # choosing

    def _like_this(self, table: MeshTable, keys: tuple[str, ...] | None) -> "MeshDataset":
        dataset = copy(self)
        dataset._table, dataset._keys = table, keys
        return dataset

    def with_keys(self, *keys: str) -> "MeshDataset":
        """Return a data set whose items carry these keys alone, so that little is moved.

        Raises:
            ValueError: a key is unknown or not cached yet.
        """
        for key in keys:
            if key not in self._available:
                remedy = REMEDIES.get(key, f"choose from {KEYS}")
                raise ValueError(f"items can carry {self._available}, got {key!r}; {remedy}")
        if not keys:
            raise ValueError(f"name at least one key of {self._available}, got none")
        return self._like_this(self._table, keys)

    def select(self, indices: Sequence[int] | Tensor | np.ndarray[Any, Any]) -> "MeshDataset":
        """Return a data set of some meshes, in the order of `indices`, with their caches.

        Args:
            indices: positions in this data set, or a bool for each mesh.

        Raises:
            ValueError: no mesh is left, or there is none at an index.
        """
        items = torch.as_tensor(indices)
        if items.dtype == torch.bool and len(items) == len(self):
            items = items.nonzero()[:, 0]
        if items.ndim != 1 or len(items) == 0 or items.dtype.is_floating_point:
            raise ValueError(
                f"wanted at least one whole number, or a bool for each of {len(self)} meshes, "
                f"got {items.dtype} of shape {tuple(items.shape)}"
            )
        outside = items[(items < -len(self)) | (items >= len(self))]
        if items.dtype == torch.bool or len(outside):
            got = f"{len(items)} bools" if items.dtype == torch.bool else outside[0].item()
            raise ValueError(f"indices must be below the {len(self)} meshes there are, got {got}")
        return self._like_this(self._table.select(items.long() % len(self)), self._keys)

    def filter(
        self, max_faces: int | None = None, category: str | Collection[str] | None = None
    ) -> "MeshDataset":
        """Return a data set of the meshes that fulfil every condition, with their caches.

        Args:
            max_faces: most faces of a mesh.
            category: one category, or several.

        Raises:
            ValueError: a category does not occur, or no mesh is left.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        if max_faces is not None:
            keep &= self.num_faces <= max_faces
        if category is not None:
            wanted = {category} if isinstance(category, str) else set(category)
            unknown = wanted - set(self.categories)
            if unknown:
                raise ValueError(
                    f"category must be among {sorted(set(self.categories))}, got {sorted(unknown)}"
                )
            keep &= torch.tensor([label in wanted for label in self.categories])
        if not keep.any():
            raise ValueError(
                f"no mesh of {len(self)} is left with max_faces={max_faces}, "
                f"category={category!r}; the smallest has {int(self.num_faces.min())} faces"
            )
        return self.select(keep)

    def split(
        self, fraction: float, seed: int = 0, groups: Sequence[Hashable] | None = None
    ) -> DatasetSplit:
        """Split at random into a part to train on and a part to validate with.

        Args:
            fraction: share of meshes to validate with, above 0 and below 1. Groups are never cut,
                so that it can be less; it is at least one group.
            seed: the same seed gives the same parts.
            groups: a label for each mesh; meshes of one group (look-alikes) stay together.

        Returns:
            (train, validation), each in the order of this data set.

        Raises:
            ValueError: a fraction outside (0, 1), labels of another length, or only one group.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
        labels = range(len(self)) if groups is None else groups
        if len(labels) != len(self):
            raise ValueError(f"wanted a group for each of {len(self)} meshes, got {len(labels)}")
        members: dict[Hashable, list[int]] = {}
        for item, label in enumerate(labels):
            members.setdefault(label, []).append(item)
        if len(members) < 2:
            raise ValueError(f"a split needs at least 2 groups of meshes, got {len(members)}")

        parts = list(members.values())
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))
        wanted = max(1, round(fraction * len(self)))
        held_out: list[int] = []
        for part in order.tolist():
            if len(held_out) + len(parts[part]) <= min(wanted, len(self) - 1):
                held_out += parts[part]
        held_out = held_out or min(parts, key=len)
        is_validation = torch.zeros(len(self), dtype=torch.bool)
        is_validation[held_out] = True
        return DatasetSplit(self.select(~is_validation), self.select(is_validation))

    # deriving

    def canonicalize(
        self,
        *,
        num_discrete_coors: int = 128,
        coor_continuous_range: tuple[float, float] = (-1.0, 1.0),
        up_axis: int = 1,
    ) -> "MeshDataset":
        """Return a data set with every mesh in canonical order, see `canonicalize_mesh`.

        Face edges and codes belong to the old order and are left behind; text encodings stay.

        Args:
            num_discrete_coors: cells of the grid along each axis.
            coor_continuous_range: the cube that meshes are scaled to.
            up_axis: coordinate to sort by first.

        Raises:
            ValueError: nothing is left of a mesh; the message names it.
        """
        table = canonical_table(
            self._table,
            num_discrete_coors=num_discrete_coors,
            coor_continuous_range=coor_continuous_range,
            up_axis=up_axis,
        )
        keys = self._keys and tuple(key for key in self._keys if key in {"texts", *table.columns})
        return self._like_this(table, keys or None)

    def cache_face_edges(self) -> None:
        """Derive the face edges of each mesh, if that was not done before."""
        if "face_edges" not in self._table.columns:
            self._table.columns["face_edges"] = face_edges_column(self._table.columns["faces"])

    def cache_codes(self, autoencoder: Tokenizer, *, batch_size: int = 16) -> None:
        """Tokenize each mesh, if the autoencoder did not make the codes that are cached.

        Args:
            autoencoder: a `MeshAutoencoder`, on any device. It is recognised by its weights: after
                more training the codes are made anew.
            batch_size: meshes to tokenize at once.

        Raises:
            ValueError: `batch_size` is below 1, or a mesh does not fit the autoencoder.
        """
        if self.codes_fingerprint != fingerprint_weights(autoencoder):
            self._table.columns["codes"] = codes_column(
                self._table, autoencoder, batch_size=batch_size
            )

    def cache_text_encodings(self, encoder: Embedder, *, batch_size: int = 64) -> None:
        """Encode each distinct caption once, if this encoder did not make what is cached.

        What is kept is the encoder's own output, before any layer that is trained.

        Args:
            encoder: a `TextEncoder`. It is recognised by its ``__repr__``, or by its weights if it
                is a module; one without either is called anew each time.
            batch_size: texts to encode at once.

        Raises:
            ValueError: `batch_size` is below 1, or the data set has no captions.
        """
        if self.text_encodings_fingerprint != fingerprint_encoder(encoder):
            self._table.columns["text_encodings"] = text_encodings_column(
                self.captions, encoder, batch_size=batch_size
            )
