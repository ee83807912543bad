"""Tables of meshes: read from an npz pack, or built from meshes in memory.

A pack is one npz without pickles: ``vertices`` float (sum nv, 3), ``faces`` int (sum nf, nvf) with
indices local to the mesh, ``vertex_offsets`` and ``face_offsets`` (n + 1), and any number of
further arrays of length n, such as ``caption``, ``category`` and ``name``.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from meshgpt_pytorch.data.store import Column, MeshTable, RaggedRows
from meshgpt_pytorch.mesh import Mesh

GEOMETRY = ("vertices", "faces", "vertex_offsets", "face_offsets")


def read_pack(path: Path) -> MeshTable:
    """Read the meshes and the labels of an npz pack.

    Args:
        path: the file.

    Returns:
        the table, its meshes checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no pack, is damaged, or holds a mesh that cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"a data set is a folder of prepared meshes or one .npz file, found neither at {path}"
        )
    # opened here: np.load does not close a file that turns out to be damaged
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
        except (OSError, EOFError, ValueError, AttributeError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a readable .npz pack of meshes: {error}") from error

    missing = [name for name in GEOMETRY if name not in arrays]
    if missing:
        raise ValueError(f"a pack holds the arrays {GEOMETRY}, {path} lacks {missing}")
    vertices, faces, vertex_offsets, face_offsets = (arrays.pop(name) for name in GEOMETRY)
    num_meshes = len(face_offsets) - 1
    if num_meshes < 1 or len(vertex_offsets) != num_meshes + 1:
        raise ValueError(
            f"vertex_offsets and face_offsets must be equally long and hold at least one mesh, "
            f"got {len(vertex_offsets)} and {len(face_offsets)} in {path}"
        )
    for name, offsets, total in (
        ("vertex_offsets", vertex_offsets, len(vertices)),
        ("face_offsets", face_offsets, len(faces)),
    ):
        if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} must rise from 0 to {total}, which it does not in {path}")
    for name, values in arrays.items():
        if values.shape[:1] != (num_meshes,):
            raise ValueError(
                f"{name} must have one entry for each of {num_meshes} meshes, got shape "
                f"{values.shape} in {path}"
            )

    table = MeshTable(
        {
            "vertices": _column(vertex_tensor(vertices, f"vertices of {path}"), vertex_offsets),
            "faces": _column(face_tensor(faces, f"faces of {path}"), face_offsets),
        },
        arrays,
    )
    check_table(table, source=str(path))
    return table


def _column(values: Tensor, offsets: np.ndarray[Any, Any]) -> Column:
    rows = RaggedRows(values, torch.from_numpy(offsets.astype(np.int64)))
    return Column(rows, torch.arange(len(rows)))


def table_from_meshes(
    meshes: Sequence[Mesh | Mapping[str, Any] | Sequence[Any]],
    labels: Mapping[str, Sequence[str] | None],
) -> MeshTable:
    """Build a table from meshes in memory.

    Args:
        meshes: (vertices, faces) pairs, or mappings with these keys and perhaps "texts"; tensors
            or arrays.
        labels: facts for each mesh by name; None where there are none.

    Returns:
        the table, its meshes checked.

    Raises:
        ValueError: there are no meshes, labels of another length, or a mesh that cannot be used.
    """
    if len(meshes) == 0:
        raise ValueError("a data set needs at least one mesh, got none")
    vertices, faces = [], []
    for item, mesh in enumerate(meshes):
        vertex_values, face_values = _geometry(mesh, item)
        vertices.append(vertex_tensor(vertex_values, f"vertices of mesh {item}"))
        faces.append(face_tensor(face_values, f"faces of mesh {item}"))
        if faces[-1].shape[1] != faces[0].shape[1]:
            raise ValueError(
                f"all meshes of a data set must have faces of one size, got {faces[0].shape[1]} "
                f"vertices a face in mesh 0 and {faces[-1].shape[1]} in mesh {item}; split the "
                f"quads into triangles"
            )

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, values in {"caption": _texts(meshes), **_given(labels)}.items():
        if values is not None and len(values) != len(meshes):
            raise ValueError(
                f"wanted one {name} for each of {len(meshes)} meshes, got {len(values)}"
            )
        if values is not None:
            arrays[name] = np.array(values, dtype=np.str_)
    table = MeshTable(
        {"vertices": Column.from_rows(vertices), "faces": Column.from_rows(faces)}, arrays
    )
    check_table(table)
    return table


def _given(labels: Mapping[str, Sequence[str] | None]) -> dict[str, Sequence[str]]:
    return {name: values for name, values in labels.items() if values is not None}


def _texts(meshes: Sequence[Any]) -> list[str] | None:
    texts = [mesh["texts"] for mesh in meshes if isinstance(mesh, Mapping) and "texts" in mesh]
    return texts or None


def _geometry(mesh: Any, item: int) -> tuple[Any, Any]:
    if isinstance(mesh, Mapping):
        missing = {"vertices", "faces"} - mesh.keys()
        if missing:
            raise ValueError(f"mesh {item} needs vertices and faces, lacks {sorted(missing)}")
        return mesh["vertices"], mesh["faces"]
    if not isinstance(mesh, Sequence) or len(mesh) != 2:
        raise ValueError(
            f"mesh {item} must be a Mesh, a (vertices, faces) pair or a mapping with these keys, "
            f"got {type(mesh).__name__}"
        )
    return mesh[0], mesh[1]


def vertex_tensor(values: Any, name: str) -> Tensor:
    """Return vertices as float32 "nv 3" on the CPU.

    Raises:
        ValueError: they have another shape; `name` says whose.
    """
    vertices = torch.as_tensor(values)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or vertices.is_complex():
        raise ValueError(f"{name} must have shape (nv, 3), got {tuple(vertices.shape)}")
    return vertices.detach().float().cpu()


def face_tensor(values: Any, name: str) -> Tensor:
    """Return faces as integers "nf 3" or "nf 4" on the CPU, of a dtype that torch can compare.

    Raises:
        ValueError: they have another shape, or are no whole numbers; `name` says whose.
    """
    faces = torch.as_tensor(values)
    if faces.is_floating_point() or faces.is_complex() or faces.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, got {faces.dtype}; convert with .long()")
    if faces.ndim != 2 or faces.shape[1] not in (3, 4):
        raise ValueError(f"{name} must have shape (nf, 3) or (nf, 4), got {tuple(faces.shape)}")
    if faces.dtype in (torch.uint16, torch.uint32, torch.uint64):
        faces = faces.long()
    return faces.cpu()


def check_table(table: MeshTable, *, source: str = "the data set") -> None:
    """Raise ValueError for the first mesh that is empty, not finite, or indexes what it lacks.

    Args:
        table: one row for each mesh, in order.
        source: where the meshes come from, for the message.
    """
    vertices, faces = table.columns["vertices"].rows, table.columns["faces"].rows
    assert isinstance(vertices, RaggedRows) and isinstance(faces, RaggedRows), "built in memory"
    empty = (faces.lengths == 0).nonzero()
    if len(empty):
        raise ValueError(f"{table.describe(int(empty[0]))} of {source} has no faces; leave it out")
    broken = (~vertices.values.isfinite()).any(dim=1).nonzero()
    if len(broken):
        item = vertices.row_of(int(broken[0]))
        raise ValueError(f"{table.describe(item)} of {source} has NaN or infinite vertices")
    num_vertices = vertices.lengths.repeat_interleave(faces.lengths)
    outside = (faces.values < 0) | (faces.values >= num_vertices[:, None])
    rows = outside.any(dim=1).nonzero()
    if len(rows):
        row = int(rows[0])
        item = faces.row_of(row)
        raise ValueError(
            f"faces must index the mesh's own vertices, 0 to {int(num_vertices[row]) - 1} in "
            f"{table.describe(item)} of {source}, got {faces.values[row].tolist()}; meshes are "
            f"stored without padding"
        )
