"""Read a folder of files with a function of the user's for each kind of file."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from meshgpt_pytorch.mesh import check_mesh_batch


def identity(value: Any) -> Any:
    """Return what was given."""
    return value


class DatasetFromTransforms(Dataset[Any]):
    """Read every file of a folder and its subfolders whose extension has a transform.

    Files are sorted by path. Items are what the transform returns after `augment_fn`: a dict with
    vertices "nv 3" and faces "nf nvf", or a tuple that begins with these two (or has them where
    `data_kwargs` names them). Arrays become tensors, floats of them float32 and integers int64.

    Args:
        folder: where to look.
        transforms: a function of the path for each extension, in any case, with or without a
            leading dot; it may have several parts ("tar.obj"), of which the longest match wins.
        data_kwargs: names of the entries of a tuple, for the trainers.
        augment_fn: called with what a transform returned, as it is.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no transforms, two for one extension, or no file that has one. At access: a
            transform fails or gives no usable mesh; the message names the file.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        transforms: Mapping[str, Callable[[Path], Any]],
        data_kwargs: Sequence[str] | None = None,
        augment_fn: Callable[[Any], Any] = identity,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder must be an existing folder, found none at {folder}")
        if isinstance(data_kwargs, str):
            raise ValueError(f"data_kwargs must be a list of names, got the string {data_kwargs!r}")
        self.transforms = self._by_extension(transforms)
        self.data_kwargs = None if data_kwargs is None else list(data_kwargs)
        # apart from data_kwargs, to which the cache decorators add entries that come later
        self._tuple_names = tuple(self.data_kwargs or ("vertices", "faces"))
        self.augment_fn = augment_fn

        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        self.paths = [path for path in files if self._extension_of(path) is not None]
        if not self.paths:
            found = sorted({path.suffix.lower() or "no extension" for path in files})
            raise ValueError(
                f"wanted files with the extensions {sorted(self.transforms)} in {self.folder}, "
                f"got {len(files)} files ({', '.join(found[:10]) or 'it is empty'})"
            )

    @staticmethod
    def _by_extension(
        transforms: Mapping[str, Callable[[Path], Any]],
    ) -> dict[str, Callable[[Path], Any]]:
        by_extension: dict[str, Callable[[Path], Any]] = {}
        for extension, transform in transforms.items():
            plain = extension.lower().removeprefix(".")
            if not plain or plain in by_extension:
                raise ValueError(
                    f"transforms must have one function for each extension, "
                    f"got {sorted(transforms)}"
                )
            by_extension[plain] = transform
        if not by_extension:
            raise ValueError("transforms must have a function for an extension, got none")
        return by_extension

    def _extension_of(self, path: Path) -> str | None:
        # the first dot separates no extension: '.obj' has none, and 'a.tar.obj' two to try
        _, *parts = path.name.lower().lstrip(".").split(".")
        for start in range(len(parts)):
            extension = ".".join(parts[start:])
            if extension in self.transforms:
                return extension
        return None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path = self.paths[index]
        extension = self._extension_of(path)
        assert extension is not None, "paths without a transform are left out"
        try:
            output = self.transforms[extension](path)
        except Exception as error:
            raise ValueError(
                f"the transform of {extension!r} failed on {path}: {type(error).__name__}: {error}"
            ) from error
        self._check_kind(output, "transform", path)
        item = self.augment_fn(output)
        self._check_kind(item, "augment_fn", path)
        return self._as_tensors(item, path)

    @staticmethod
    def _check_kind(output: Any, maker: str, path: Path) -> None:
        values = list(output.values()) if isinstance(output, Mapping) else output
        if not isinstance(values, (tuple, list)):
            got = type(output).__name__
        elif any(value is None for value in values):
            got = "one with None in it"
        else:
            return
        raise ValueError(
            f"the {maker} must return a (vertices, faces) tuple or a dict with these keys, "
            f"got {got} for {path}"
        )

    def _as_tensors(self, item: Any, path: Path) -> Any:
        if isinstance(item, Mapping):
            named = {key: _as_tensor(value) for key, value in item.items()}
            self._check_mesh(named, path)
            return named
        values = [_as_tensor(value) for value in item]
        self._check_mesh(dict(zip(self._tuple_names, values, strict=False)), path)
        return values if isinstance(item, list) else tuple(values)

    @staticmethod
    def _check_mesh(named: Mapping[str, Any], path: Path) -> None:
        vertices, faces = named.get("vertices"), named.get("faces")
        for name, tensor, sizes in (("vertices", vertices, (3,)), ("faces", faces, (3, 4))):
            if not isinstance(tensor, Tensor) or tensor.ndim != 2 or tensor.shape[1] not in sizes:
                got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(
                    f"{name} must be a tensor or array with {' or '.join(map(str, sizes))} "
                    f"columns, got {got} for {path}"
                )
        assert isinstance(vertices, Tensor) and isinstance(faces, Tensor), "checked above"
        try:
            check_mesh_batch(vertices[None], faces[None])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    if value.dtype.kind == "b":
        return torch.from_numpy(value.copy())
    # trimesh and most readers give float64 and any width of integer
    return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))
