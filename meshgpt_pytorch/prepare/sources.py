"""Which meshes there are in a folder, a file or an archive, and the bytes of each."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile, ZipInfo

from meshgpt_pytorch.mesh.gltf_files import buffer_names
from meshgpt_pytorch.prepare.catalogue import CATALOGUE_NAME, parse_catalogue

__all__ = [
    "FileTooLargeError",
    "MeshSource",
    "UnpackingError",
    "copy_source",
    "find_sources",
    "read_beside",
    "source_files",
]

MESH_SUFFIXES = (".3mf", ".dae", ".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
ARCHIVE_SUFFIXES = (".zip", ".sh3f")

# texts of a few lines, and the catalogue of a library
MAX_SIDECAR_BYTES = 1_000_000
MAX_CATALOGUE_BYTES = 50_000_000

# known for meshes, and read by nobody here: they are named in the report, other files are not
UNREADABLE_SUFFIXES = frozenset(
    {".3ds", ".3dm", ".abc", ".blend", ".c4d", ".fbx", ".iges", ".igs", ".lwo", ".ma", ".max"}
    | {".mb", ".skp", ".step", ".stp", ".usd", ".usda", ".usdc", ".usdz", ".wrl", ".x3d"}
)
UNREADABLE_MEMBERS = UNREADABLE_SUFFIXES | {*ARCHIVE_SUFFIXES}


@dataclass(frozen=True)
class MeshSource:
    """One mesh to prepare; plain values, which go to the workers as JSON.

    Attributes:
        key: names it in the report: the path below the source, through an archive if it is in one.
        file: path of the file on disk.
        member: path in the archive that the file is; None for a mesh file.
        rotation: 9 numbers to turn the vertices with; None for none.
        labels: what a catalogue says of it.
        problem: why it cannot be read, where that is known before reading.
    """

    key: str
    file: str
    member: str | None = None
    rotation: tuple[float, ...] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def path(self) -> PurePosixPath:
        """Path of the mesh file, where it lies or in its archive."""
        return PurePosixPath(self.member or Path(self.file).as_posix())

    @property
    def problem_kind(self) -> str:
        """The outcome that the problem leads to."""
        known = UNREADABLE_SUFFIXES if self.member is None else UNREADABLE_MEMBERS
        return "unsupported" if self.path.suffix.lower() in known else "unreadable"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "MeshSource":
        """Build a source from what `dataclasses.asdict` and JSON made of it."""
        rotation = values["rotation"] and tuple(values["rotation"])
        return cls(**{**values, "rotation": rotation})


def find_sources(root: Path) -> list[MeshSource]:
    """List all meshes at a path, sorted by key.

    Args:
        root: a folder, searched to its depth but for hidden files, or a mesh file or archive.

    Raises:
        FileNotFoundError: there is nothing at the path.
    """
    if not root.exists():
        raise FileNotFoundError(f"no folder of meshes at {root}")
    base = root if root.is_dir() else root.parent
    unread: dict[Path, str] = {}
    files = sorted(walk(root, unread)) if root.is_dir() else [root]
    sources = [source for file in files for source in sources_of(file, base)]
    sources += [
        MeshSource(f"{folder.relative_to(base).as_posix()}/", str(folder), problem=problem)
        for folder, problem in unread.items()
    ]
    sources.sort(key=lambda source: source.key)

    # a catalogue can offer one file twice
    taken: dict[str, int] = {}
    unique = []
    for source in sources:
        number = taken[source.key] = taken.get(source.key, 0) + 1
        key = source.key if number == 1 else f"{source.key}#{number}"
        unique.append(MeshSource(**{**vars(source), "key": key}))
    return unique


def walk(folder: Path, unread: dict[Path, str]) -> Iterator[Path]:
    """Yield the files below a folder, but for hidden ones; tell of folders that are not read."""

    def tell(error: OSError) -> None:
        unread[Path(error.filename)] = f"cannot list the folder: {error.strerror}"

    for parent, folders, names in os.walk(folder, onerror=tell):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in folders):
            # it can lead back to where it lies
            if path.is_symlink():
                unread[path] = "it is a link to a folder, which is not followed; pass that folder"
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def sources_of(file: Path, base: Path) -> list[MeshSource]:
    """List the meshes that a file is or holds."""
    suffix = file.suffix.lower()
    key = file.relative_to(base).as_posix()
    if suffix in (*ARCHIVE_SUFFIXES, *MESH_SUFFIXES) and not file.is_file():
        what = "a link to nothing" if file.is_symlink() and not file.exists() else "no file"
        return [MeshSource(key, str(file), problem=f"it is {what}")]
    if suffix in ARCHIVE_SUFFIXES:
        try:
            return archive_sources(file, key)
        except Exception as error:
            # damaged archives fail in every way there is
            cause = str(error) or type(error).__name__
            return [MeshSource(key, str(file), problem=f"cannot open the archive: {cause}")]
    if suffix in (*MESH_SUFFIXES, *UNREADABLE_SUFFIXES):
        return [MeshSource(key, str(file), problem=format_problem(suffix))]
    return []


def format_problem(suffix: str) -> str | None:
    """Say what to do with a file that is not read for its format; None if it is read."""
    if suffix in ARCHIVE_SUFFIXES:
        return "archives in archives are not read; unpack it"
    if suffix in UNREADABLE_SUFFIXES:
        return f"{suffix} files are not read; export it as .glb or .obj"
    return None


def archive_sources(file: Path, key: str) -> list[MeshSource]:
    """List the meshes of an archive, read or not: those of its catalogue, or else all."""
    with ZipFile(file) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if CATALOGUE_NAME in names:
            return [
                MeshSource(
                    f"{key}/{model.path}",
                    str(file),
                    model.path,
                    model.rotation,
                    model.labels,
                    model.problem or format_problem(PurePosixPath(model.path).suffix.lower())
                    if model.path in names
                    else "its catalogue names it, and it is not there",
                )
                for model in parse_catalogue(
                    read_member(archive, CATALOGUE_NAME, MAX_CATALOGUE_BYTES)
                )
            ]
    sources = []
    for name in sorted(names):
        path = PurePosixPath(name)
        is_hidden = name.startswith(("__MACOSX/", ".")) or path.name.startswith(".")
        suffix = path.suffix.lower()
        if suffix in (*MESH_SUFFIXES, *UNREADABLE_MEMBERS) and not is_hidden:
            problem = format_problem(suffix)
            sources.append(MeshSource(f"{key}/{name}", str(file), name, problem=problem))
    return sources


def copy_source(source: MeshSource, folder: Path, max_bytes: int) -> Path:
    """Give a mesh a path on disk, with the buffers that a glTF file names beside it.

    Args:
        source: what to read.
        folder: an empty one, for what comes out of an archive.
        max_bytes: refuse larger files, unpacked.

    Returns:
        the path: in the folder for a member of an archive, or where the file lies.

    Raises:
        ValueError: it is larger, or the archive is damaged or encrypted.
        OSError: the file cannot be read.
        UnpackingError: the folder cannot be written.
    """
    if source.member is None:
        check_size(Path(source.file).stat().st_size, max_bytes)
        return Path(source.file)
    with ZipFile(source.file) as archive:
        target = folder / f"mesh{source.path.suffix.lower()}"
        unpack(archive, source.member, target, max_bytes)
        if target.suffix == ".gltf":
            for name in buffer_names(target):
                member = str(source.path.parent / name)
                if member in archive.namelist():
                    unpack(archive, member, folder / name, max_bytes)
    return target


def source_files(path: Path) -> list[Path]:
    """List the files that a mesh is read from: itself, and the buffers of a glTF file."""
    if path.suffix.lower() != ".gltf":
        return [path]
    buffers = [path.parent / name for name in buffer_names(path)]
    return [path, *(buffer for buffer in buffers if buffer.is_file())]


def read_beside(source: MeshSource, suffix: str) -> bytes | None:
    """Read a small file of the same name and another suffix; None where there is none.

    Args:
        source: a mesh on disk or in an archive.
        suffix: of the file beside it.

    Returns:
        what it holds. None too where it is damaged, or larger than a text for one mesh.
    """
    path = source.path.with_suffix(suffix)
    try:
        if source.member is None:
            check_size(Path(path).stat().st_size, MAX_SIDECAR_BYTES)
            return Path(path).read_bytes()
        with ZipFile(source.file) as archive:
            return read_member(archive, str(path), MAX_SIDECAR_BYTES)
    except Exception:
        # as above; what has no caption is told in the report
        return None


def read_member(archive: ZipFile, name: str, max_bytes: int) -> bytes:
    """Read one member of an archive, unless it is too large."""
    return b"".join(member_chunks(archive, archive.getinfo(name), max_bytes))


def member_chunks(archive: ZipFile, info: ZipInfo, max_bytes: int) -> Iterator[bytes]:
    """Unpack one member piece by piece.

    Raises:
        ValueError: it is too large, damaged or encrypted.
    """
    check_size(info.file_size, max_bytes)
    try:
        with archive.open(info) as packed:
            while chunk := packed.read(1 << 20):
                yield chunk
    except Exception as error:
        # damaged archives fail in every way there is
        raise ValueError(f"cannot unpack it: {str(error) or type(error).__name__}") from error


def unpack(archive: ZipFile, name: str, target: Path, max_bytes: int) -> None:
    """Unpack one member to a file, unless it is too large."""
    chunks = member_chunks(archive, archive.getinfo(name), max_bytes)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as unpacked:
            for chunk in chunks:
                unpacked.write(chunk)
    except OSError as error:
        raise UnpackingError(error.errno, error.strerror, str(target)) from error


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Refuse a file that is too large to be looked at."""
    if num_bytes > max_bytes:
        raise FileTooLargeError(
            f"the file has {num_bytes:,} bytes, more than max_file_bytes={max_bytes:,}"
        )


class FileTooLargeError(ValueError):
    """A file over the limit."""


class UnpackingError(OSError):
    """The folder that archives are unpacked to cannot be written: no fault of the archive."""
