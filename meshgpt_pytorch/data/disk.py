"""The on-disk format of data sets: a folder of arrays that are mapped into memory, not read.

::

    prepared/
      dataset.json                what there is: format version, number of meshes, labels
      arrays-<id>/                named by dataset.json, written whole before it is named there
        vertices.npy              float32 (sum nv, 3)
        vertices_offsets.npy      int64 (n + 1): mesh i has rows offsets[i] to offsets[i + 1]
        faces.npy                 int32 (sum nf, 3 or 4), indices into the vertices of the mesh
        faces_offsets.npy
        hashes.npy                uint8 (n, 32), the sha256 of each mesh
        label_<name>.npy          text or numbers, one for each mesh

``dataset.json`` is replaced in one step, last: a reader sees the old meshes or the new ones, and
what a killed run or a full disk left behind is never named there. No file holds a pickle.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from meshgpt_pytorch.checkpoint.atomic import atomic_path, sync_to_disk
from meshgpt_pytorch.data.arrays import (
    MappedRows,
    RaggedWriter,
    read_array,
    remove_leftovers,
    save_array,
)
from meshgpt_pytorch.data.fingerprints import hash_mesh
from meshgpt_pytorch.data.packs import face_tensor, vertex_tensor
from meshgpt_pytorch.data.store import Column, MeshTable
from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.mesh.checks import check_mesh

FORMAT = "meshgpt-pytorch meshes"
FORMAT_VERSION = 1
MANIFEST = "dataset.json"

Label = str | int | float | None


class MeshWriter:
    """Write a data set to a folder, mesh by mesh, without holding it in memory.

    What was in the folder stays readable until `finish`, which replaces it in one step; caches of
    meshes that are still there go on being used. A writer that is killed, fails or is left by an
    exception changes nothing. ::

        with MeshWriter("prepared/") as writer:
            for mesh, caption in meshes:
                writer.add(mesh, {"caption": caption})

    Args:
        folder: where to write; made if it is not there.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self._name = f"arrays-{uuid4().hex[:12]}"
        self._path = self.folder / f".{self._name}.tmp"
        self._path.mkdir(parents=True)
        self._labels = (self._path / "labels.jsonl").open("w", encoding="utf-8")
        self._columns: tuple[RaggedWriter, RaggedWriter] | None = None
        self._hashes: list[str] = []

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, mesh: Mesh | tuple[Any, Any], labels: Mapping[str, Label] | None = None) -> str:
        """Write one mesh behind those that are there.

        Args:
            mesh: "nv 3" vertices and "nf nvf" faces, as they are to be trained on; tensors or
                arrays.
            labels: facts by name: "caption" (what items give as ``texts``), "category", "name",
                "licence", ... A mesh may lack some.

        Returns:
            the hash of the mesh.

        Raises:
            ValueError: the mesh cannot be used, has other faces than the ones before it (triangles
                and quads), or a label is no text or number. Nothing was written.
            OSError: the disk is full; nothing of what was added is kept.
            RuntimeError: the writer has finished already.
        """
        if self._labels.closed:
            raise RuntimeError(f"the writer of {self.folder} has finished; make a new MeshWriter")
        vertices, faces = mesh
        mesh = Mesh(
            vertex_tensor(vertices, f"vertices of mesh {len(self)}"),
            face_tensor(faces, f"faces of mesh {len(self)}"),
        )
        check_mesh(mesh)
        line = json.dumps(_plain_labels(labels or {}))
        if self._columns is not None and mesh.faces.shape[1:] != self._columns[1].row_shape:
            raise ValueError(
                f"all meshes of a data set must have faces of one size, got "
                f"{self._columns[1].row_shape[0]} vertices a face before and "
                f"{mesh.faces.shape[1]} in mesh {len(self)}; split the quads into triangles"
            )
        try:
            if self._columns is None:
                self._columns = (
                    RaggedWriter(self._path, "vertices", mesh.vertices),
                    RaggedWriter(self._path, "faces", mesh.faces),
                )
            for column, rows in zip(self._columns, mesh, strict=True):
                column.append(rows)
            self._labels.write(line + "\n")
        except BaseException:
            self.discard()
            raise
        self._hashes.append(hash_mesh(mesh))
        return self._hashes[-1]

    def finish(self) -> Path:
        """Make what was added the data set of the folder; return the folder.

        Raises:
            ValueError: no mesh was added.
            OSError: the disk is full; the folder is as it was.
            RuntimeError: the writer has finished already.
        """
        if self._labels.closed:
            raise RuntimeError(f"the writer of {self.folder} has finished; make a new MeshWriter")
        try:
            if self._columns is None:
                raise ValueError("a data set needs at least one mesh, got none")
            for column in self._columns:
                column.close()
            self._labels.close()
            save_array(self._path / "hashes.npy", hashes_array(self._hashes))
            label_names = _write_labels(self._path)
            sync_to_disk(self._path)
            self._path.rename(self.folder / self._name)
            previous = _replace_manifest(
                self.folder,
                {
                    "format": FORMAT,
                    "version": FORMAT_VERSION,
                    "arrays": self._name,
                    "num_meshes": len(self),
                    "labels": label_names,
                },
            )
        except BaseException:
            self.discard()
            raise
        if previous is not None:
            shutil.rmtree(self.folder / previous, ignore_errors=True)
        for pattern in ("arrays-*", ".arrays-*.tmp"):
            remove_leftovers(self.folder, pattern)
        return self.folder

    def discard(self) -> None:
        """Drop what was added; the folder stays as it was."""
        with suppress(OSError):  # of a full disk, once more
            self._labels.close()
        for column in self._columns or ():
            with suppress(OSError):
                column.close(complete=False)
        for path in (self._path, self.folder / self._name):
            shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> "MeshWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.discard()


def _plain_labels(labels: Mapping[str, Label]) -> dict[str, Label]:
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in labels.items()
    }
    for name, value in plain.items():
        if not name.isidentifier() or not (value is None or isinstance(value, str | int | float)):
            raise ValueError(
                f"labels must be text or numbers under names such as 'caption', got "
                f"{type(value).__name__} under {name!r}"
            )
    return plain


def _write_labels(folder: Path) -> list[str]:
    """Turn the lines of labels, one for each mesh, into arrays, one for each name."""
    path = folder / "labels.jsonl"
    with path.open(encoding="utf-8") as file:
        names = sorted({name for line in file for name in json.loads(line)})
    for name in names:
        with path.open(encoding="utf-8") as file:
            values = [json.loads(line).get(name) for line in file]
        save_array(folder / f"label_{name}.npy", label_array(values))
    path.unlink()
    return names


def label_array(values: Sequence[Label]) -> np.ndarray[Any, Any]:
    """Make an array of labels; None becomes nan or "".

    Args:
        values: one for each mesh.

    Returns:
        numbers if all are and each integer keeps its digits: in int64, or in float64 where others
        are floats or None; else text.
    """
    given = [value for value in values if value is not None]
    integers = [value for value in given if isinstance(value, int)]
    limit = 2**63 if len(integers) == len(values) else 2**53
    is_exact = all(-limit <= value < limit for value in integers)
    if given and is_exact and not any(isinstance(value, str) for value in given):
        return np.array([np.nan if value is None else value for value in values])
    return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)


def hashes_array(hashes: Sequence[str]) -> np.ndarray[Any, Any]:
    """Pack hexadecimal sha256 hashes into uint8 "n 32"."""
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8)
    return packed.reshape(len(hashes), 32)


def _replace_manifest(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Write a manifest; return the arrays that the one before it named."""
    path = folder / MANIFEST
    try:
        previous = json.loads(path.read_text())["arrays"]
    except (OSError, ValueError, KeyError, TypeError):
        previous = None
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    return previous if isinstance(previous, str) else None


# reading


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a folder of meshes says of itself.

    Raises:
        FileNotFoundError: the folder holds no data set.
        ValueError: it is damaged, or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"a folder of prepared meshes holds {MANIFEST}, found none in {folder}; write one with "
            f"prepare_meshes, MeshDataset.save or MeshWriter"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; prepare the meshes again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is no {FORMAT!r}; prepare the meshes again, in another folder")
    if manifest.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {manifest.get('version')}, this library reads "
            f"{FORMAT_VERSION}; prepare the meshes again"
        )
    return manifest


def read_mesh_folder(folder: Path) -> MeshTable:
    """Open a folder of meshes; of the meshes nothing is read but their lengths and hashes.

    Args:
        folder: as `MeshWriter` writes it.

    Returns:
        the table, mapped.

    Raises:
        FileNotFoundError: the folder holds no data set.
        ValueError: it is damaged, or of another format version.
    """
    manifest = read_manifest(folder)
    try:
        return _open_arrays(folder, manifest)
    except FileNotFoundError as error:
        if read_manifest(folder) != manifest:  # a writer replaced them in between
            return read_mesh_folder(folder)
        raise ValueError(f"{folder} is damaged: {error}; prepare the meshes again") from error


def _open_arrays(folder: Path, manifest: Mapping[str, Any]) -> MeshTable:
    arrays = folder / manifest["arrays"]
    rows = {name: MappedRows(arrays, name) for name in ("vertices", "faces")}
    hashes = read_array(arrays / "hashes.npy", in_memory=True)
    labels = {
        name: read_array(arrays / f"label_{name}.npy", in_memory=False)
        for name in manifest["labels"]
    }
    num_meshes = manifest["num_meshes"]
    lengths = {len(hashes), *map(len, rows.values()), *map(len, labels.values())}
    if lengths != {num_meshes}:
        raise ValueError(
            f"{folder} is damaged: wanted {num_meshes} meshes, labels and hashes, got "
            f"{sorted(lengths)}; prepare the meshes again"
        )
    items = torch.arange(num_meshes)
    columns = {name: Column(each, items) for name, each in rows.items()}
    return MeshTable(columns, labels, hashes, folder)


def write_mesh_folder(table: MeshTable, folder: Path) -> Path:
    """Write the meshes and labels of a table; what is derived from them is left out."""
    with MeshWriter(folder) as writer:
        for item in range(len(table)):
            labels = {name: values[item].item() for name, values in table.labels.items()}
            writer.add(_mesh(table, item), labels)
    return folder


def mesh_hashes(table: MeshTable) -> np.ndarray[Any, Any]:
    """Return the hash of each mesh, uint8 "n 32"; of meshes in memory it is computed."""
    if table.hashes is None:
        return hashes_array([hash_mesh(_mesh(table, item)) for item in range(len(table))])
    return table.hashes


def verify_table(table: MeshTable) -> None:
    """Read every mesh and compare its hash with the stored one.

    Raises:
        ValueError: a mesh differs; the message names it.
    """
    if table.hashes is None:
        return
    for item in range(len(table)):
        if hash_mesh(_mesh(table, item)) != table.hashes[item].tobytes().hex():
            raise ValueError(
                f"{table.describe(item)} of {table.folder} is damaged: it is not what was written; "
                f"prepare the meshes again"
            )


def _mesh(table: MeshTable, item: int) -> Mesh:
    return Mesh(table.columns["vertices"][item], table.columns["faces"][item])
