"""OBJ and OFF files: text formats whose faces are polygons.

OBJ is read here rather than by trimesh, which splits a mesh at materials and texture seams, lists
its faces in another order, and takes index 0 for the last vertex. trimesh also splits quads.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from meshgpt_pytorch.mesh.types import Mesh

__all__ = [
    "PolygonBuilder",
    "Polygons",
    "fan_triangles",
    "obj_text",
    "off_text",
    "read_obj",
    "read_off",
]


class Polygons(NamedTuple):
    """Positions, and faces of any number of vertices.

    Attributes:
        vertices: ``(nv, 3)`` float64.
        corners: int64, the vertices of one face after those of another, counted from 0.
        sizes: ``(nf,)`` int64, how many vertices each face has.
    """

    vertices: np.ndarray
    corners: np.ndarray
    sizes: np.ndarray


class PolygonBuilder:
    """Collect polygons one by one, in little more memory than they take in the end."""

    def __init__(self) -> None:
        self.coordinates = array("d")
        self.corners = array("q")
        self.sizes = array("q")

    @property
    def num_vertices(self) -> int:
        """How many positions there are so far."""
        return len(self.coordinates) // 3

    def add_face(self, corners: Sequence[int]) -> None:
        """Add a face; raises ValueError for an index that no mesh has."""
        try:
            self.corners.extend(corners)
        except OverflowError:
            raise ValueError("a vertex index is too large for any mesh") from None
        self.sizes.append(len(corners))

    def polygons(self) -> Polygons:
        """Return what was collected."""
        return Polygons(
            np.array(self.coordinates).reshape(-1, 3),
            np.array(self.corners, dtype=np.int64),
            np.array(self.sizes, dtype=np.int64),
        )


def fan_triangles(polygons: Polygons) -> np.ndarray:
    """Split each polygon into triangles around its first vertex; return ``(n, 3)``.

    A polygon that repeats a vertex gives fewer; a triangle stays whatever it is.
    """
    counts = (polygons.sizes - 2).clip(min=0)
    starts = polygons.sizes.cumsum() - polygons.sizes
    first = starts.repeat(counts)
    within = np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
    places = np.stack((first, first + within + 1, first + within + 2), axis=1)
    triangles: np.ndarray = polygons.corners[places]
    in_order = np.sort(triangles, axis=1)
    distinct = (in_order[:, 1:] != in_order[:, :-1]).all(axis=1)
    return triangles[distinct | (counts.repeat(counts) == 1)]


def open_text(path: Path) -> TextIO:
    """Open a text file of any line ends; bytes that are no text do no harm."""
    return path.open(encoding="utf-8-sig", errors="replace")


def read_obj(path: Path) -> Polygons:
    """Read the positions and faces of an OBJ file; every other element is passed over.

    Raises:
        ValueError: a vertex or face is malformed; the message names its line.
    """
    builder = PolygonBuilder()
    with open_text(path) as file:
        for number, line in joined_lines(numbered_lines(file)):
            try:
                add_obj_line(line, builder)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return builder.polygons()


def add_obj_line(line: str, builder: PolygonBuilder) -> None:
    """Read a line of an OBJ file."""
    keyword, *words = line.split()
    if keyword == "v":
        builder.coordinates.extend(parse_position(words))
    elif keyword == "f":
        face = parse_obj_face(words, builder.num_vertices)
        # exporters write loose edges and points as faces of 2 and 1 vertices
        if len(face) > 2:
            builder.add_face(face)


def read_off(path: Path) -> Polygons:
    """Read the positions and faces of a text OFF file; colours are passed over.

    Raises:
        ValueError: the file is malformed or ends early.
    """
    with open_text(path) as file:
        return read_off_lines(numbered_lines(file))


def read_off_lines(lines: Iterator[tuple[int, str]]) -> Polygons:
    """Read the lines of an OFF file that hold something."""
    _, line = next(lines, (1, ""))
    keyword, *counts = line.split() or [""]
    if keyword not in ("OFF", "COFF"):
        raise ValueError(f"wanted OFF on the first line, got {keyword[:20]!r}")
    if not counts:
        counts = next(lines, (2, ""))[1].split()
    if len(counts) < 2:
        raise ValueError("wanted the numbers of vertices and faces after OFF")
    num_vertices, num_faces = int(counts[0]), int(counts[1])

    builder = PolygonBuilder()
    num_read = 0
    for num_read, (number, line) in enumerate(lines, start=1):
        if num_read > num_vertices + num_faces:
            break
        words = line.split()
        try:
            if num_read <= num_vertices:
                builder.coordinates.extend(parse_position(words))
            else:
                builder.add_face(parse_off_face(words))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if num_vertices < 0 or num_faces < 0 or num_read < num_vertices + num_faces:
        raise ValueError(
            f"it promises {num_vertices} vertices and {num_faces} faces, "
            f"and has {num_read} lines of them"
        )
    return builder.polygons()


def numbered_lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold something, from 1, without comments."""
    for number, line in enumerate(file, start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def joined_lines(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join lines that end in a backslash with the next one, as OBJ has it."""
    pending = ""
    for number, line in lines:
        if line.endswith("\\"):
            pending += line[:-1] + " "
        else:
            yield number, pending + line
            pending = ""
    if pending.strip():
        yield number, pending


def parse_position(words: Sequence[str]) -> list[float]:
    """Read the three coordinates that a vertex starts with."""
    if len(words) < 3:
        raise ValueError(f"a vertex needs 3 coordinates, got {len(words)}")
    return [float(word) for word in words[:3]]


def parse_obj_face(words: Sequence[str], num_vertices: int) -> list[int]:
    """Read the positions of ``position/texture/normal`` words; negative ones count backwards."""
    indices = [int(word.partition("/")[0]) for word in words]
    if 0 in indices:
        raise ValueError("OBJ counts vertices from 1, got index 0")
    return [index - 1 if index > 0 else num_vertices + index for index in indices]


def parse_off_face(words: Sequence[str]) -> list[int]:
    """Read ``count index index ...``; a colour may follow."""
    count = int(words[0])
    if not 3 <= count < len(words):
        raise ValueError(f"a face needs at least 3 vertices, got {' '.join(words)!r}")
    return [int(word) for word in words[1 : count + 1]]


def position_lines(mesh: Mesh, prefix: str = "") -> list[str]:
    """Write positions with the 9 digits that give back the same float32."""
    return [f"{prefix}{x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices.tolist()]


def obj_text(mesh: Mesh) -> bytes:
    """Write a triangle or quad mesh as OBJ."""
    faces = [" ".join(("f", *map(str, face))) for face in (mesh.faces + 1).tolist()]
    return "\n".join((*position_lines(mesh, "v "), *faces, "")).encode()


def off_text(mesh: Mesh) -> bytes:
    """Write a triangle or quad mesh as OFF."""
    num_faces, num_vertices_per_face = mesh.faces.shape
    faces = [" ".join(map(str, (num_vertices_per_face, *face))) for face in mesh.faces.tolist()]
    header = f"OFF\n{len(mesh.vertices)} {num_faces} 0"
    return "\n".join((header, *position_lines(mesh), *faces, "")).encode()
