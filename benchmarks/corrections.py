"""What the codes of meshes leave open, and the bits that tell it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.autoencoder_training import MAX_FACES


@dataclass(frozen=True)
class Corrections:
    """What codes leave open about meshes.

    A vertex is known by its codes, and has to be moved from where they are decoded to. Where
    several vertices have the same codes, each of their corners has to say which it is.

    Attributes:
        errors: bins from the decoded place of each vertex to its own.
        num_vertices: how many vertices each distinct code of a mesh stands for.
        choices: bits with which corners choose among these.
        num_faces: of all meshes.
    """

    errors: Int[Tensor, " e"]
    num_vertices: Int[Tensor, " k"]
    choices: float
    num_faces: int

    def bits_per_face(self, known: "Corrections", num_bins: int) -> float:
        """Return the bits that put a face right, with the statistics of known meshes."""
        errors = bits_under_histogram(self.errors, known.errors, 1 - num_bins, num_bins - 1)
        sharing = bits_under_histogram(self.num_vertices, known.num_vertices, 1, 3 * MAX_FACES)
        return (errors + sharing + self.choices) / self.num_faces


def bits_under_histogram(values: Tensor, known: Tensor, low: int, high: int) -> float:
    """Return the bits of numbers with the frequencies of known ones, each seen once more."""
    counts = torch.bincount(known - low, minlength=high - low + 1).double() + 1
    return float(-(counts / counts.sum()).log2()[values - low].sum())


def find_corrections(
    meshes: Sequence[tuple[Int[Tensor, "n q"], Int[Tensor, "n 3"], Int[Tensor, "n 3"]]],
) -> Corrections:
    """Compare corners with what their codes are decoded to.

    Args:
        meshes: of each the codes, the bins that these are decoded to, alike where codes are, and
            its own bins.
    """
    errors, sharing, choices, num_corners = [], [], 0.0, 0
    for codes, decoded, bins in meshes:
        each = torch.cat((codes, decoded, bins), dim=1).unique(dim=0)
        errors.append((each[:, -3:] - each[:, -6:-3]).flatten())
        _, counts = each[:, :-3].unique(dim=0, return_counts=True)
        sharing.append(counts)
        _, corners = codes.unique(dim=0, return_counts=True)
        assert len(corners) == len(counts), "equal codes are decoded alike"
        # both are in the order of the codes
        choices += float((corners * counts.log2()).sum())
        num_corners += len(codes)
    return Corrections(torch.cat(errors), torch.cat(sharing), choices, num_corners // 3)
