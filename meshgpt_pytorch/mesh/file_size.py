"""How many faces a file holds, told before it is read."""

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

__all__ = ["check_promises", "estimate_num_faces"]

CHUNK = 1 << 20
HEADER = 1 << 16

# a face takes at least so many bytes where nothing better is known
FEWEST_BYTES = {"3mf": 2, "dae": 6, "gltf": 6}


def estimate_num_faces(path: str | os.PathLike[str]) -> int:
    """Tell about how many faces a mesh file holds, in little memory and without parsing it.

    Headers are believed, so a file can hold fewer; a file that is no mesh gives any number.

    Args:
        path: a mesh file; its suffix names the format.

    Returns:
        the number: exact for OBJ, and for PLY, OFF, STL and GLB as far as their headers are true;
        for other formats the most that the size allows.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    num_bytes = path.stat().st_size
    counts = {"obj": count_obj, "ply": count_ply, "off": count_off, "stl": count_stl}
    if suffix in counts:
        return counts[suffix](path)
    if suffix == "glb":
        return count_glb(path)
    return num_bytes // FEWEST_BYTES.get(suffix, 6)


def count_obj(path: Path) -> int:
    """Count the lines that begin with f."""
    return count_matches(path, re.compile(rb"[\r\n][ \t]*f[ \t]"), overlap=16)


def count_stl(path: Path) -> int:
    """Read the count of a binary file, or count the facets of a text."""
    with path.open("rb") as file:
        head = file.read(84)
    if len(head) == 84:
        (count,) = struct.unpack("<I", head[80:])
        if path.stat().st_size == 84 + 50 * count:
            return int(count)
    return count_matches(path, re.compile(rb"endfacet", re.IGNORECASE), overlap=8)


def count_matches(path: Path, pattern: re.Pattern[bytes], *, overlap: int) -> int:
    """Count what matches, reading a little at a time."""
    count = 0
    with path.open("rb") as file:
        # as if a line ended before the first
        tail = b"\n"
        while chunk := file.read(CHUNK):
            text = tail + chunk
            # matches that begin in the kept tail are counted with the next chunk
            limit = len(text) - overlap
            count += sum(match.start() < limit for match in pattern.finditer(text))
            tail = text[limit:] if limit > 0 else text
        return count + sum(1 for _ in pattern.finditer(tail))


def count_ply(path: Path) -> int:
    """Read the count in the header."""
    with path.open("rb") as file:
        match = re.search(rb"element\s+face\s+(\d+)", file.read(HEADER))
    return int(match[1]) if match else 0


def count_off(path: Path) -> int:
    """Read the count in the header."""
    with path.open("rb") as file:
        head = re.sub(rb"#[^\n]*", b"", file.read(HEADER))
    match = re.match(rb"\s*[A-Z]*OFF\s+\d+\s+(\d+)", head)
    return int(match[1]) if match else 0


def check_promises(path: Path) -> None:
    """Check that a GLB file does not promise more numbers than it has bytes.

    Memory for them would be taken before the file is found to be too short.

    Raises:
        ValueError: it does.
    """
    document = glb_document(path)
    accessors = document.get("accessors") if isinstance(document, dict) else None
    counts = [each.get("count") for each in accessors or () if isinstance(each, dict)]
    most = max((count for count in counts if isinstance(count, int)), default=0)
    num_bytes = path.stat().st_size
    if most > num_bytes:
        raise ValueError(f"it promises {most} elements, and has {num_bytes} bytes")


def glb_document(path: Path) -> Any:
    """Read the JSON of a GLB file; None where there is none that is whole."""
    with path.open("rb") as file:
        header = file.read(20)
        if len(header) < 20:
            return None
        (length,) = struct.unpack("<I", header[12:16])
        content = file.read(min(length, path.stat().st_size))
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def count_glb(path: Path) -> int:
    """Add up the index counts of the primitives; each node that shows a mesh counts."""
    try:
        document = glb_document(path)
        accessors = document.get("accessors", [])
        per_mesh = [
            sum(primitive_faces(primitive, accessors) for primitive in mesh["primitives"])
            for mesh in document.get("meshes", [])
        ]
        shown = [node["mesh"] for node in document.get("nodes", []) if "mesh" in node]
        return sum(per_mesh[index] for index in shown)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return 0


def primitive_faces(primitive: dict, accessors: list) -> int:
    """Count the triangles of a glTF primitive."""
    index = primitive.get("indices", primitive["attributes"].get("POSITION"))
    return int(accessors[index]["count"]) // 3
