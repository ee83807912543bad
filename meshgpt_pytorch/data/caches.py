"""Class decorators that keep text embeddings and face edges of a data set on disk.

Each gives a subclass of the decorated class and leaves the class itself alone. What is kept is
looked up by its content (the text, the faces), never by its index: changed data, another split or
another data set in the same folder find their own entries, and an existing folder is kept.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from meshgpt_pytorch.data.entries import EntryFolder
from meshgpt_pytorch.data.fingerprints import fingerprint_tensor
from meshgpt_pytorch.mesh import derive_face_edges_from_faces

AnyDataset = TypeVar("AnyDataset", bound=type[Dataset[Any]])

# 'w+' is upstream's default, which erases the folder; here it reads and adds, as 'r+' does
FILE_MODES = ("r", "r+", "w+")
PROBE_TEXT = "a chair"


class ItemCache(Protocol):
    """Derive part of an item, or read it from disk; one for each data set instance."""

    def rename(self, data_kwargs: list[str]) -> list[str]:
        """Return the names of an item's entries after `extend`."""

    def extend(self, item: Any, data_kwargs: Sequence[str]) -> Any:
        """Return a copy of an item with the cached part in it."""


# opens an ItemCache of a data set instance: what a decorator was told, waiting for the file mode
OpenCache = Callable[[bool], ItemCache]


def cache_text_embeds_for_dataset(
    embed_texts_fn: Callable[[list[str]], Any],
    max_text_len: int,
    cache_path: str | PathLike[str] = "./text_embed_cache",
) -> Callable[[AnyDataset], AnyDataset]:
    """Make a class decorator that replaces the texts of each item by their embeddings.

    In dicts, ``texts`` becomes ``text_embeds``; in tuples and lists, every string is replaced in
    its place; ``data_kwargs`` is renamed to match. Embeddings are "n d" on the CPU, in the dtype
    of the encoder, without the rows of -1 that are padding. `embed_texts_fn` is called once on a
    fixed word when a data set is made: a folder that another encoder filled is not read.

    The decorated class takes one more keyword, ``cache_memmap_file_mode``: "r+" and "w+" read what
    is in the folder and add to it (upstream's default "w+" erases nothing here), "r" adds nothing.

    Args:
        embed_texts_fn: from a list of b texts to a tensor or array "b n d", or to such a one and a
            mask "b n" that is True where there is a token.
        max_text_len: most rows of an embedding; longer ones are cut, with a warning.
        cache_path: folder to keep embeddings in. May be shared.

    Returns:
        the decorator.

    Raises:
        ValueError: `max_text_len` is below 1. When decorating: not a map-style data set class. When
            used: an unknown file mode, a text that is no string, an embedding of a wrong shape.
    """
    _check_length("max_text_len", max_text_len)
    return _decorator(_OpenTextCache(embed_texts_fn, max_text_len, Path(cache_path)))


def cache_face_edges_for_dataset(
    max_edges_len: int,
    cache_path: str | PathLike[str] = "./face_edges_cache",
    assert_edge_len_lt_max: bool = True,
    pad_id: int = -1,
) -> Callable[[AnyDataset], AnyDataset]:
    """Make a class decorator that adds face edges, int64 "e 2", to each item.

    Dicts get the key ``face_edges``, derived from ``faces``; tuples and lists get them at their
    end, derived from the entry that ``data_kwargs`` names ``faces``, else from the second one;
    ``data_kwargs`` is extended to match.

    The decorated class takes one more keyword, ``cache_memmap_file_mode``, as that of
    `cache_text_embeds_for_dataset` does.

    Args:
        max_edges_len: most edges of a mesh.
        cache_path: folder to keep edges in. May be shared.
        assert_edge_len_lt_max: raise where there are more edges, or else cut them with a warning.
        pad_id: marks padded faces.

    Returns:
        the decorator.

    Raises:
        ValueError: `max_edges_len` is below 1. When decorating: not a map-style data set class.
            When used: an unknown file mode, an item without faces, or one with too many edges.
    """
    _check_length("max_edges_len", max_edges_len)
    return _decorator(
        _OpenFaceEdgeCache(max_edges_len, Path(cache_path), assert_edge_len_lt_max, pad_id)
    )


def _check_length(name: str, length: int) -> None:
    if length < 1:
        raise ValueError(f"{name} must be at least 1, got {length}")


# text embeddings


@dataclass(frozen=True)
class _OpenTextCache:
    embed_texts_fn: Callable[[list[str]], Any]
    max_text_len: int
    path: Path

    def __call__(self, read_only: bool) -> ItemCache:
        return _TextCache(self, read_only)


class _TextCache:
    def __init__(self, options: _OpenTextCache, read_only: bool) -> None:
        self.options = options
        self.entries = self.open_entries(options.path / "text_embeds", read_only)

    def open_entries(self, path: Path, read_only: bool) -> EntryFolder:
        """Open the folder that this encoder filled: the one where the fixed word looks the same."""
        probe = self.embed(PROBE_TEXT)
        for folder in sorted(child for child in path.glob("*") if child.is_dir()):
            entries = EntryFolder(folder, read_only=read_only)
            known = entries.get(PROBE_TEXT)
            if known is not None and _same_but_for_rounding(known, probe):
                return entries
        entries = EntryFolder(path / fingerprint_tensor(probe)[:16], read_only=read_only)
        entries.put(PROBE_TEXT, probe)
        return entries

    def rename(self, data_kwargs: list[str]) -> list[str]:
        return ["text_embeds" if name == "texts" else name for name in data_kwargs]

    def extend(self, item: Any, data_kwargs: Sequence[str]) -> Any:
        if isinstance(item, Mapping):
            if "texts" not in item:
                return item
            others = {key: value for key, value in item.items() if key != "texts"}
            return {**others, "text_embeds": self.look_up(item["texts"])}
        if isinstance(item, (tuple, list)):
            values = [self.look_up(value) if isinstance(value, str) else value for value in item]
            return values if isinstance(item, list) else tuple(values)
        return item

    def look_up(self, text: Any) -> Tensor:
        if not isinstance(text, str):
            raise ValueError(
                f"'texts' of an item must be one string, got {type(text).__name__}; choose one "
                f"caption for each item"
            )
        embedding = self.entries.get(text)
        if embedding is None:
            embedding = self.embed(text)
            self.entries.put(text, embedding)
        longest = self.options.max_text_len
        if len(embedding) > longest:
            warnings.warn(
                f"the text {text[:40]!r} has {len(embedding)} tokens, of which the first {longest} "
                f"are used; raise max_text_len",
                stacklevel=2,
            )
        return embedding[:longest].clone()

    def embed(self, text: str) -> Tensor:
        output = self.options.embed_texts_fn([text])
        embeddings, mask = output if isinstance(output, tuple) else (output, None)
        if isinstance(embeddings, np.ndarray):
            embeddings = torch.from_numpy(embeddings)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 3 or len(embeddings) != 1:
            got = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings)
            raise ValueError(
                f"embed_texts_fn must return a tensor (1, n, d) for one text, got {got}"
            )
        embedding = embeddings[0].detach()
        if mask is None:
            is_token = (embedding != -1).any(dim=-1)
        else:
            is_token = torch.as_tensor(mask)[0].bool()
        return embedding[is_token].cpu()


def _same_but_for_rounding(known: Tensor, probe: Tensor) -> bool:
    # the last bits of a sum depend on the number of threads and on the machine
    if known.shape != probe.shape or known.dtype != probe.dtype:
        return False
    difference = (known.double() - probe.double()).abs()
    return bool((difference <= 1e-5 * probe.double().abs().max()).all())


# face edges


@dataclass(frozen=True)
class _OpenFaceEdgeCache:
    max_edges_len: int
    path: Path
    must_fit: bool
    pad_id: int

    def __call__(self, read_only: bool) -> ItemCache:
        return _FaceEdgeCache(self, read_only)


class _FaceEdgeCache:
    def __init__(self, options: _OpenFaceEdgeCache, read_only: bool) -> None:
        self.options = options
        self.entries = EntryFolder(options.path / "face_edges", read_only=read_only)

    def rename(self, data_kwargs: list[str]) -> list[str]:
        return data_kwargs if "face_edges" in data_kwargs else [*data_kwargs, "face_edges"]

    def extend(self, item: Any, data_kwargs: Sequence[str]) -> Any:
        if isinstance(item, Mapping) and "faces" in item:
            return {**item, "face_edges": self.look_up(item["faces"])}
        position = list(data_kwargs).index("faces") if "faces" in data_kwargs else 1
        if isinstance(item, (tuple, list)) and len(item) > position:
            values = [*item, self.look_up(item[position])]
            return values if isinstance(item, list) else tuple(values)
        raise ValueError(
            f"face edges need an item with 'faces', or a tuple with faces in second place, got "
            f"{sorted(item) if isinstance(item, Mapping) else type(item).__name__}"
        )

    def look_up(self, faces: Tensor | np.ndarray[Any, Any]) -> Tensor:
        faces = torch.as_tensor(faces)
        if faces.is_floating_point():
            raise ValueError(
                f"faces must be whole numbers, got {faces.dtype}; in a tuple they stand second, or "
                f"where data_kwargs names them"
            )
        faces = faces.long()
        key = fingerprint_tensor(faces, self.options.pad_id)
        edges = self.entries.get(key)
        if edges is None:
            edges = derive_face_edges_from_faces(faces, pad_id=self.options.pad_id).cpu()
            self.entries.put(key, edges)
        longest = self.options.max_edges_len
        if len(edges) > longest:
            message = f"a mesh of {len(faces)} faces has {len(edges)} edges, wanted {longest}"
            if self.options.must_fit:
                raise ValueError(f"{message} at most; raise max_edges_len")
            warnings.warn(
                f"{message} at most: the others are dropped, and with them the graph is not "
                f"whole; raise max_edges_len",
                stacklevel=2,
            )
        return edges[:longest].clone()


# decorated classes


def _decorator(open_cache: OpenCache) -> Callable[[AnyDataset], AnyDataset]:
    def decorate(dataset_class: AnyDataset) -> AnyDataset:
        if (
            not isinstance(dataset_class, type)
            or not issubclass(dataset_class, Dataset)
            or dataset_class.__getitem__ is Dataset.__getitem__
        ):
            raise ValueError(
                f"only a subclass of torch.utils.data.Dataset with __getitem__ can be decorated, "
                f"got {dataset_class!r}"
            )
        return _cached_class(dataset_class, open_cache)

    return decorate


def _cached_class(plain: Any, open_cache: OpenCache) -> Any:
    # caches are found by how often the class was decorated, so that decorators can be stacked
    depth = sum("_open_cache" in vars(base) for base in plain.__mro__)
    attribute = f"_item_cache_{depth}"

    class Cached(plain):
        _open_cache = staticmethod(open_cache)

        def __init__(self, *args: Any, cache_memmap_file_mode: str = "r+", **kwargs: Any) -> None:
            # decorators below this one read the mode here
            mode = self.__dict__.setdefault("_cache_file_mode", cache_memmap_file_mode)
            if mode not in FILE_MODES:
                raise ValueError(
                    f"cache_memmap_file_mode must be one of {FILE_MODES}, got {mode!r}"
                )
            super().__init__(*args, **kwargs)
            # opened in the process that makes the data set: workers get it ready
            cache = open_cache(mode == "r")
            setattr(self, attribute, cache)
            names = getattr(self, "data_kwargs", None)
            if names is not None:
                # a new list: the one there may belong to the caller or to the class
                self.data_kwargs = cache.rename(list(names))

        def __getitem__(self, index: Any) -> Any:
            names = getattr(self, "data_kwargs", None) or ()
            return getattr(self, attribute).extend(super().__getitem__(index), names)

        def __reduce_ex__(self, protocol: Any) -> Any:
            reduced = super().__reduce_ex__(protocol)
            if type(self) is not Cached or _is_importable(Cached):
                return reduced
            # `Cached = decorator(Plain)` cannot be found under its name, which is Plain's: pickle,
            # for workers that are not forked, decorates Plain once more
            return _recreate, _decorations(Cached), *reduced[2:]

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(Cached, name, getattr(plain, name))
    return Cached


def _is_importable(dataset_class: type) -> bool:
    try:
        found = attrgetter(dataset_class.__qualname__)(sys.modules[dataset_class.__module__])
    except (AttributeError, KeyError):
        return False
    return found is dataset_class


def _decorations(dataset_class: Any) -> tuple[Any, ...]:
    """Return a class that pickle can find, and what decorates it, innermost first."""
    open_caches: tuple[OpenCache, ...] = ()
    while "_open_cache" in vars(dataset_class) and not _is_importable(dataset_class):
        open_caches = (vars(dataset_class)["_open_cache"].__func__, *open_caches)
        dataset_class = dataset_class.__base__
    return dataset_class, *open_caches


def _recreate(dataset_class: Any, *open_caches: OpenCache) -> Any:
    for open_cache in open_caches:
        dataset_class = _cached_class(dataset_class, open_cache)
    return dataset_class.__new__(dataset_class)
