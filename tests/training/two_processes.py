"""What each of two processes does in test_processes.py: train, save, resume, and write it down.

accelerate launch --module tests.training.two_processes <folder> <ddp, fsdp or deepspeed>
"""

import json
import os
import sys
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ["TYPECHECK"] = "True"

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

from meshgpt_pytorch.checkpoint.sharding import gather_shares
from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training.loop import MeshTrainer
from tests.helpers import box_mesh
from tests.training import resumed_run
from tests.training.runs import (
    Samples,
    flatten,
    make_autoencoder,
    make_transformer,
    without_speed,
)

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
    is_autoencoder = kind == "autoencoder"
    model = make_autoencoder(rq_kwargs={}) if is_autoencoder else make_transformer()
    # the second process drew another model
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and os.environ.get("RANK") == "1":
            tensor.data.add_(0.1)
    trainer_class = MeshAutoencoderTrainer if is_autoencoder else MeshTransformerTrainer
    return trainer_class(model, **options)


def share_weights_on_the_cpu() -> None:
    """Have accelerate do on the CPU what it does on GPUs alone, as it was configured for FSDP."""
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()


def use_deepspeed_on_the_cpu() -> None:
    """Have accelerate do on the CPU what it does on GPUs alone, as it was configured for it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops

    # gloo does without what DeepSpeed would compile
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    use = os.environ.pop("ACCELERATE_USE_DEEPSPEED")
    Accelerator(cpu=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = use
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("no")
    plugin.select(_from_accelerator_state=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    AcceleratorState._shared_state["deepspeed_plugins"] = plugin


def count(tensors: Iterable[torch.Tensor]) -> int:
    """Return how many numbers of some tensors are in this process."""
    return sum(getattr(each, "to_local", lambda each=each: each)().numel() for each in tensors)


def shares(trainer: MeshTrainer) -> list[float]:
    """Return how much of the trained weights, and of their moments, is in this process."""
    weights = [each for each in trainer.model.parameters() if each.requires_grad]
    whole = sum(each.numel() for each in weights)
    inner = trainer.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    moments = [each["momentum_buffer"] for each in inner.state.values()]
    return [count(weights) / whole, count(moments) / whole]


def weights_and_moments(trainer: MeshTrainer) -> Any:
    """Copy the state of the model and of the optimizer, in one piece."""
    state = trainer.whole.trained.state_dict(), trainer.stepping.state_dict()
    return deepcopy(gather_shares(state))


def what_a_spoiled_step_changes(kind: str, folder: Path) -> list[str]:
    """Spoil the loss, then the gradient of one process, and name what is not as before.

    The state of the optimizer is put back as it is, which changes nothing either.
    """
    trainer = make_trainer(kind, folder, batch_size=1, num_train_steps=1, val_dataset=None)
    trainer()
    before = weights_and_moments(trainer)
    compute_losses = trainer.compute_losses

    def spoil(*arguments: Any) -> dict[str, torch.Tensor]:
        losses = compute_losses(*arguments)
        if trainer.accelerator.process_index == 1 and trainer.step == 1:
            losses["loss"] = losses["loss"] * torch.inf
        if trainer.accelerator.process_index == 1 and trainer.step == 2:
            losses["loss"].register_hook(lambda gradient: gradient * torch.nan)
        return losses

    trainer.compute_losses = spoil
    trainer.num_train_steps = 3
    trainer()
    trainer.stepping.load_state_dict(weights_and_moments(trainer)[1])
    leaves = [dict(flatten(state)) for state in (before, weights_and_moments(trainer))]
    changed = [
        str(place)
        for place, value in leaves[0].items()
        if not bool(torch.as_tensor(value == leaves[1][place]).all())
    ]
    skipped = [record["step"] for record in trainer.history if "skipped" in record]
    return [*changed, *(f"step {step} was skipped" for step in skipped)]


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
    if config == "deepspeed":
        use_deepspeed_on_the_cpu()
    for stage, kind in enumerate(("autoencoder", "transformer"), start=1):
        if config == "deepspeed":
            plugin = AcceleratorState().deepspeed_plugin
            plugin.deepspeed_config["zero_optimization"]["stage"] = stage
        whole, resumed, spoiled = (
            folder / f"{kind}{each}" for each in ("", ".resumed", ".spoiled")
        )
        if PartialState(cpu=True).is_main_process:
            for each in (whole, resumed, spoiled):
                each.mkdir()
        PartialState().wait_for_everyone()
        trainer = make_trainer(kind, whole, batch_size=1)
        trainer()
        second = make_trainer(kind, resumed, batch_size=1, seed=1)
        second.load(whole / f"{trainer.checkpoint_name}.ckpt.3")
        second()
        report = {
            "whole": trainer.history,
            "resumed": second.history,
            "shares": shares(trainer),
            "spoiled": what_a_spoiled_step_changes(kind, spoiled),
        }
        path = folder / f"{kind}.{trainer.accelerator.process_index}.json"
        path.write_text(json.dumps(report))
    exact = {kind: is_resume_exact(kind, folder / "random" / kind) for kind in resumed_run.KINDS}
    path = folder / f"resume.{PartialState().process_index}.json"
    path.write_text(json.dumps(exact))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
