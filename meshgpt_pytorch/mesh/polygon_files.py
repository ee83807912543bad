"""OBJ and OFF files: text formats whose faces are polygons.

OBJ is read here rather than by trimesh, which splits a mesh at materials and texture seams, lists
its faces in another order, and takes index 0 for the last vertex. trimesh also splits quads.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from meshgpt_pytorch.mesh.types import Mesh

__all__ = ["Polygons", "obj_text", "off_text", "read_obj", "read_off"]


class Polygons(NamedTuple):
    """Positions, and faces of any number of vertices that index them from 0."""

    vertices: list[list[float]]
    faces: list[list[int]]


def read_obj(text: str) -> Polygons:
    """Read the positions and faces of an OBJ file; every other element is passed over.

    Raises:
        ValueError: a vertex or face is malformed; the message names its line.
    """
    polygons = Polygons([], [])
    for number, line in numbered_lines(text.replace("\\\r\n", " ").replace("\\\n", " ")):
        keyword, *words = line.split()
        try:
            if keyword == "v":
                polygons.vertices.append(parse_position(words))
            elif keyword == "f":
                polygons.faces.append(parse_obj_face(words, len(polygons.vertices)))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return polygons


def read_off(text: str) -> Polygons:
    """Read the positions and faces of a text OFF file; colours are passed over.

    Raises:
        ValueError: the file is malformed or ends early.
    """
    lines = numbered_lines(text)
    _, line = next(lines, (1, ""))
    keyword, *counts = line.split() or [""]
    if keyword not in ("OFF", "COFF"):
        raise ValueError(f"wanted OFF on the first line, got {keyword[:20]!r}")
    if not counts:
        counts = next(lines, (2, ""))[1].split()
    if len(counts) < 2:
        raise ValueError("wanted the numbers of vertices and faces after OFF")
    num_vertices, num_faces = int(counts[0]), int(counts[1])

    elements = [(number, line.split()) for number, line in lines]
    if not 0 <= num_vertices <= num_vertices + num_faces <= len(elements):
        raise ValueError(
            f"it promises {num_vertices} vertices and {num_faces} faces, "
            f"and has {len(elements)} lines of them"
        )
    polygons = Polygons([], [])
    for index, (number, words) in enumerate(elements[: num_vertices + num_faces]):
        try:
            if index < num_vertices:
                polygons.vertices.append(parse_position(words))
            else:
                polygons.faces.append(parse_off_face(words))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return polygons


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold something, from 1, without comments."""
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def parse_position(words: Sequence[str]) -> list[float]:
    """Read the three coordinates that a vertex starts with."""
    if len(words) < 3:
        raise ValueError(f"a vertex needs 3 coordinates, got {len(words)}")
    return [float(word) for word in words[:3]]


def parse_obj_face(words: Sequence[str], num_vertices: int) -> list[int]:
    """Read the positions of ``position/texture/normal`` words; negative ones count backwards."""
    indices = [int(word.partition("/")[0]) for word in words]
    if len(indices) < 3:
        raise ValueError(f"a face needs at least 3 vertices, got {len(indices)}")
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


def obj_text(mesh: Mesh) -> str:
    """Write a triangle or quad mesh as OBJ."""
    faces = [" ".join(("f", *map(str, face))) for face in (mesh.faces + 1).tolist()]
    return "\n".join((*position_lines(mesh, "v "), *faces, ""))


def off_text(mesh: Mesh) -> str:
    """Write a triangle or quad mesh as OFF."""
    num_faces, num_vertices_per_face = mesh.faces.shape
    faces = [" ".join(map(str, (num_vertices_per_face, *face))) for face in mesh.faces.tolist()]
    header = f"OFF\n{len(mesh.vertices)} {num_faces} 0"
    return "\n".join((header, *position_lines(mesh), *faces, ""))
