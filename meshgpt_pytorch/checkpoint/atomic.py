"""Write a file or a folder in one step: an interrupted write leaves what was there before."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]


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


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; give it its final name once the block is done.

    Args:
        path: final name. Missing parent folders are made.
        overwrite: whether something of that name is replaced. An old folder is moved aside first,
            since a folder cannot be replaced in one step, and deleted last.

    Raises:
        FileExistsError: the name is taken and `overwrite` is False.
    """
    path = Path(path)
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or pass overwrite=True")

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        sync_to_disk(temporary)
        if path.exists() and (path.is_dir() or temporary.is_dir()):
            aside = temporary.with_suffix(".old")
            path.rename(aside)
            temporary.rename(path)
            remove(aside)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)
    if os.name == "posix":
        sync_folder_entry(path.parent)


def sync_folder_entry(folder: Path) -> None:
    """Make a rename inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
