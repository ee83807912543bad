"""Save a trainer as it is, and go on from what was saved: by this library, or by upstream."""

import warnings
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils import gather_object

from meshgpt_pytorch.checkpoint import CheckpointError, is_upstream_file, read_upstream_file
from meshgpt_pytorch.training.batches import TrainingBatches
from meshgpt_pytorch.training.folders import (
    CheckpointFolder,
    Stateful,
    read_checkpoint,
    save_checkpoint,
)
from meshgpt_pytorch.training.optimizer import LearningRate
from meshgpt_pytorch.training.options import TrainerOptions
from meshgpt_pytorch.training.random_state import get_random_state, set_random_state
from meshgpt_pytorch.training.stepping import Stepping
from meshgpt_pytorch.training.surface import TrainerSurface
from meshgpt_pytorch.training.upstream import load_upstream_moments


class Checkpointing(TrainerSurface):
    """The part of a trainer that saves and loads; ``MeshTrainer`` inherits it."""

    checkpoint_name: ClassVar[str]

    batches: TrainingBatches
    checkpoint_folder: Path
    last_checkpoint: Path | None
    learning_rate: LearningRate
    optimizer: Any
    options: TrainerOptions
    stepping: Stepping

    @cached_property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints that this trainer writes as it goes."""
        return CheckpointFolder(
            self.checkpoint_folder, self.checkpoint_name, keep=self.options.keep_checkpoints
        )

    def save(self, path: str | PathLike[str], overwrite: bool = True) -> None:
        """Write a checkpoint folder in one step; to be called by every process.

        A process that is killed at any moment leaves the old checkpoint or the new one.

        Args:
            path: folder: model.safetensors, ema.safetensors (if there is an average), config.json,
                trainer_state.pt and history.jsonl.
            overwrite: whether a checkpoint of that name is replaced.

        Raises:
            FileExistsError: the path exists and `overwrite` is False.
        """
        parts = self._stateful_parts()
        self.whole.gather()
        state = {
            "step": self.step,
            "optimizer_class": type(self.learning_rate.optimizer).__name__,
            # a collective call: each process has random generators of its own
            "random_states": gather_object([get_random_state()]),
            "optimizer": self.stepping.state_dict(),
            **{name: part.state_dict() for name, part in parts.items()},
        }
        if self.is_main:
            models = {"model": self.unwrapped_model}
            if self.average is not None:
                models["ema"] = self.average.model
            save_checkpoint(path, models, state, self.history, overwrite=overwrite)
        self.wait()

    def save_step(self) -> None:
        """Write the checkpoint of the present step, and delete those that are not to be kept."""
        path = self.checkpoints.path(self.step)
        self.save(path)
        self.last_checkpoint = path
        if self.is_main:
            self.checkpoints.prune()

    def load(self, path: str | PathLike[str]) -> None:
        """Go on from a checkpoint folder that `save` wrote, with its optimizer's settings.

        Args:
            path: the folder; or "latest" or "best", for the one in this trainer's checkpoint folder
                with the highest step or the lowest validation loss; or a file that a trainer of
                meshgpt-pytorch 1.x saved, which goes on with this trainer's settings. Without an
                average in it, the average starts at its model.

        Warns:
            UserWarning: this trainer was told another learning rate or weight decay; or the
                optimizer of a file of 1.x is left out.

        Raises:
            FileNotFoundError: there is no such folder, or none with a validation loss.
            CheckpointError: a file in it is damaged, or of another model, optimizer or format.
        """
        # one process puts in order what a killed run left, before all look for it
        if self.is_main:
            self.checkpoints.put_in_order(path)
        self.wait()
        folder = self.checkpoints.find(path)
        if folder.is_file() and is_upstream_file(folder):
            self._load_upstream(folder)
            return

        folder, state, history = read_checkpoint(folder)
        self._check_optimizer(state, folder)
        self.whole.trained.load(folder / "model.safetensors")
        if self.average is not None:
            name = "ema.safetensors" if "average" in state else "model.safetensors"
            self.average.model.load(folder / name)
        self.stepping.load_state_dict(state["optimizer"])
        for name, part in self._stateful_parts().items():
            if name in state:
                part.load_state_dict(state[name])
        self.step = state["step"]
        self.last_checkpoint = folder
        self.reporter.history = history
        self.whole.gather()
        # with another number of processes there is no run to repeat exactly
        if len(state["random_states"]) == self.accelerator.num_processes:
            set_random_state(state["random_states"][self.accelerator.process_index])

    def _check_optimizer(self, state: Mapping[str, Any], folder: Path) -> None:
        """Refuse the moments of another class of optimizers."""
        own = type(self.learning_rate.optimizer).__name__
        saved = state.get("optimizer_class", own)
        if saved != own:
            raise CheckpointError(
                f"{folder} holds the state of {saved}, wanted that of {own}; pass "
                f"optimizer=torch.optim.{saved} to go on, or start anew from its weights alone: "
                f"model.load(folder / 'model.safetensors')"
            )

    def _load_upstream(self, path: Path) -> None:
        """Go on from a file of 1.x: weights, average, moments and step."""
        file = read_upstream_file(path)
        model = self.whole.trained
        model.load(path)
        self.whole.gather()
        if self.average is not None and file.average is not None:
            start = "ema_model."
            tensors = {
                name.removeprefix(start): tensor
                for name, tensor in file.average.items()
                if name.startswith(start)
            }
            self.average.model.load_tensors(tensors, path, strict=True)
            self.average.load_state_dict(file.average)
        elif self.average is not None:
            self.average.model.load(path)

        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if not load_upstream_moments(optimizer, file.optimizer, model, list(file.tensors)):
            warnings.warn(
                f"the optimizer in {path} does not fit {type(optimizer).__name__} over this model; "
                f"training goes on with a new one",
                stacklevel=3,
            )
        self.step = file.step or 0
        self.learning_rate.skip_to(self.step)
        self.last_checkpoint = path

    def _stateful_parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful | None] = {
            "learning_rate": self.learning_rate,
            "average": self.average,
            "scaler": self.accelerator.scaler,
            "batches": self.batches,
        }
        return {name: part for name, part in parts.items() if part is not None}
