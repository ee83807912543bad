"""Arrays in .npy files: written row by row, and read through a memory map.

Nothing here is atomic by itself: files are written into a folder that gets its name once they are
whole.
"""

import shutil
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# kinds that .npy files do not know, and what they are stored as
STORED_AS = {torch.bfloat16: torch.int16}
SECONDS_A_DAY = 24 * 60 * 60


class ArrayWriter:
    """Append blocks of rows to one .npy file, of which only the last one is held in memory.

    Args:
        path: the file.
        row_shape: shape of a row, e.g. (3,) for vertices.
        dtype: what rows are stored as.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: Any) -> None:
        self.row_shape = tuple(row_shape)
        self.dtype = np.dtype(dtype)
        self.num_rows = 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()
        self._data_start = self._file.tell()

    def _write_header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *self.row_shape),
        }
        # leaves room for the first axis to grow
        np.lib.format.write_array_header_1_0(self._file, description)

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """Write rows "n ..." behind those that are there."""
        assert rows.shape[1:] == self.row_shape, "rows of one file have one shape"
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.num_rows += len(rows)

    def close(self, *, complete: bool = True) -> None:
        """Close the file; a complete one gets the number of its rows first."""
        if self._file.closed:
            return
        with self._file:
            if complete:
                self._file.seek(0)
                self._write_header()
                assert self._file.tell() == self._data_start, "the header keeps its length"


class RaggedWriter:
    """Write rows of different length end to end: ``<name>.npy`` and ``<name>_offsets.npy``.

    Args:
        folder: where to write.
        name: of the files.
        like: "n ..." a row; the others agree with it in all but the first axis.
    """

    def __init__(self, folder: Path, name: str, like: Tensor) -> None:
        self.folder, self.name = folder, name
        self.lengths: list[int] = []
        self._values = ArrayWriter(
            folder / f"{name}.npy", tuple(like.shape[1:]), stored_array(like[:0]).dtype
        )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row but for its first axis."""
        return self._values.row_shape

    def append(self, row: Tensor) -> None:
        """Write one row."""
        self._values.append(stored_array(row))
        self.lengths.append(len(row))

    def close(self, *, complete: bool = True) -> None:
        """Close the files; complete ones can be read."""
        self._values.close(complete=complete)
        if complete:
            offsets = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
            save_array(self.folder / f"{self.name}_offsets.npy", offsets)

    def __enter__(self) -> "RaggedWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError) if error is not None else nullcontext():  # of a full disk, again
            self.close(complete=error is None)


def stored_array(rows: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as the array that is stored; integers as int32, which is enough for ids."""
    rows = rows.detach().cpu()
    if not rows.is_floating_point():
        rows = rows.int()
    stored = STORED_AS.get(rows.dtype)
    return (rows if stored is None else rows.contiguous().view(stored)).numpy()


class MappedRows:
    """Rows of different length in files, read from the disk when they are asked for.

    Takes the place of `RaggedRows`. Another process gets the path, not the contents.

    Args:
        folder: where the files are.
        name: of the files, as of `RaggedWriter`.
        dtype: of the tensors, where .npy files do not know it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """

    def __init__(self, folder: Path, name: str, dtype: torch.dtype | None = None) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self._values = read_array(folder / f"{name}.npy", in_memory=False)
        offsets = read_array(folder / f"{name}_offsets.npy", in_memory=True)
        if (
            offsets.ndim != 1
            or offsets.dtype.kind not in "iu"
            or len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != len(self._values)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(
                f"{folder / name}_offsets.npy must rise from 0 to the {len(self._values)} rows of "
                f"{name}.npy, which it does not: the files are damaged; write them again"
            )
        self._offsets = torch.from_numpy(offsets.astype(np.int64))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        start, end = self._offsets[row : row + 2].tolist()
        # a copy: what is mapped cannot be written to
        rows = torch.from_numpy(np.array(self._values[start:end]))
        return rows if self.dtype not in STORED_AS else rows.view(self.dtype)

    @property
    def lengths(self) -> Tensor:
        """The length of each row, int64."""
        return self._offsets.diff()

    def __reduce__(self) -> Any:
        return MappedRows, (self.folder, self.name, self.dtype)


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a .npy file.

    Raises:
        OSError: it cannot be written.
        ValueError: it would need a pickle, which `read_array` refuses.
    """
    np.save(path, array, allow_pickle=False)


def read_array(path: Path, *, in_memory: bool) -> np.ndarray[Any, Any]:
    """Read a .npy file, or map it.

    Args:
        path: the file.
        in_memory: whether to read it whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    try:
        array = np.load(path, mmap_mode=None if in_memory else "r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; write it again") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is damaged: an archive, wanted one array; write it again")
    return array


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the folders of a name that killed writers left more than a day ago.

    A younger one may belong to a writer that is still at work.
    """
    for path in folder.glob(pattern):
        with suppress(OSError):  # it may vanish, and need not go
            newest = max(each.stat().st_mtime for each in (path, *path.iterdir()))
            if time.time() - newest > SECONDS_A_DAY:
                shutil.rmtree(path, ignore_errors=True)
