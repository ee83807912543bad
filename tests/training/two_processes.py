"""What each of two processes does in test_processes.py: train, save, resume, and write it down.

accelerate launch --module tests.training.two_processes <folder> <ddp or fsdp>
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TYPECHECK"] = "True"

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training.loop import MeshTrainer
from tests.helpers import box_mesh
from tests.training import resumed_run
from tests.training.runs import Samples, make_autoencoder, make_transformer, without_speed

NUM_STEPS = 6
BOXES: tuple[Mesh, ...] = tuple(
    box_mesh(size=(0.1 * i + 0.2, 0.9 - 0.1 * i, 0.3 + 0.05 * i)) for i in range(8)
)


class LoggedSamples(Samples):
    """Samples that note in a file which item was read."""

    def __init__(self, meshes: tuple[Mesh, ...], path: Path) -> None:
        super().__init__(meshes)
        self.path = path
        self.num_faces = [len(mesh.faces) for mesh in meshes]

    def __getitem__(self, index: int) -> Any:
        with self.path.open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


def meshes_of(kind: str) -> tuple[Mesh, ...]:
    """Return boxes for the autoencoder, and meshes of all sizes for the transformer.

    The quantizer's losses look at a batch as a whole, and processes weigh alike in them.
    """
    if kind == "autoencoder":
        return BOXES
    return tuple(Mesh(box.vertices, box.faces[: 12 - i]) for i, box in enumerate(BOXES))


def make_trainer(kind: str, folder: Path, batch_size: int, **kwargs: Any) -> MeshTrainer:
    """Build a trainer that has nothing random in it but the order of the data."""
    options: dict[str, Any] = {
        "dataset": LoggedSamples(meshes_of(kind), folder / f"read.{os.getpid()}.txt"),
        "val_dataset": Samples(meshes_of(kind)),
        "num_train_steps": NUM_STEPS,
        "batch_size": batch_size,
        "grad_accum_every": 2,
        "learning_rate": 1e-2,
        "optimizer": torch.optim.SGD,
        "optimizer_kwargs": {"momentum": 0.5},
        # of the transformer's meshes no two are of one size
        "bucket_by_length": kind == "transformer",
        "warmup_steps": 0,
        "checkpoint_folder": folder,
        "checkpoint_every": 3,
        "val_every": 3,
        "val_num_batches": None,
        "sample_every": 6,
        "num_samples": 1,
        "accelerator_kwargs": {"cpu": True},
        "progress": False,
        "seed": 0,
        "ema_kwargs": {"update_every": 1, "beta": 0.5},
        **kwargs,
    }
    if kind == "autoencoder":
        return MeshAutoencoderTrainer(make_autoencoder(rq_kwargs={}), **options)
    return MeshTransformerTrainer(make_transformer(), **options)


def share_weights_on_the_cpu() -> None:
    """Have accelerate do on the CPU what it does on GPUs alone, as it was configured for FSDP."""
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()


def share_of_weights(trainer: MeshTrainer) -> float:
    """Return how much of the trained weights is in this process."""
    own = whole = 0
    for weight in trainer.model.parameters():
        whole += weight.numel()
        own += weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel()
    return own / whole


def is_resume_exact(kind: str, folder: Path) -> dict[str, bool]:
    """Tell whether two steps, a checkpoint and two more are four, with everything random on."""
    first = resumed_run.build(kind, folder, 2)
    first()
    first.save(folder / "checkpoint")
    whole, resumed = (resumed_run.build(kind, folder, 4) for _ in range(2))
    whole()
    resumed.load(folder / "checkpoint")
    resumed()
    losses = [[record["loss"] for record in each.history] for each in (whole, resumed)]
    report = {"losses": losses[0] == losses[1]}
    # the main process alone validates, and has the average
    if whole.is_main:
        report["history"] = without_speed(whole.history) == without_speed(resumed.history)
        for name in ("unwrapped_model", "averaged_model"):
            states = [getattr(each, name).state_dict() for each in (whole, resumed)]
            report[name] = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    return report


def main(folder: Path, config: str) -> None:
    """Train both models, and go on from a checkpoint of each."""
    if config == "fsdp":
        share_weights_on_the_cpu()
    for kind in ("autoencoder", "transformer"):
        whole, resumed = folder / kind, folder / f"{kind}.resumed"
        if PartialState(cpu=True).is_main_process:
            whole.mkdir()
            resumed.mkdir()
        PartialState().wait_for_everyone()
        trainer = make_trainer(kind, whole, batch_size=1)
        trainer()
        second = make_trainer(kind, resumed, batch_size=1, seed=1)
        second.load(whole / f"{trainer.checkpoint_name}.ckpt.3")
        second()
        report = {
            "whole": trainer.history,
            "resumed": second.history,
            "share": share_of_weights(trainer),
        }
        path = folder / f"{kind}.{trainer.accelerator.process_index}.json"
        path.write_text(json.dumps(report))
    exact = {kind: is_resume_exact(kind, folder / "random" / kind) for kind in resumed_run.KINDS}
    path = folder / f"resume.{PartialState().process_index}.json"
    path.write_text(json.dumps(exact))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
