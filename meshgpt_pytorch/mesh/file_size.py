"""How many faces a file holds, told before it is read."""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from zipfile import ZipFile

from meshgpt_pytorch.mesh.gltf_files import count_gltf

__all__ = ["check_unpacked_size", "estimate_num_faces"]

CHUNK = 1 << 20
HEADER = 1 << 16

# what a .3mf file may unpack to: XML of meshes becomes some 10 times smaller
UNPACKED_BYTES = 100_000_000
UNPACKED_RATIO = 100

# bytes of a face where nothing better is known
FEWEST_BYTES = 6

# digits of a count that are looked at: Python refuses to convert thousands of them
COUNT = rb"(\d{1,18})"


def estimate_num_faces(path: str | os.PathLike[str]) -> int:
    """Tell about how many faces a mesh file holds, in little memory and without parsing it.

    Headers are believed, so a file can hold fewer; a file that is no mesh gives any number.

    Args:
        path: a mesh file; its suffix names the format.

    Returns:
        the number: exact for OBJ and 3MF, and for PLY, OFF, STL, glTF and COLLADA as far as what
        they say of themselves is true; for other formats the most that the size allows. A polygon
        counts as one face.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    counts = {
        ".obj": count_obj,
        ".ply": count_ply,
        ".off": count_off,
        ".stl": count_stl,
        ".glb": count_gltf,
        ".gltf": count_gltf,
        ".3mf": count_3mf,
        ".dae": count_dae,
    }
    count = counts.get(path.suffix.lower())
    return path.stat().st_size // FEWEST_BYTES if count is None else count(path)


def count_obj(path: Path) -> int:
    """Count the lines that begin with f."""
    with path.open("rb") as file:
        return sum(1 for _ in find_all(file, re.compile(rb"[\r\n][ \t]*f[ \t]"), longest=16))


def count_stl(path: Path) -> int:
    """Read the count of a binary file, or count the facets of a text."""
    with path.open("rb") as file:
        head = file.read(84)
        if len(head) == 84:
            (count,) = struct.unpack("<I", head[80:])
            if path.stat().st_size == 84 + 50 * count:
                return int(count)
        file.seek(0)
        return sum(1 for _ in find_all(file, re.compile(rb"endfacet", re.IGNORECASE), longest=8))


def count_3mf(path: Path) -> int:
    """Count the triangles in the models that the archive holds."""
    triangle = re.compile(rb"<(?:\w{1,32}:)?triangle\s")
    count = 0
    with path.open("rb") as packed:
        try:
            check_unpacked_size(path)
            with ZipFile(packed) as archive:
                for name in archive.namelist():
                    if name.lower().endswith(".model"):
                        with archive.open(name) as file:
                            count += sum(1 for _ in find_all(file, triangle, longest=64))
        except Exception:
            # a damaged archive fails in every way there is, and reading it will tell
            return count
    return count


def check_unpacked_size(path: Path) -> None:
    """Check that an archive unpacks to a size that a mesh can have.

    Raises:
        ValueError: it is far larger, as that of an archive made to fill the memory.
    """
    num_bytes = path.stat().st_size
    with ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > max(UNPACKED_BYTES, UNPACKED_RATIO * num_bytes):
        raise ValueError(f"its {num_bytes} bytes unpack to {unpacked}")


def count_dae(path: Path) -> int:
    """Add up what the lists of polygons say they hold."""
    polygons = re.compile(
        rb"<(?:triangles|polylist|polygons)\s[^>]{0,400}?\bcount\s*=\s*[\"'](\d{1,12})[\"']"
    )
    with path.open("rb") as file:
        return sum(int(match[1]) for match in find_all(file, polygons, longest=512))


def find_all(
    file: IO[bytes], pattern: re.Pattern[bytes], *, longest: int
) -> Iterator[re.Match[bytes]]:
    """Yield what matches, reading a little at a time.

    Args:
        file: read from where it stands to its end.
        pattern: may begin with the end of the line before the first one.
        longest: bytes of a match, or more.
    """
    # as if a line ended before the first
    kept = b"\n"
    while chunk := file.read(CHUNK):
        text = kept + chunk
        # matches that begin in the last bytes are found with the next chunk
        limit = max(0, len(text) - longest)
        start = 0
        for match in pattern.finditer(text):
            if match.start() >= limit:
                break
            yield match
            start = match.end()
        kept = text[max(limit, start) :]
    yield from pattern.finditer(kept)


def count_ply(path: Path) -> int:
    """Read the count in the header."""
    with path.open("rb") as file:
        match = re.search(rb"element\s+face\s+" + COUNT, file.read(HEADER))
    return int(match[1]) if match else 0


def count_off(path: Path) -> int:
    """Read the count in the header."""
    with path.open("rb") as file:
        head = re.sub(rb"#[^\n]*", b"", file.read(HEADER))
    match = re.match(rb"\s*[A-Z]*OFF\s+\d+\s+" + COUNT, head)
    return int(match[1]) if match else 0
