"""Data sets of meshes, as dicts of tensors of their own size; `custom_collate` batches them."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import copy
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from meshgpt_pytorch.data.augment import Augmentation
from meshgpt_pytorch.data.augmented import AugmentedDataset
from meshgpt_pytorch.data.cache_folder import Derive
from meshgpt_pytorch.data.choosing import held_out, matching, positions
from meshgpt_pytorch.data.derived import (
    Embedder,
    Tokenizer,
    canonical_table,
    derive_codes,
    derive_face_edges,
    derive_text_encodings,
)
from meshgpt_pytorch.data.derived_columns import (
    FACE_EDGES_MAKER,
    attach_columns,
    derive_column,
    explain_missing,
    save_columns,
)
from meshgpt_pytorch.data.disk import read_mesh_folder, verify_table, write_mesh_folder
from meshgpt_pytorch.data.fingerprints import fingerprint_encoder, fingerprint_weights
from meshgpt_pytorch.data.folders import DatasetFromTransforms
from meshgpt_pytorch.data.items import KEYS, MeshItems
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


class DatasetSplit(NamedTuple):
    """The two parts of a data set."""

    train: "MeshDataset"
    validation: "MeshDataset"


class MeshDataset(MeshItems):
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
        source: a folder of prepared meshes, which stay on disk and are read one by one; an npz
            pack (arrays ``vertices``, ``faces``, ``vertex_offsets``, ``face_offsets`` and labels
            such as ``caption``, ``category``, ``name``), which is read into memory; or a table of
            meshes.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds no meshes, is damaged, of another format version, or holds a mesh that
            cannot be used.
    """

    def __init__(self, source: str | PathLike[str] | MeshTable) -> None:
        super().__init__(source if isinstance(source, MeshTable) else _read_table(Path(source)))
        attach_columns(self._table, warn=True)

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

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write meshes, labels and what is cached to a folder, which ``MeshDataset(folder)`` opens.

        A data set that is in the folder is replaced in one step once all is written.

        Args:
            folder: where to write; made if it is not there.

        Returns:
            the folder.

        Raises:
            OSError: the folder cannot be written, or the disk is full; the folder is as it was.
        """
        write_mesh_folder(self._table, Path(folder))
        save_columns(self._table, Path(folder))
        return Path(folder)

    def verify(self) -> None:
        """Read every mesh of a data set on disk and compare it with its hash.

        Raises:
            ValueError: a mesh is damaged; the message names it.
        """
        verify_table(self._table)

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
                found = explain_missing(self._table, key)
                raise ValueError(f"items can carry {self._available}, got {key!r}{found}; {remedy}")
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
        table = self._table.select(positions(indices, len(self)))
        attach_columns(table, warn=False)
        return self._like_this(table, self._keys)

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
        categories = None if category is None else self.categories
        return self.select(matching(self.num_faces, max_faces, categories, category))

    def split(
        self, fraction: float, seed: int = 0, groups: str | Sequence[Hashable] | None = None
    ) -> DatasetSplit:
        """Split at random into a part to train on and a part to validate with.

        Args:
            fraction: share of meshes to validate with, above 0 and below 1. Groups are never cut,
                so that it can be less; it is at least one group.
            seed: the same seed gives the same parts.
            groups: a label for each mesh, or the name of one of `labels`; meshes of one group stay
                together, and one without a label (``""``, None, nan) is a group of its own.
                `near_duplicate_groups` makes groups of look-alikes.

        Returns:
            (train, validation), each in the order of this data set.

        Raises:
            ValueError: a fraction outside (0, 1), labels of another length, or only one group.
        """
        if isinstance(groups, str):
            groups = self._label_values(groups).tolist()
        is_validation = held_out(len(self), fraction, seed, groups)
        return DatasetSplit(self.select(~is_validation), self.select(is_validation))

    def augment(
        self,
        augmentation: Augmentation,
        *,
        seed: int = 0,
        one_of: str | None = None,
        num_discrete_coors: int = 128,
        coor_continuous_range: tuple[float, float] = (-1.0, 1.0),
        up_axis: int = 1,
    ) -> AugmentedDataset:
        """Return a data set whose meshes are augmented anew in each epoch, as they are read.

        Each is then put on the grid and in canonical order, and its face edges are derived. Where
        parts as thin as a bin fall flat there, it is drawn again, see ``AugmentedDataset``. Codes
        belong to the meshes as they were and are left out; text encodings stay. ::

            train = dataset.augment(paper_augmentation(), seed=0)
            for epoch in range(10):
                train.set_epoch(epoch)  # the trainers do

        Args:
            augmentation: from a mesh and a random generator to a mesh: `paper_augmentation`, or a
                `Compose` of your choice.
            seed: of all that is drawn.
            one_of: name of a label. Meshes that share it are one item, and each epoch draws one of
                them: with "key", one of the levels of decimation that `prepare_meshes` wrote. A
                mesh without this label (``""``, nan) is an item of its own.
            num_discrete_coors: bins of the grid along each axis.
            coor_continuous_range: the cube that the grid divides; meshes must be in it.
            up_axis: coordinate to sort by first.

        Raises:
            ValueError: items have no vertices or faces (see `with_keys`), or there is no such
                label.
        """
        kept = [key for key in self.item_keys if key not in {"codes", "face_edges"}]
        return AugmentedDataset(
            self.with_keys(*kept) if kept else self,
            augmentation,
            seed=seed,
            groups=None if one_of is None else self._label_values(one_of).tolist(),
            num_discrete_coors=num_discrete_coors,
            coor_continuous_range=coor_continuous_range,
            up_axis=up_axis,
        )

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

    # of a data set on disk, what these derive is kept in its folder, where `MeshDataset` finds it

    def cache_face_edges(self, *, rebuild: bool = False) -> None:
        """Derive the face edges of each mesh, if that was not done before.

        Args:
            rebuild: derive them in any case.

        Raises:
            ValueError: those in the folder cannot be used, and `rebuild` is False.
            OSError: the folder cannot be written.
        """
        self._derive(
            "face_edges",
            FACE_EDGES_MAKER,
            lambda items: derive_face_edges(self._table, items),
            rebuild=rebuild,
        )

    def cache_codes(
        self, autoencoder: Tokenizer, *, batch_size: int = 16, rebuild: bool = False
    ) -> None:
        """Tokenize each mesh, if that was not done before.

        Args:
            autoencoder: a `MeshAutoencoder`, on any device. It is recognised by its weights: after
                more training its codes are others, and to be asked for with `rebuild`.
            batch_size: meshes to tokenize at once.
            rebuild: tokenize in any case, and replace the codes that there are.

        Raises:
            ValueError: `batch_size` is below 1, a mesh does not fit the autoencoder, or the codes
                that there are come from another autoencoder or cannot be used, and `rebuild` is
                False.
            OSError: the folder cannot be written.
        """
        self._derive(
            "codes",
            fingerprint_weights(autoencoder),
            lambda items: derive_codes(self._table, items, autoencoder, batch_size=batch_size),
            rebuild=rebuild,
        )

    def cache_text_encodings(
        self, encoder: Embedder, *, batch_size: int = 64, rebuild: bool = False
    ) -> None:
        """Encode each distinct caption once, if that was not done before.

        What is kept is the encoder's own output, before any layer that is trained.

        Args:
            encoder: a `TextEncoder`. It is recognised by its ``__repr__``, or by its weights if it
                is a module; one without either is a new one each time.
            batch_size: texts to encode at once.
            rebuild: encode in any case, and replace the encodings that there are.

        Raises:
            ValueError: `batch_size` is below 1, the data set has no captions, or the encodings
                that there are come from another encoder or cannot be used, and `rebuild` is False.
            OSError: the folder cannot be written.
        """
        captions = self.captions

        def derive(items: list[int]) -> list[Tensor]:
            texts = [captions[item] for item in items]
            return derive_text_encodings(texts, encoder, batch_size=batch_size)

        self._derive("text_encodings", fingerprint_encoder(encoder), derive, rebuild=rebuild)

    def _derive(self, kind: str, maker: str, derive: Derive, *, rebuild: bool) -> None:
        self._table.columns[kind] = derive_column(self._table, kind, maker, derive, rebuild=rebuild)


def _read_table(path: Path) -> MeshTable:
    return read_mesh_folder(path) if path.is_dir() else read_pack(path)
