"""Training steps: forward and backward, without the optimizer."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from benchmarks.workload import Context, Job, Stopwatch, Workload
from benchmarks.workloads.meshes import furniture_batch, grid_mesh
from benchmarks.workloads.models import (
    SEED,
    build_autoencoder,
    build_transformer,
    random_codes,
)

CODES_PER_FACE = 6


def training_job(
    model: Module, loss_of: Callable[[], Tensor], warm_up: Callable[[], Tensor]
) -> Job:
    """Make a job of a training step.

    The gradients are there before the first step, so that the memory of a step is that of its
    activations and of what passes through.
    """
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)

    def run(watch: Stopwatch) -> float:
        torch.manual_seed(SEED)
        model.zero_grad(set_to_none=False)
        watch.start()
        loss = loss_of()
        loss.backward()
        watch.stop()
        return float(loss.detach())

    return Job(run, warm_up=lambda: warm_up().backward())


def checkpointing(checkpoint_activations: bool) -> dict[str, bool]:
    """Return the option of a model; nothing by default, which upstream takes too."""
    return {"checkpoint_activations": True} if checkpoint_activations else {}


@dataclass(frozen=True)
class TrainTransformer(Workload):
    """A training step of the transformer on codes.

    Args:
        num_faces: faces of each mesh of the batch; shorter ones are padded.
        size: arguments of ``MeshTransformer``.
        in_bfloat16: run the forward pass under autocast.
        is_compiled: compile the model first.
        checkpoint_activations: compute activations again in the backward pass; ours alone can.
    """

    num_faces: tuple[int, ...]
    size: Mapping[str, Any] = field(default_factory=dict)
    in_bfloat16: bool = False
    is_compiled: bool = False
    checkpoint_activations: bool = False

    def prepare(self, context: Context) -> Job:
        """Build the model and the codes."""
        num_codes = max(self.num_faces) * CODES_PER_FACE
        options = checkpointing(self.checkpoint_activations)
        model = build_transformer(context, num_codes, **self.size, **options)
        codes = random_codes(model, len(self.num_faces), num_codes)
        lengths = torch.tensor(self.num_faces, device=codes.device) * CODES_PER_FACE
        is_padding = torch.arange(num_codes, device=codes.device) >= lengths[:, None]
        codes = codes.masked_fill(is_padding, model.pad_id)
        forward = model.forward_on_codes
        if self.is_compiled:
            forward = torch.compile(forward)

        def loss(codes: Tensor) -> Any:
            with (
                torch.autocast(context.device, torch.bfloat16)
                if self.in_bfloat16
                else nullcontext()
            ):
                return forward(codes)

        warm_up_codes = codes if self.is_compiled else codes[:, :CODES_PER_FACE]
        return training_job(model, lambda: loss(codes), lambda: loss(warm_up_codes))


@dataclass(frozen=True)
class TrainAutoencoder(Workload):
    """A training step of the autoencoder on furniture, or on grids where none is so large.

    Args:
        num_faces: faces of each mesh.
        batch: meshes at once.
        arguments: of ``MeshAutoencoder``.
        on_grids: take grids, of any number of faces.
        checkpoint_activations: compute activations again in the backward pass; ours alone can.
    """

    num_faces: int
    batch: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    on_grids: bool = False
    checkpoint_activations: bool = False

    def prepare(self, context: Context) -> Job:
        """Build the model and the meshes."""
        options = checkpointing(self.checkpoint_activations)
        model = build_autoencoder(context, **self.arguments, **options)
        if self.on_grids:
            vertices, faces = (each[None] for each in grid_mesh(self.num_faces))
        else:
            vertices, faces = furniture_batch(self.num_faces, self.batch)
        vertices, faces = vertices.to(context.device), faces.to(context.device)
        small_vertices, small_faces = (each[None].to(context.device) for each in grid_mesh(8))
        return training_job(
            model,
            lambda: model(vertices=vertices, faces=faces),
            lambda: model(vertices=small_vertices, faces=small_faces),
        )
