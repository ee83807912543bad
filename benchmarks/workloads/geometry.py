"""Work on meshes: face edges, tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.workload import Context, Job, Stopwatch, Workload
from benchmarks.workloads.meshes import furniture, furniture_sizes, grid_mesh
from benchmarks.workloads.models import build_autoencoder
from meshgpt_pytorch.data import derive_face_edges_from_faces


@dataclass(frozen=True)
class DeriveFaceEdges(Workload):
    """List the neighbouring faces of a grid."""

    num_faces: int

    def prepare(self, context: Context) -> Job:
        """Make the grid."""
        faces = grid_mesh(self.num_faces)[1].to(context.device)
        few = faces[:8]

        def run(watch: Stopwatch) -> float:
            edges = derive_face_edges_from_faces(faces)
            watch.stop()
            return len(edges)

        return Job(run, warm_up=lambda: derive_face_edges_from_faces(few))


@dataclass(frozen=True)
class Tokenize(Workload):
    """Turn furniture meshes into codes, one after another.

    Args:
        num_meshes: how many, spread evenly over the pack's face counts.
        arguments: of ``MeshAutoencoder``.
    """

    num_meshes: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, context: Context) -> Job:
        """Build the model and read the meshes."""
        model = build_autoencoder(context, **self.arguments).eval()
        sizes = furniture_sizes()
        by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
        step = len(by_size) // self.num_meshes
        meshes = furniture(by_size[step // 2 :: step][: self.num_meshes])

        @torch.no_grad()
        def run(watch: Stopwatch) -> float:
            # upstream does not switch gradients off by itself; its users do
            total = sum(int(model.tokenize(*mesh).sum()) for mesh in meshes)
            watch.stop()
            return total

        return Job(run, warm_up=lambda: model.tokenize(*meshes[0]))
