"""PLY files, text and binary, whose faces are polygons; trimesh splits them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from meshgpt_pytorch.mesh.polygon_files import PolygonBuilder, Polygons
from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["ply_bytes", "read_ply"]

SCALARS = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
FACE_LISTS = ("vertex_indices", "vertex_index")
MAX_HEADER_LINES = 1000


class Property(NamedTuple):
    """One property of an element: a number, or a list with a number in front that counts it."""

    name: str
    dtype: str
    count_dtype: str | None


class Element(NamedTuple):
    """One kind of element: how many rows, and what each holds."""

    name: str
    num_rows: int
    properties: list[Property]


def read_ply(path: Path) -> Polygons:
    """Read the positions and faces of a PLY file; every other property is passed over.

    Raises:
        ValueError: the header is malformed, or the file ends early.
    """
    with path.open("rb") as file:
        order, elements = read_header(file)
        content = file.read()
    rows = text_rows(content) if order is None else None
    offset = 0
    builder = PolygonBuilder()
    vertices = np.empty((0, 3))
    for element in elements:
        if order is None:
            assert rows is not None, "the rows of a text file"
            table = list(itertools.islice(rows, element.num_rows))
            check_count(element, len(table))
            if element.name == "vertex":
                vertices = text_positions(element, table)
            elif element.name == "face":
                add_text_faces(element, table, builder)
        elif any(field.count_dtype for field in element.properties):
            offset = read_lists(content, offset, order, element, builder)
        else:
            array, offset = read_scalars(content, offset, order, element)
            if element.name == "vertex":
                vertices = np.stack([array[name].astype(np.float64) for name in "xyz"], axis=1)
    return builder.polygons()._replace(vertices=vertices)


def read_header(file: BinaryIO) -> tuple[str | None, list[Element]]:
    """Read the header; return the byte order, None for a text file, and the elements."""
    if file.readline(80).strip() != b"ply":
        raise ValueError("wanted ply on the first line")
    encoding, elements = None, list[Element]()
    for _ in range(MAX_HEADER_LINES):
        line = file.readline(1000)
        match line.decode("latin-1").split():
            case ["end_header"]:
                return finished_header(encoding, elements)
            case ["format", name, *_]:
                encoding = name
            case ["element", name, count]:
                elements.append(Element(name, int(count), []))
            case ["property", "list", count_type, item_type, name] if elements:
                types = SCALARS[count_type], SCALARS[item_type]
                elements[-1].properties.append(Property(name, types[1], types[0]))
            case ["property", scalar_type, name] if elements:
                elements[-1].properties.append(Property(name, SCALARS[scalar_type], None))
            case ["comment" | "obj_info", *_] | []:
                if not line:
                    break
            case _:
                raise ValueError(f"cannot understand the header line {line.strip()[:60]!r}")
    raise ValueError("the header does not end")


def finished_header(
    encoding: str | None, elements: list[Element]
) -> tuple[str | None, list[Element]]:
    """Check that a header names what a mesh needs."""
    if encoding not in ("ascii", *BYTE_ORDERS):
        raise ValueError(f"the format must be ascii or one of {(*BYTE_ORDERS,)}, got {encoding}")
    for element in elements:
        if element.num_rows < 0:
            raise ValueError(f"it promises {element.num_rows} elements {element.name!r}")
        names = [field.name for field in element.properties]
        if element.name == "vertex" and not {"x", "y", "z"} <= set(names):
            raise ValueError(f"vertices need x, y and z, got {names}")
        if len(set(names)) < len(names):
            raise ValueError(f"elements {element.name!r} have a property twice: {names}")
    return BYTE_ORDERS.get(encoding), elements


def check_count(element: Element, num_found: int) -> None:
    """Raise if a file ends before an element does."""
    if num_found < element.num_rows:
        raise ValueError(
            f"it promises {element.num_rows} elements {element.name!r}, and has {num_found}"
        )


# text


def text_rows(content: bytes) -> Iterator[list[bytes]]:
    """Yield the words of each line that has some."""
    return (words for line in content.splitlines() if (words := line.split()))


def text_positions(element: Element, table: list[list[bytes]]) -> np.ndarray:
    """Read x, y and z of each vertex."""
    if any(field.count_dtype for field in element.properties):
        raise ValueError("vertices with lists are not read")
    columns = [[field.name for field in element.properties].index(axis) for axis in "xyz"]
    if any(len(words) <= max(columns) for words in table):
        raise ValueError("a vertex lacks coordinates")
    return np.array(
        [[float(words[column]) for column in columns] for words in table], dtype=np.float64
    ).reshape(-1, 3)


def add_text_faces(element: Element, table: list[list[bytes]], builder: PolygonBuilder) -> None:
    """Read the list of vertices of each face."""
    for words in table:
        position = 0
        for field in element.properties:
            length = int(words[position]) if field.count_dtype and position < len(words) else 0
            end = position + 1 + length
            if length < 0 or end > len(words):
                raise ValueError("a face is shorter than it says")
            if field.name in FACE_LISTS and field.count_dtype:
                builder.add_face([int(word) for word in words[position + 1 : end]])
            position = end


# binary


def read_scalars(
    content: bytes, offset: int, order: str, element: Element
) -> tuple[np.ndarray, int]:
    """Read an element without lists; return its rows, and where the next element starts."""
    row = np.dtype([(field.name, order + field.dtype) for field in element.properties])
    check_count(element, (len(content) - offset) // max(row.itemsize, 1))
    array = np.frombuffer(content, row, element.num_rows, offset)
    return array, offset + element.num_rows * row.itemsize


def read_lists(
    content: bytes, offset: int, order: str, element: Element, builder: PolygonBuilder
) -> int:
    """Read an element with lists, those of faces into the builder; return where the next starts."""
    done, offset = read_equal_lists(content, offset, order, element, builder)
    for index in range(done, element.num_rows):
        for field in element.properties:
            length = 1
            if field.count_dtype:
                counted, offset = read_numbers(content, offset, order + field.count_dtype, 1)
                length = int(counted[0]) if len(counted) else -1
            items, offset = read_numbers(content, offset, order + field.dtype, length)
            if length < 0 or len(items) < length:
                check_count(element, index)
            if element.name == "face" and field.count_dtype and field.name in FACE_LISTS:
                builder.add_face(items.tolist())
    return offset


def read_numbers(content: bytes, offset: int, dtype: str, count: int) -> tuple[np.ndarray, int]:
    """Read some numbers, or fewer where the file ends."""
    size = np.dtype(dtype).itemsize
    count = max(0, min(count, (len(content) - offset) // size))
    return np.frombuffer(content, dtype, count, offset), offset + count * size


def read_equal_lists(
    content: bytes, offset: int, order: str, element: Element, builder: PolygonBuilder
) -> tuple[int, int]:
    """Read the faces at the start that are as long as the first, all at once.

    Returns:
        how many rows were read, and where the next one starts.
    """
    if len(element.properties) != 1 or element.name != "face" or element.num_rows == 0:
        return 0, offset
    field = element.properties[0]
    first, _ = read_numbers(content, offset, f"{order}{field.count_dtype}", 1)
    if len(first) == 0 or not 0 < first[0] <= 64 or field.name not in FACE_LISTS:
        return 0, offset
    size = int(first[0])
    row = np.dtype([("n", f"{order}{field.count_dtype}"), ("v", f"{order}{field.dtype}", (size,))])
    num_rows = min(element.num_rows, (len(content) - offset) // row.itemsize)
    rows = np.frombuffer(content, row, num_rows, offset)
    different = np.flatnonzero(rows["n"] != size)
    num_equal = int(different[0]) if len(different) else num_rows
    builder.corners.frombytes(rows["v"][:num_equal].astype(np.int64).tobytes())
    builder.sizes.frombytes(np.full(num_equal, size, dtype=np.int64).tobytes())
    return num_equal, offset + num_equal * row.itemsize


def ply_bytes(mesh: Mesh) -> bytes:
    """Write a triangle or quad mesh as binary PLY."""
    num_faces, size = mesh.faces.shape
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(mesh.vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {num_faces}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(num_faces, dtype=[("n", "u1"), ("v", "<i4", (size,))])
    rows["n"], rows["v"] = size, mesh.faces.numpy()
    return header.encode() + mesh.vertices.numpy().astype("<f4").tobytes() + rows.tobytes()
