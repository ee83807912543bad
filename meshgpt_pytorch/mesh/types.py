"""The mesh that every step hands on, and the errors that name what became of one."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Mesh", "MeshFileError", "VanishedMeshError"]


class Mesh(NamedTuple):
    """An indexed triangle or quad mesh.

    Attributes:
        vertices: ``(nv, 3)`` float32 positions.
        faces: ``(nf, 3)`` or ``(nf, 4)`` int64 indices of vertices, counter-clockwise seen from
            outside. No padding.
    """

    vertices: Float[Tensor, "nv 3"]
    faces: Int[Tensor, "nf nvf"]


class MeshFileError(ValueError):
    """A mesh file that cannot be read; the message names the file, the cause and the remedy."""


class VanishedMeshError(ValueError):
    """A mesh of which no face is left on a grid: each lies within a bin or on a line."""
