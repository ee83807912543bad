"""Augmentation: from a mesh to a mesh much like it, at random.

An augmentation is a function of a mesh and a random generator. It sees coordinates in the cube from
-1 to 1 and may leave it: `fit_to_cube` comes after the last one, and then the grid and the
canonical order. Faces keep looking outward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.mesh.simplify import default_simplifier, simplify_mesh

__all__ = [
    "Augmentation",
    "Compose",
    "Decimate",
    "Jitter",
    "Mirror",
    "Normalize",
    "RotateUp",
    "Scale",
    "Shift",
    "fit_to_cube",
    "paper_augmentation",
]

Augmentation = Callable[[Mesh, torch.Generator], Mesh]


def paper_augmentation(*, decimate: bool = False) -> "Compose":
    """Return the augmentation of the MeshGPT paper (Siddiqui et al. 2023, section 4).

    Each axis scaled by 0.75 to 1.25, the longest side brought back to the whole cube, then a shift
    by up to a tenth of its side.

    Args:
        decimate: draw a level of decimation too, as the paper does before training. It takes the
            extra ``simplify`` and some 40 ms a mesh, and triangles.

    Raises:
        RuntimeError: no package to decimate with can be imported.
    """
    levels = (Decimate(),) if decimate else ()
    return Compose(*levels, Scale(0.75, 1.25), Normalize(), Shift(0.2))


class Compose:
    """Apply augmentations one after another.

    Args:
        augmentations: the first is applied first.
    """

    def __init__(self, *augmentations: Augmentation) -> None:
        self.augmentations = augmentations

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        for augmentation in self.augmentations:
            mesh = augmentation(mesh, generator)
        return mesh

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.augmentations))})"


@dataclass(frozen=True)
class Scale:
    """Scale about the origin, each axis by a factor of its own.

    Args:
        low: least factor, above 0.
        high: greatest factor.

    Raises:
        ValueError: the factors are not in order.
    """

    low: float = 0.75
    high: float = 1.25

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"factors must be 0 < low <= high, got {self.low} and {self.high}")

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        return mesh._replace(vertices=mesh.vertices * uniform(self.low, self.high, 3, generator))


@dataclass(frozen=True)
class Jitter:
    """Move each vertex on its own, along each axis.

    Args:
        amount: furthest, of a cube with side 2. A bin of a grid of 128 is 0.0156 wide.

    Raises:
        ValueError: the amount is below 0.
    """

    amount: float = 0.01

    def __post_init__(self) -> None:
        _check_amount(self.amount)

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        offsets = uniform(-self.amount, self.amount, mesh.vertices.shape, generator)
        return mesh._replace(vertices=mesh.vertices + offsets)


@dataclass(frozen=True)
class Shift:
    """Move the whole mesh along each axis, as far as it has room in the cube.

    Args:
        amount: furthest, of a cube with side 2.

    Raises:
        ValueError: the amount is below 0.
    """

    amount: float = 0.2

    def __post_init__(self) -> None:
        _check_amount(self.amount)

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        offset = uniform(-self.amount, self.amount, 3, generator)
        return mesh._replace(vertices=mesh.vertices + offset)


@dataclass(frozen=True)
class RotateUp:
    """Turn about the axis of height.

    Args:
        degrees: furthest, to either side.
        step: turn by whole multiples of so many degrees: 90 keeps boxes along the axes. None for
            any angle.
        up_axis: 0, 1 or 2.

    Raises:
        ValueError: an argument outside its range.
    """

    degrees: float = 180.0
    step: float | None = None
    up_axis: int = 1

    def __post_init__(self) -> None:
        _check_amount(self.degrees)
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0 or None, got {self.step}")
        if self.up_axis not in (0, 1, 2):
            raise ValueError(f"up_axis must be 0, 1 or 2, got {self.up_axis}")

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        if self.step is None:
            degrees = float(uniform(-self.degrees, self.degrees, 1, generator))
        else:
            steps = math.floor(self.degrees / self.step)
            number = int(torch.randint(-steps, steps + 1, (1,), generator=generator))
            degrees = number * self.step
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        one, other = (self.up_axis + 1) % 3, (self.up_axis + 2) % 3
        vertices = mesh.vertices.clone()
        vertices[:, one] = cosine * mesh.vertices[:, one] - sine * mesh.vertices[:, other]
        vertices[:, other] = sine * mesh.vertices[:, one] + cosine * mesh.vertices[:, other]
        return mesh._replace(vertices=vertices)


@dataclass(frozen=True)
class Mirror:
    """Exchange left and right, and turn the faces round so that they look outward again.

    Args:
        probability: how often, from 0 to 1.
        axis: 0, 1 or 2, the axis to mirror along.

    Raises:
        ValueError: an argument outside its range.
    """

    probability: float = 0.5
    axis: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, got {self.probability}")
        if self.axis not in (0, 1, 2):
            raise ValueError(f"axis must be 0, 1 or 2, got {self.axis}")

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        if float(uniform(0.0, 1.0, 1, generator)) >= self.probability:
            return mesh
        vertices = mesh.vertices.clone()
        vertices[:, self.axis] *= -1
        return Mesh(vertices, mesh.faces.flip(dims=(1,)))


@dataclass(frozen=True)
class Decimate:
    """Simplify a mesh of triangles to a random share of its faces.

    Args:
        low: least share, above 0.
        high: greatest share, up to 1.
        simplify: from a mesh and a number of faces to a mesh with at most so many.

    Raises:
        ValueError: the shares are not in order.
        RuntimeError: no package to decimate with can be imported.
    """

    low: float = 0.5
    high: float = 1.0
    simplify: Callable[[Mesh, int], Mesh] = simplify_mesh

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"shares must be 0 < low <= high <= 1, got {self.low}, {self.high}")
        if self.simplify is simplify_mesh:
            default_simplifier()  # raises here rather than in a worker, in the middle of training

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        share = float(uniform(self.low, self.high, 1, generator))
        max_faces = max(4, round(share * len(mesh.faces)))
        if max_faces >= len(mesh.faces):
            return mesh
        try:
            return self.simplify(mesh, max_faces)
        except RuntimeError:
            # some assemblies cannot be collapsed so far
            return mesh


@dataclass(frozen=True)
class Normalize:
    """Centre the bounding box, and scale its longest side to that of the cube."""

    def __call__(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        lowest, highest = mesh.vertices.amin(dim=0), mesh.vertices.amax(dim=0)
        longest = (highest - lowest).amax().clamp(min=torch.finfo(torch.float32).tiny)
        return mesh._replace(vertices=(mesh.vertices - (lowest + highest) / 2) * (2 / longest))


def fit_to_cube(mesh: Mesh) -> Mesh:
    """Shrink a mesh that is larger than the cube from -1 to 1, and move it inside."""
    lowest, highest = mesh.vertices.amin(dim=0), mesh.vertices.amax(dim=0)
    centre = (lowest + highest) / 2
    shrink = (2 / (highest - lowest).amax()).clamp(max=1.0)
    half = (highest - lowest) / 2 * shrink
    # where the half sides reach the walls there is no room, and rounding must not cross the limits
    room = (1 - half).clamp(min=0.0)
    moved = centre.maximum(-room).minimum(room)
    return mesh._replace(vertices=(mesh.vertices - centre) * shrink + moved)


def uniform(
    low: float, high: float, shape: int | tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Draw numbers between two limits."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def _check_amount(amount: float) -> None:
    if amount < 0:
        raise ValueError(f"an amount must be 0 or more, got {amount}")
