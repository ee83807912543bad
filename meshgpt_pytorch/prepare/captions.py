"""Captions and other labels of meshes: from names, folders, sidecars, a table or a catalogue."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from meshgpt_pytorch.prepare.options import Captions
from meshgpt_pytorch.prepare.sources import MeshSource, read_beside

__all__ = [
    "MAX_LABEL_CHARACTERS",
    "SourceLabels",
    "check_captions",
    "label_sources",
    "words_of_name",
]

Labels = dict[str, str]

# what `prepare_meshes` itself says of each mesh
OWN_LABELS = ("key", "group", "max_faces", "method", "hausdorff", "chamfer", "faces_original")
FILE_COLUMNS = ("file", "path", "name", "key")

# a data set keeps the texts of all meshes at the width of the longest
MAX_LABEL_CHARACTERS = 2_000

# each label is a file of its name
MAX_NAME_CHARACTERS = 50


class SourceLabels(NamedTuple):
    """Labels by key of the mesh, and the keys of the meshes of which a label was cut."""

    by_key: dict[str, Labels]
    cut: set[str]


def check_captions(captions: Captions, captions_file: Path | None) -> None:
    """Check that the two options fit each other.

    Raises:
        ValueError: they do not.
    """
    known = ("name", "folder", "sidecar", "csv", "catalogue")
    if captions not in known:
        raise ValueError(f"captions must be one of {known}, got {captions!r}")
    if (captions == "csv") != (captions_file is not None):
        raise ValueError(
            "captions='csv' and captions_file go together: a table with a column of file names and "
            f"a column 'caption'; got captions={captions!r} and captions_file={captions_file}"
        )


def label_sources(
    sources: list[MeshSource], captions: Captions, captions_file: Path | None
) -> SourceLabels:
    """Collect the labels of each mesh: name, caption, and what a catalogue or table adds.

    Args:
        sources: the meshes.
        captions: "name", that of the catalogue or else of the file; "folder", that of the folder
            which the file is in; "sidecar", a .txt or .json of the file's name beside it; "csv", a
            row of the table; "catalogue", the name there.
        captions_file: the table.

    Returns:
        labels, of at most `MAX_LABEL_CHARACTERS` each; a mesh without a caption of the kind asked
        for has none.

    Raises:
        ValueError: the table cannot be read.
        FileNotFoundError: there is no table.
    """
    check_captions(captions, captions_file)
    table = {} if captions_file is None else read_table(captions_file)
    labels, cut = dict[str, Labels](), set[str]()
    for source in sources:
        stem = words_of_name(source.path.stem)
        mine = {"name": stem, **source.labels}
        if captions == "name":
            mine["caption"] = mine["name"].lower()
        elif captions == "catalogue":
            mine["caption"] = source.labels.get("name", "").lower()
        elif captions == "folder":
            mine["caption"] = words_of_name(source.path.parent.name)
        elif captions == "sidecar":
            mine.update(read_sidecar(source))
        else:
            mine.update(find_row(table, source))
        labels[source.key] = {k: text[:MAX_LABEL_CHARACTERS] for k, text in mine.items() if text}
        if any(len(text) > MAX_LABEL_CHARACTERS for text in mine.values()):
            cut.add(source.key)
    return SourceLabels(labels, cut)


def words_of_name(name: str) -> str:
    """Make words of a file name: 'officeChair_02' is 'office chair'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-.+]+", " ", name)
    words = spaced.lower().split()
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    return " ".join(words)


def read_sidecar(source: MeshSource) -> Labels:
    """Read the labels beside a mesh: all of a .txt is its caption; a .json is an object."""
    for suffix in (".json", ".txt"):
        content = read_beside(source, suffix)
        if content is None:
            continue
        text = content.decode("utf-8-sig", errors="replace").strip()
        if suffix == ".txt":
            return {"caption": text}
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, str):
            return {"caption": values}
        if isinstance(values, dict):
            return label_values(values)
    return {}


def label_values(values: Mapping[str, object]) -> Labels:
    """Keep what can be a label; a list of words becomes one text."""
    labels, names = {}, label_names(values)
    for name, value in values.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if isinstance(value, str | int | float):
            labels["caption" if name in ("text", "texts") else names[name]] = str(value)
    return labels


def label_names(columns: Iterable[str]) -> Labels:
    """Name the label of each column: its own name where that can be one, no two the same."""
    columns = list(columns)
    fitting = [name for name in columns if name == identifier(name) and name not in OWN_LABELS]
    names = {name: name for name in fitting}
    taken = dict.fromkeys((*OWN_LABELS, *fitting), 1)
    for column in columns:
        if column in names:
            continue
        name = wanted = identifier(column)
        while name in taken:
            taken[wanted] += 1
            name = f"{wanted}_{taken[wanted]}"
        taken[name] = 1
        names[column] = name
    return names


def identifier(name: str) -> str:
    """Make an identifier of any name: "Creator Name" is creator_name."""
    if not name.isidentifier():
        spaced = "".join(c if f"_{c}".isidentifier() else " " for c in name.lower())
        name = "_".join(spaced.split())
    name = name if name.isidentifier() else f"label_{name}".rstrip("_")
    return name[:MAX_NAME_CHARACTERS]


def read_table(path: Path) -> dict[str, Labels]:
    """Read a CSV: a column named file, path, name or key, a column caption, and any others."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the table of captions {path}: {error}") from error
    columns = list(rows[0]) if rows else []
    column = next((name for name in FILE_COLUMNS if name in columns), None)
    if column is None or "caption" not in columns:
        raise ValueError(
            f"the table of captions needs a column 'caption' and one of {FILE_COLUMNS}, got "
            f"{columns} in {path}"
        )
    return {
        row[column]: label_values({k: v for k, v in row.items() if k and k != column})
        for row in rows
        if row[column]
    }


def find_row(table: Mapping[str, Labels], source: MeshSource) -> Labels:
    """Find the row of a mesh: by key, by path, by file name, or by file name without suffix."""
    path = PurePosixPath(source.key)
    for name in (source.key, str(source.path), path.name, str(path.with_suffix("")), path.stem):
        if name in table:
            return table[name]
    return {}
