"""What glTF files say of themselves, told before trimesh reads them: .glb and .gltf."""

import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

__all__ = ["buffer_names", "check_gltf", "count_gltf"]

DRACO = "KHR_draco_mesh_compression"
MESHOPT = "EXT_meshopt_compression"

# elements that a compressed byte can stand for
DRACO_RATIO = 64


def read_document(path: Path) -> dict[str, Any]:
    """Read the JSON of a .glb or .gltf file; it is empty where there is none that is whole."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".gltf":
            content = file.read()
        else:
            header = file.read(20)
            if len(header) < 20:
                return {}
            (length,) = struct.unpack("<I", header[12:16])
            content = file.read(min(length, path.stat().st_size))
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def check_gltf(path: Path) -> None:
    """Check that a file does not promise more numbers than it has bytes, nor hides its geometry.

    Memory for what is promised would be taken before the file is found to be too short, and
    geometry that cannot be unpacked would be read as zeros.

    Raises:
        ValueError: it does.
    """
    document = read_document(path)
    required = document.get("extensionsRequired")
    required = required if isinstance(required, list) else []
    if MESHOPT in required:
        raise ValueError(f"its geometry is compressed ({MESHOPT}); export it without compression")
    if DRACO in required and find_spec("DracoPy") is None:
        raise ValueError(
            f"its geometry is compressed ({DRACO}); pip install DracoPy, or export it without "
            "compression"
        )
    accessors = document.get("accessors")
    counts = [
        each.get("count")
        for each in (accessors if isinstance(accessors, list) else [])
        if isinstance(each, dict)
    ]
    most = max((count for count in counts if isinstance(count, int)), default=0)
    beside = (path.parent / name for name in named_files(document))
    num_bytes = path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())
    if most > num_bytes * (DRACO_RATIO if DRACO in required else 1):
        raise ValueError(f"it promises {most} elements, and has {num_bytes} bytes")


def count_gltf(path: Path) -> int:
    """Add up the index counts of the primitives; each node that shows a mesh counts."""
    try:
        document = read_document(path)
        accessors = document.get("accessors", [])
        per_mesh = [
            sum(primitive_faces(primitive, accessors) for primitive in mesh["primitives"])
            for mesh in document.get("meshes", [])
        ]
        shown = [node["mesh"] for node in document.get("nodes", []) if "mesh" in node]
        return sum(per_mesh[index] for index in shown)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
        return 0


def primitive_faces(primitive: dict, accessors: list) -> int:
    """Count the triangles of a glTF primitive."""
    index = primitive.get("indices", primitive["attributes"].get("POSITION"))
    return int(accessors[index]["count"]) // 3


def buffer_names(path: Path) -> list[str]:
    """List the files below its own folder that a .gltf file refers to.

    Raises:
        OSError: the file cannot be read.
    """
    names = map(PurePosixPath, named_files(read_document(path)))
    return [
        str(name)
        for name in names
        if name.parts
        and not name.is_absolute()
        and ".." not in name.parts
        and ":" not in name.parts[0]
    ]


def named_files(document: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of the buffers that lie in files of their own."""
    buffers = document.get("buffers")
    for buffer in buffers if isinstance(buffers, list) else []:
        uri = buffer.get("uri") if isinstance(buffer, dict) else None
        if isinstance(uri, str) and uri and not uri.startswith("data:"):
            yield unquote(uri)
