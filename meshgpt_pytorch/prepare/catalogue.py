"""Catalogues of Sweet Home 3D libraries: names, categories, licences and rotations of models.

The format is described at https://www.sweethome3d.com/documentation (furniture library editor):
`PluginFurnitureCatalog.properties` holds ``name#7=Chair``, ``model#7=/models/chair.obj`` and so on.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["CATALOGUE_NAME", "CatalogueModel", "parse_catalogue", "parse_properties"]

CATALOGUE_NAME = "PluginFurnitureCatalog.properties"

# label of a data set -> entry of a catalogue
LABELS = {"name": "name", "category": "category", "tags": "tags", "creator": "creator"}


class CatalogueModel(NamedTuple):
    """One model of a library.

    Attributes:
        path: of the mesh file in the archive.
        labels: name, category, tags, creator and licence, where the catalogue gives them.
        rotation: 9 numbers, the rows of the matrix that turns vertices upright; None for none.
        problem: why the entry cannot be used; None if it can.
    """

    path: str
    labels: dict[str, str]
    rotation: tuple[float, ...] | None
    problem: str | None = None


def parse_catalogue(content: bytes) -> list[CatalogueModel]:
    """Read the models of a catalogue, in its order.

    Args:
        content: of the file, in ISO 8859-1 with ``\\uXXXX`` for other characters, as Java has it.
    """
    entries = parse_properties(content.decode("latin-1"))
    numbers = [key.partition("#")[2] for key in entries if key.startswith("model#")]
    return [read_model(entries, number) for number in numbers]


def read_model(entries: Mapping[str, str], number: str) -> CatalogueModel:
    """Collect the entries of one model."""
    labels = {name: entries.get(f"{key}#{number}", "") for name, key in LABELS.items()}
    labels["licence"] = entries.get(f"license#{number}", entries.get("license", ""))
    labels = {key: text for key, text in labels.items() if text}
    path = entries[f"model#{number}"].lstrip("/")
    rotation = entries.get(f"modelRotation#{number}")
    if rotation is None:
        return CatalogueModel(path, labels, None)
    try:
        values = tuple(float(word) for word in rotation.split())
    except ValueError:
        values = ()
    if len(values) != 9:
        problem = f"modelRotation#{number} of the catalogue must be 9 numbers, got {rotation!r}"
        return CatalogueModel(path, labels, None, problem)
    return CatalogueModel(path, labels, values)


def parse_properties(text: str) -> dict[str, str]:
    """Read a Java properties file: comments, escapes, and lines that go on behind a backslash."""
    entries = {}
    for line in logical_lines(text):
        # the first separator that no backslash stands before
        parts = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, flags=re.DOTALL)
        assert parts is not None, "the pattern matches every line"
        entries[unescape(parts[1])] = unescape(parts[2])
    return entries


def logical_lines(text: str) -> Iterator[str]:
    """Join continued lines; leave out comments and empty lines."""
    pending = ""
    for raw in re.split(r"\r\n|\r|\n", text):
        line = raw.lstrip()
        if not pending and (not line or line[0] in "#!"):
            continue
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2 == 1:
            pending += line[:-1]
            continue
        yield pending + line
        pending = ""
    if pending:
        yield pending


def unescape(text: str) -> str:
    """Replace the escapes of a properties file."""
    special = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

    def replace(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else special.get(match[2], match[2])

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", replace, text, flags=re.DOTALL)
