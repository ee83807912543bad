"""Meshes to work on: the bundled furniture, and grids of any size."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PACK = Path(__file__).parents[2] / "examples" / "data" / "furniture_adaptive.npz"


@cache
def furniture_sizes() -> tuple[int, ...]:
    """Count the faces of each furniture mesh, in the order of the pack."""
    with np.load(PACK) as pack:
        return tuple(np.diff(pack["face_offsets"]).tolist())


def furniture(indices: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Read furniture meshes: vertices ``nv 3`` and faces ``nf 3`` of each."""
    with np.load(PACK) as pack:
        vertices, faces = torch.tensor(pack["vertices"]), torch.tensor(pack["faces"]).long()
        starts, stops = pack["vertex_offsets"].tolist(), pack["face_offsets"].tolist()
    return [(vertices[starts[i] : starts[i + 1]], faces[stops[i] : stops[i + 1]]) for i in indices]


def furniture_batch(num_faces: int, batch: int) -> tuple[Tensor, Tensor]:
    """Pad the first ``batch`` furniture meshes that have exactly ``num_faces`` faces."""
    indices = [i for i, size in enumerate(furniture_sizes()) if size == num_faces][:batch]
    if len(indices) < batch:
        raise ValueError(
            f"wanted {batch} furniture meshes of {num_faces} faces, got {len(indices)}; use fewer"
        )
    vertices, faces = zip(*furniture(indices), strict=True)
    return pad_sequence(list(vertices), batch_first=True), torch.stack(faces)


def ragged_sizes(batch: int, share: float) -> tuple[int, ...]:
    """Spread face counts as those of the furniture: its quantiles, times ``share``."""
    levels = (np.arange(batch) + 0.5) / batch
    return tuple(round(size * share) for size in np.quantile(furniture_sizes(), levels))


def grid_mesh(num_faces: int) -> tuple[Tensor, Tensor]:
    """Make a bumpy grid two squares deep, of a multiple of 4 faces: ``nv 3`` and ``nf 3``."""
    rows, columns = 2, num_faces // 4
    x, y = torch.meshgrid(torch.arange(columns + 1), torch.arange(rows + 1), indexing="ij")
    position = torch.stack((x / columns * 2 - 1, y / rows - 0.5), dim=-1).flatten(0, 1)
    height = torch.sin(position[:, :1] * 12) * 0.4
    corner = (torch.arange(columns)[:, None] * (rows + 1) + torch.arange(rows)).flatten()
    right, up = corner + rows + 1, corner + 1
    triangles = [
        torch.stack(each, dim=-1) for each in ((corner, right, up), (right, right + 1, up))
    ]
    return torch.cat((position, height), dim=-1), torch.stack(triangles, dim=1).flatten(0, 1)
