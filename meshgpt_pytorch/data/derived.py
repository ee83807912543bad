"""Compute what derives from meshes: canonical order, face edges, codes, text encodings."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from meshgpt_pytorch.data.collate import custom_collate
from meshgpt_pytorch.data.store import Column, MeshTable
from meshgpt_pytorch.mesh import Mesh, canonicalize_mesh, derive_face_edges_from_faces


class Tokenizer(Protocol):
    """What `derive_codes` needs of an autoencoder."""

    pad_id: int

    @property
    def device(self) -> torch.device: ...

    def tokenize(
        self, vertices: Tensor, faces: Tensor, face_edges: Tensor | None = None
    ) -> Tensor: ...

    def state_dict(self) -> Any: ...


class Embedder(Protocol):
    """What `derive_text_encodings` needs of a text encoder."""

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]: ...


def canonical_table(
    table: MeshTable,
    *,
    num_discrete_coors: int,
    coor_continuous_range: tuple[float, float],
    up_axis: int,
) -> MeshTable:
    """Put each mesh in canonical order; labels stay, what was derived from the old order goes.

    Raises:
        ValueError: nothing is left of a mesh; the message names it.
    """
    meshes = []
    for item in tqdm(range(len(table)), desc="canonical order", unit="mesh"):
        mesh = Mesh(table.columns["vertices"][item], table.columns["faces"][item])
        try:
            meshes.append(
                canonicalize_mesh(
                    mesh,
                    num_discrete_coors=num_discrete_coors,
                    coor_continuous_range=coor_continuous_range,
                    up_axis=up_axis,
                )
            )
        except ValueError as error:
            raise ValueError(f"{table.describe(item)}: {error}") from error
    columns = {
        "vertices": Column.from_rows([mesh.vertices for mesh in meshes]),
        "faces": Column.from_rows([mesh.faces for mesh in meshes]),
    }
    if "text_encodings" in table.columns:
        columns["text_encodings"] = table.columns["text_encodings"]
    return MeshTable(columns, table.labels)


def derive_face_edges(table: MeshTable, items: Sequence[int]) -> list[Tensor]:
    """Derive the face edges of some meshes: int64 "e 2", without padding."""
    faces = table.columns["faces"]
    progress = tqdm(items, desc="face edges", unit="mesh")
    return [derive_face_edges_from_faces(faces[item]) for item in progress]


def derive_codes(
    table: MeshTable, items: Sequence[int], autoencoder: Tokenizer, *, batch_size: int
) -> list[Tensor]:
    """Tokenize some meshes: int64 "(nf nvf) q", without padding.

    Meshes are batched by size, so that little is padded; codes do not depend on the batch.

    Raises:
        RuntimeError: the autoencoder leaves out codes of a mesh.
    """
    names = [name for name in ("vertices", "faces", "face_edges") if name in table.columns]
    codes: dict[int, Tensor] = {}
    sizes = table.columns["faces"].lengths
    by_size = sorted(items, key=lambda item: -int(sizes[item]))
    for some in progress_in_batches(by_size, batch_size, desc="codes", unit="mesh"):
        batch = custom_collate(
            [{name: table.columns[name][item] for name in names} for item in some],
            pad_id=autoencoder.pad_id,
        )
        tokens = autoencoder.tokenize(
            **{name: tensor.to(autoencoder.device) for name, tensor in batch.items()}
        ).cpu()
        for item, row in zip(some, tokens, strict=True):
            num_codes = table.columns["faces"][item].numel()
            codes[item] = row[:num_codes]
            if len(codes[item]) < num_codes or (codes[item] < 0).any():
                raise RuntimeError(
                    f"wanted {num_codes} codes for {table.describe(item)}, got fewer; tokenize "
                    f"must give codes for every face, padded with -1 at the end"
                )
    return [codes[item] for item in items]


def derive_text_encodings(
    texts: Sequence[str], encoder: Embedder, *, batch_size: int
) -> list[Tensor]:
    """Encode texts: floating "n d" in the encoder's dtype, without padding.

    Raises:
        RuntimeError: the encoder's embeddings and mask do not fit the texts.
    """
    rows: list[Tensor] = []
    for batch in progress_in_batches(texts, batch_size, desc="texts", unit="text"):
        embeddings, mask = encoder.embed(batch)
        if (
            embeddings.ndim != 3
            or len(embeddings) != len(batch)
            or (mask.shape != embeddings.shape[:2])
        ):
            raise RuntimeError(
                f"an encoder gives embeddings (b, n, d) and a mask (b, n) for {len(batch)} texts, "
                f"got {tuple(embeddings.shape)} and {tuple(mask.shape)}"
            )
        rows += [
            embedding[is_token].detach().cpu()
            for embedding, is_token in zip(embeddings, mask.bool(), strict=True)
        ]
    return rows


def progress_in_batches(
    values: Sequence[Any], batch_size: int, *, desc: str, unit: str
) -> Iterator[list[Any]]:
    """Yield lists of up to `batch_size` values under a progress bar that counts values.

    Raises:
        ValueError: the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    with tqdm(total=len(values), desc=desc, unit=unit) as progress:
        for start in range(0, len(values), batch_size):
            batch = list(values[start : start + batch_size])
            yield batch
            progress.update(len(batch))
