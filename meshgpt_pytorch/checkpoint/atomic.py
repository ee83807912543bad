"""Write a file or a folder in one step: an interrupted write leaves what was there before.

A folder cannot take the place of another in one step: the old one is moved aside first, and a
process that dies right then leaves it there, whole, for `recover` to put back.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]

# what is being written or deleted, and what was moved aside: .<name>.<id>.tmp and .<name>.<id>.old
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)")


def sync_to_disk(path: Path) -> None:
    """Flush a file, or each file of a folder, from the system's cache to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync_to_disk(child)
        if os.name != "posix":  # only POSIX can open a folder to sync its entries
            return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder_entry(folder: Path) -> None:
    """Make a rename inside a folder durable."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path, name: str | None = None) -> None:
    """Delete a file or a folder such that it is never found in part under its own name.

    Args:
        path: what to delete.
        name: the name it goes by where the path itself is that of a leftover.
    """
    doomed = leftover_path(path.with_name(name or path.name), "tmp")
    path.rename(doomed)
    remove(doomed)


def leftover_path(path: Path, kind: str) -> Path:
    """Name a neighbour of a path that its reader takes no notice of."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{kind}")


@contextmanager
def atomic_path(path: PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; give it its final name once the block is done.

    Args:
        path: final name. Missing parent folders are made.
        overwrite: whether something of that name is replaced.

    Raises:
        FileExistsError: the name is taken and `overwrite` is False.
    """
    path = Path(path)
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or pass overwrite=True")

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = leftover_path(path, "tmp")
    try:
        yield temporary
        sync_to_disk(temporary)
        if path.exists() and (path.is_dir() or temporary.is_dir()):
            replace_folder(temporary, path)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)
    sync_folder_entry(path.parent)


def replace_folder(new: Path, path: Path) -> None:
    """Put a folder in the place of another; what is at the path is whole, or aside and whole."""
    for _, stale in leftovers(path.parent, path.name, kind="old"):
        discard(stale, path.name)
    aside = leftover_path(path, "old")
    path.rename(aside)
    sync_folder_entry(path.parent)
    new.rename(path)
    sync_folder_entry(path.parent)
    discard(aside, path.name)


def leftovers(folder: Path, prefix: str, kind: str) -> list[tuple[str, Path]]:
    """List what interrupted writers left in a folder: the name that was meant, and the path."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = LEFTOVER.fullmatch(path.name)
        if match and match["kind"] == kind and match["name"].startswith(prefix):
            found.append((match["name"], path))
    return found


def recover(path: PathLike) -> None:
    """Put back a folder that a process moved aside when it died in the middle of replacing it."""
    path = Path(path)
    if path.exists():
        return
    for name, aside in leftovers(path.parent, path.name, kind="old"):
        if name == path.name:
            aside.rename(path)
            return


def clean_up(folder: PathLike, prefix: str) -> None:
    """Put back or delete all that interrupted writers left; none may be at work in the folder.

    Args:
        folder: where to look.
        prefix: start of the names of what was written.
    """
    folder = Path(folder)
    for name, aside in leftovers(folder, prefix, kind="old"):
        recover(folder / name)
        if aside.exists():
            discard(aside, name)
    for _, temporary in leftovers(folder, prefix, kind="tmp"):
        remove(temporary)
