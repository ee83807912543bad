"""A data set whose meshes are augmented, put in order and connected as they are read."""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from meshgpt_pytorch.data.augment import Augmentation, fit_to_cube
from meshgpt_pytorch.data.choosing import members_of_groups
from meshgpt_pytorch.mesh import (
    Mesh,
    VanishedMeshError,
    canonicalize_mesh,
    check_mesh,
    derive_face_edges_from_faces,
    discretize,
    undiscretize,
)

CUBE = (-1.0, 1.0)
# of an augmentation, until one loses no face to the grid
NUM_DRAWS = 8


class Meshes(Protocol):
    """What is augmented: a data set of dicts with vertices and faces."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @property
    def item_keys(self) -> tuple[str, ...]: ...

    @property
    def num_faces(self) -> Tensor: ...


class AugmentedDataset(Dataset[dict[str, Any]]):
    """Meshes that differ in each epoch; made by `MeshDataset.augment`.

    Items are dicts: ``vertices`` and ``faces`` in canonical order, ``face_edges`` of them, and
    whatever else an item has. They depend on the seed, the epoch and the index alone, not on the
    worker that reads them. Parts as thin as a bin fall flat where their axis shrinks: where faces
    are lost so, more than as it is, the augmentation is drawn again, up to seven times; then the
    draw that lost the smallest share is taken.

    Args:
        dataset: items with vertices and faces, in the range.
        augmentation: from a mesh and a random generator to a mesh.
        seed: of all that is drawn.
        groups: a label for each mesh. Meshes of one label are one item, and each epoch draws one
            of them; one without a label is an item of its own. By default each mesh is an item.
        num_discrete_coors: bins of the grid along each axis.
        coor_continuous_range: the cube that the grid divides.
        up_axis: 0, 1 or 2, coordinate to sort by first.

    Raises:
        ValueError: items have no vertices or no faces, or the seed is below 0; as an item is read,
            the augmentation returned a mesh that is empty, not finite or badly indexed.
    """

    def __init__(
        self,
        dataset: Meshes,
        augmentation: Augmentation,
        *,
        seed: int = 0,
        groups: Sequence[Hashable] | None = None,
        num_discrete_coors: int = 128,
        coor_continuous_range: tuple[float, float] = CUBE,
        up_axis: int = 1,
    ) -> None:
        if not {"vertices", "faces"} <= set(dataset.item_keys):
            raise ValueError(
                f"items must carry vertices and faces to be augmented, got {dataset.item_keys}; "
                f"choose them with with_keys"
            )
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self._meshes_of_item = members_of_groups(range(len(dataset)) if groups is None else groups)
        self.num_discrete_coors = num_discrete_coors
        self.coor_continuous_range = coor_continuous_range
        self.up_axis = up_axis
        # shared, so that workers that outlive an epoch see the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from now on; the trainers call it at the start of each epoch.

        Args:
            epoch: 0 or more; the same epoch gives the same items.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The number that `set_epoch` was given last."""
        return int(self._epoch)

    @property
    def item_keys(self) -> tuple[str, ...]:
        """The keys of an item."""
        others = [key for key in self.dataset.item_keys if key != "face_edges"]
        return (*others, "face_edges")

    @property
    def num_faces(self) -> Tensor:
        """The most faces that each item can have, int64: augmentation adds none."""
        num_faces = self.dataset.num_faces.numpy()
        return torch.tensor([int(num_faces[meshes].max()) for meshes in self._meshes_of_item])

    def __len__(self) -> int:
        return len(self._meshes_of_item)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dataset!r}, {self.augmentation!r}, seed={self.seed})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        numbers = (self.seed, self.epoch, int(index) % len(self))
        seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed) >> 1)
        meshes = self._meshes_of_item[int(index)]
        drawn = int(torch.randint(len(meshes), (1,), generator=generator)) if len(meshes) > 1 else 0
        item = self.dataset[meshes[drawn]]
        mesh = self._augment(Mesh(item["vertices"], item["faces"]), generator)
        return {
            **item,
            "vertices": mesh.vertices,
            "faces": mesh.faces,
            "face_edges": derive_face_edges_from_faces(mesh.faces),
        }

    def _augment(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        low, high = self.coor_continuous_range
        mesh = mesh._replace(vertices=(mesh.vertices - low) * (2 / (high - low)) - 1)
        best, most_kept, kept_without = None, 0.0, None
        for _ in range(NUM_DRAWS):
            augmented = self._draw(mesh, generator)
            try:
                on_grid = self._on_grid(augmented)
            except VanishedMeshError:
                continue
            kept = len(on_grid.faces) / len(augmented.faces)
            if kept == 1:
                return on_grid
            if kept_without is None:
                kept_without = self._share_on_grid(mesh)
            if kept > most_kept:
                best, most_kept = on_grid, kept
            if kept >= kept_without:
                break
        # a flat or tiny mesh can vanish between the bins in each draw: then it stays as it is
        return self._on_grid(mesh) if best is None else best

    def _share_on_grid(self, mesh: Mesh) -> float:
        """Return the share of faces that the grid keeps: not all of a mesh with duplicate faces."""
        try:
            return len(self._on_grid(mesh).faces) / len(mesh.faces)
        except VanishedMeshError:
            return 1.0

    def _draw(self, mesh: Mesh, generator: torch.Generator) -> Mesh:
        """Augment a mesh of the cube once."""
        augmented = self.augmentation(mesh, generator)
        try:
            check_mesh(augmented)
        except ValueError as error:
            raise ValueError(f"{self.augmentation!r} made a mesh that is none: {error}") from error
        return fit_to_cube(augmented)

    def _on_grid(self, mesh: Mesh) -> Mesh:
        """Put a mesh of the cube on the grid where it is, which a shift must survive, and in order.

        `canonicalize_mesh` would centre and scale what is not on the grid yet.
        """
        num_bins, limits = self.num_discrete_coors, self.coor_continuous_range
        bins = discretize(mesh.vertices, continuous_range=CUBE, num_discrete=num_bins)
        vertices = undiscretize(bins, continuous_range=limits, num_discrete=num_bins)
        return canonicalize_mesh(
            mesh._replace(vertices=vertices),
            num_discrete_coors=num_bins,
            coor_continuous_range=limits,
            up_axis=self.up_axis,
        )
