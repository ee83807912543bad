"""Meshes that a model makes while it trains, as files and a picture beside its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.utils.data import Dataset

from meshgpt_pytorch.checkpoint import atomic_path
from meshgpt_pytorch.evaluation import contact_sheet
from meshgpt_pytorch.evaluation.sheets import load_font
from meshgpt_pytorch.mesh import Mesh, faces_to_mesh, save_mesh
from meshgpt_pytorch.training.batches import TEXT_KEYS, Collate, num_samples
from meshgpt_pytorch.training.random_state import seeded

SAMPLING_SEED = 0


def require_pictures() -> None:
    """Check that pictures can be drawn, before a long run finds out.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    load_font(9)


@dataclass(frozen=True)
class FirstItems:
    """The first items of a data set, read alike each time."""

    dataset: Dataset[Any]
    count: int
    collate: Collate

    def read(self) -> Any:
        """Return them as one batch."""
        with seeded(SAMPLING_SEED):
            count = min(self.count, num_samples(self.dataset))
            items = [self.dataset[index] for index in range(count)]
        return self.collate(items)


@dataclass(frozen=True)
class Samples:
    """Meshes in named columns; those of a row belong together.

    columns: meshes of each column, as many in each.
    labels: caption of each row.
    """

    columns: Mapping[str, Sequence[Mesh]]
    labels: Sequence[str]

    def write(self, folder: Path) -> None:
        """Write ``<row>.<column>.obj`` for each mesh and ``samples.png`` of all, in one step.

        Args:
            folder: folder to make; one of that name is replaced.
        """
        rows = list(zip(*self.columns.values(), strict=True))
        with atomic_path(folder, overwrite=True) as temporary:
            temporary.mkdir()
            for number, row in enumerate(rows):
                for name, mesh in zip(self.columns, row, strict=True):
                    # no format can hold a mesh without faces
                    if len(mesh.faces):
                        save_mesh(mesh, temporary / f"{number}.{name}.obj")
            contact_sheet(
                rows,
                row_labels=self.labels,
                column_labels=list(self.columns),
                path=temporary / "samples.png",
            )


def reconstruct_samples(
    model: Any, arguments: Mapping[str, Any], *, skip_quantizer: bool
) -> Samples:
    """Pass meshes through an autoencoder in eval mode.

    Args:
        model: autoencoder.
        arguments: a batch, named as its arguments.
        skip_quantizer: leave the quantizer out.
    """
    coords = model(**arguments, only_return_recon_faces=True, skip_quantizer=skip_quantizer)
    target, face_mask = gather_faces(arguments["vertices"], arguments["faces"], model.pad_id)
    columns = {
        "data": to_meshes(model, target, face_mask),
        "reconstructed": to_meshes(model, coords, face_mask),
    }
    return Samples(columns, number_rows(len(target)))


def generate_samples(
    model: Any, arguments: Mapping[str, Any], texts: Sequence[str] | None, count: int
) -> Samples:
    """Generate with a transformer, with the same random numbers at each call.

    Args:
        model: transformer.
        arguments: a batch, named as its arguments; its texts are generated for.
        texts: texts to generate for in place of those of the batch.
        count: number of meshes, for a model without text.
    """
    autoencoder = model.autoencoder
    text = {name: entry for name, entry in arguments.items() if name in TEXT_KEYS}
    if texts is not None:
        text = {"texts": list(texts)}
    elif not model.condition_on_text:
        text = {"batch_size": count}
    generator = torch.Generator(model.device).manual_seed(SAMPLING_SEED)
    generated = model.generate(**text, generator=generator, progress=False)
    columns = {"generated": to_meshes(autoencoder, *generated)}
    if model.condition_on_text and texts is None:
        # what the autoencoder makes of the data is the best that can be generated
        codes = read_codes(model, arguments)
        decoded = model.detokenize(codes)
        columns = {"data": to_meshes(autoencoder, *decoded), **columns}
    return Samples(columns, text.get("texts") or number_rows(len(columns["generated"])))


def read_codes(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the codes of a batch, "b n" padded with the transformer's pad_id."""
    if "codes" in arguments:
        return arguments["codes"].flatten(start_dim=1).long()
    mesh = (arguments["vertices"], arguments["faces"], arguments.get("face_edges"))
    return model.tokenize(*mesh).flatten(start_dim=1)


def number_rows(count: int) -> list[str]:
    """Return captions for rows that have none of their own."""
    return [f"sample {index}" for index in range(count)]


def gather_faces(vertices: Tensor, faces: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates of faces, "b nf nvf 3", and the mask "b nf" of those that exist."""
    face_mask = reduce(faces != pad_id, "b nf nvf -> b nf", "all")
    row = rearrange(torch.arange(len(faces), device=faces.device), "b -> b 1 1")
    corner = faces.masked_fill(~rearrange(face_mask, "b nf -> b nf 1"), 0).long()
    return vertices[row, corner], face_mask


def to_meshes(autoencoder: Any, face_coords: Tensor, face_mask: Tensor) -> list[Mesh]:
    """Turn a batch of faces into meshes, on the autoencoder's grid."""
    return [
        faces_to_mesh(
            coords,
            mask,
            num_discrete_coors=autoencoder.num_discrete_coors,
            coor_continuous_range=autoencoder.coor_continuous_range,
        )
        for coords, mask in zip(face_coords.float().cpu(), face_mask.cpu(), strict=True)
    ]
