"""The loop that both trainers share: train -> step -> validate -> save."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from meshgpt_pytorch.checkpoint import SavedModule
from meshgpt_pytorch.modes import evaluating
from meshgpt_pytorch.training.acceleration import build_accelerator, common_seed
from meshgpt_pytorch.training.averaging import AveragedModel
from meshgpt_pytorch.training.batches import (
    ShuffledSampler,
    TrainingBatches,
    build_loader,
    forward_arguments,
    num_samples,
)
from meshgpt_pytorch.training.folders import Stateful, read_checkpoint, save_checkpoint
from meshgpt_pytorch.training.optimizer import LearningRate, build_optimizer, load_optimizer_state
from meshgpt_pytorch.training.options import Record, TrainerOptions
from meshgpt_pytorch.training.random_state import get_random_state, set_random_state
from meshgpt_pytorch.training.reporting import Reporter


class MeshTrainer:
    """Train one model on one data set; the public trainers say how a batch becomes a loss."""

    checkpoint_name: ClassVar[str]

    def __init__(
        self,
        model: SavedModule,
        dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None,
        options: TrainerOptions,
        *,
        pad_id: int,
    ) -> None:
        """Check options and data, and set up everything but the random generators.

        Args:
            model: model to train, in place.
            dataset: samples to train on.
            val_dataset: samples to validate with.
            options: options of the run.
            pad_id: marks padding.

        Raises:
            ValueError: an option or a data set that training cannot work with.
            ImportError: wandb is asked for and not installed.
        """
        self.options = options
        self.step = 0
        self.accelerator = build_accelerator(
            options.accelerator_kwargs, use_wandb_tracking=options.use_wandb_tracking
        )
        self.checkpoint_folder = Path(options.checkpoint_folder)
        self.data_kwargs = tuple(getattr(dataset, "data_kwargs", None) or options.data_kwargs)

        self.batches = TrainingBatches(
            dataset,
            self.accelerator,
            batch_size=options.batch_size,
            pad_id=pad_id,
            seed=common_seed(options.seed),
        )
        self.val_loader = None
        if val_dataset is not None:
            length = num_samples(val_dataset)
            if length == 0:
                raise ValueError("val_dataset must hold at least one sample, got none; pass None")
            # one order at all times, so that the first batches are a fixed random share
            self.val_loader = build_loader(
                val_dataset,
                ShuffledSampler(length, seed=0),
                batch_size=options.batch_size,
                pad_id=pad_id,
                drop_last=False,
            )

        if self.accelerator.device_placement:
            model.to(self.accelerator.device)  # before the optimizer, whose kernels may ask
        self.average: AveragedModel | None = None
        if options.ema_kwargs is not None and self.is_main:
            self.average = AveragedModel(model, options.ema_kwargs)

        optimizer = build_optimizer(
            model,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            optimizer_kwargs=options.optimizer_kwargs,
        )
        self.learning_rate = LearningRate(
            optimizer,
            scheduler=options.scheduler,
            scheduler_kwargs=options.scheduler_kwargs,
            warmup_steps=options.warmup_steps,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.reporter = Reporter(
            self.accelerator,
            self.checkpoint_folder,
            name=self.checkpoint_name,
            progress=options.progress,
        )

    # what a trainer adds

    def accepted_arguments(self) -> frozenset[str]:
        """Return the names of the entries of a batch that the model takes."""
        raise NotImplementedError

    def check_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check what the model is about to be given, and choose where there is a choice."""
        raise NotImplementedError

    def compute_losses(self, model: Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return scalars, averaged over the batch; "loss" is trained."""
        raise NotImplementedError

    def count_faces(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of faces in a batch, a scalar."""
        raise NotImplementedError

    def count_targets(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the number of predictions that the loss averages over, or its like."""
        raise NotImplementedError

    # the loop

    def train(self) -> None:
        """Train until the step count, the time limit, or a hook ends it; may be called again."""
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        if self.options.seed is not None and self.step == 0:
            set_seed(self.options.seed, device_specific=True)
        if not self.model.training:
            self.model.train()

        started = time.monotonic()
        batches = iter(self.batches)
        with self.reporter.running(self.step, self.options.num_train_steps):
            while self.step < self.options.num_train_steps and not self._is_late(started):
                record = self._train_step(batches)
                if self.val_loader is not None and self.step % self.options.val_every == 0:
                    record |= self.validate()
                self.reporter.report(record)
                if self.step % self.options.checkpoint_every == 0:
                    self.save(self.checkpoint_folder / f"{self.checkpoint_name}.ckpt.{self.step}")
                if self.options.on_step is not None and self.options.on_step(record):
                    break
        self.print(f"{self.checkpoint_name}: {self.step} of {self.options.num_train_steps} steps")

    __call__ = forward = train

    def _train_step(self, batches: Iterator[Any]) -> Record:
        """Take one optimizer step over `grad_accum_every` batches."""
        started = time.monotonic()
        micro_batches = [
            self._forward_arguments(next(batches)) for _ in range(self.options.grad_accum_every)
        ]
        weights = self._weights(micro_batches)

        totals: dict[str, Tensor] = {}
        for index, arguments in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with self._syncing(is_last), self.accelerator.autocast():
                losses = self.compute_losses(self.model, arguments)
                self.accelerator.backward(losses["loss"] * weights[index])
            for name, loss in losses.items():
                totals.setdefault(name, loss.new_zeros((), dtype=torch.float32))
                totals[name] += loss.detach() * weights[index]

        if self.options.max_grad_norm is not None:
            totals["grad_norm"] = self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.options.max_grad_norm
            )
        faces = [self.count_faces(arguments).float() for arguments in micro_batches]
        totals["faces"] = torch.stack(faces).sum()
        numbers = self._read(totals)
        learning_rate = self._optimizer_step()

        total_faces = numbers.pop("faces") * self.accelerator.num_processes
        speed = {"faces_per_second": total_faces / (time.monotonic() - started)}
        return {"step": self.step, **numbers, "learning_rate": learning_rate, **speed}

    def _optimizer_step(self) -> float:
        """Update the weights, their average and the schedule; return the learning rate used."""
        learning_rate = self.learning_rate.value
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.learning_rate.step()
        self.step += 1
        if self.average is not None:
            self.average.update()
        return learning_rate

    def _weights(self, micro_batches: list[dict[str, Any]]) -> list[Tensor | float]:
        """Share the step among its batches by their targets, as one large batch would.

        The mean over processes that follows in the backward pass is undone, since it would weigh
        processes alike.
        """
        processes = self.accelerator.num_processes
        if len(micro_batches) == 1 and processes == 1:
            return [1.0]
        counts = torch.stack([self.count_targets(arguments) for arguments in micro_batches]).float()
        total = self.accelerator.reduce(counts.sum(), reduction="sum")
        return list(counts * processes / total)

    def _syncing(self, is_last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients between processes in the last batch of a step only."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def _read(self, totals: Mapping[str, Tensor]) -> Record:
        """Average scalars over processes, and wait for the device once for all of them."""
        values = torch.stack([value.float().to(self.device) for value in totals.values()])
        values = self.accelerator.reduce(values, reduction="mean")
        return dict(zip(totals, values.tolist(), strict=True))

    def _is_late(self, started: float) -> bool:
        """Tell whether the time limit has passed, for all processes alike."""
        if self.options.time_limit is None:
            return False
        if self.is_main and time.monotonic() - started > self.options.time_limit:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _forward_arguments(self, batch: Any) -> dict[str, Any]:
        arguments = forward_arguments(batch, self.data_kwargs, self.accepted_arguments())
        return self.check_arguments(arguments)

    @torch.no_grad()
    def validate(self) -> Record:
        """Return the mean losses over the validation set, of the averaged model if there is one.

        Up to `val_num_batches` batches are read, always the same ones, by the main process. Every
        part of the model is left in the mode it was in.
        """
        if self.val_loader is None:
            raise ValueError("validate needs a val_dataset, got None; pass one to the trainer")
        self.wait()
        totals: dict[str, float] = {}
        count = 0.0
        model = self.unwrapped_model if self.average is None else self.average.model
        batches = islice(self.val_loader, self.options.val_num_batches) if self.is_main else ()
        with evaluating(model):
            for batch in batches:
                arguments = self._forward_arguments(send_to_device(batch, self.device))
                with self.accelerator.autocast():
                    losses = self.compute_losses(model, arguments)
                weight = self.count_targets(arguments).item()
                count += weight
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0.0) + loss.item() * weight
        self.wait()
        return {f"val_{name}": total / count for name, total in totals.items()}

    # checkpoints

    def save(self, path: str | PathLike[str], overwrite: bool = True) -> None:
        """Write a checkpoint folder in one step; to be called by every process.

        Args:
            path: folder: model.safetensors, ema.safetensors (if there is an average),
                trainer_state.pt and history.jsonl.
            overwrite: whether a checkpoint of that name is replaced.

        Raises:
            FileExistsError: the path exists and `overwrite` is False.
        """
        parts = self._stateful_parts()
        state = {
            "step": self.step,
            # a collective call: each process has random generators of its own
            "random_states": gather_object([get_random_state()]),
            "optimizer": self.optimizer.state_dict(),
            **{name: part.state_dict() for name, part in parts.items()},
        }
        if self.is_main:
            models = {"model": self.unwrapped_model}
            if self.average is not None:
                models["ema"] = self.average.model
            save_checkpoint(path, models, state, self.history, overwrite=overwrite)
        self.wait()

    def load(self, path: str | PathLike[str]) -> None:
        """Go on from a checkpoint folder that `save` wrote, with its optimizer's settings.

        Args:
            path: the folder. Without an average in it, the average starts at its model.

        Warns:
            UserWarning: this trainer was told another learning rate or weight decay.

        Raises:
            FileNotFoundError: there is no such folder.
            CheckpointError: a file in it is damaged, or of another model or format.
        """
        folder, state, history = read_checkpoint(path)
        self.unwrapped_model.load(folder / "model.safetensors")
        if self.average is not None:
            name = "ema.safetensors" if "average" in state else "model.safetensors"
            self.average.model.load(folder / name)
        load_optimizer_state(self.optimizer, state["optimizer"])
        for name, part in self._stateful_parts().items():
            if name in state:
                part.load_state_dict(state[name])
        self.step = state["step"]
        self.reporter.history = history
        # with another number of processes there is no run to repeat exactly
        if len(state["random_states"]) == self.accelerator.num_processes:
            set_random_state(state["random_states"][self.accelerator.process_index])

    def _stateful_parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful | None] = {
            "learning_rate": self.learning_rate,
            "average": self.average,
            "scaler": self.accelerator.scaler,
            "batches": self.batches,
        }
        return {name: part for name, part in parts.items() if part is not None}

    # what users reach for

    @property
    def history(self) -> list[Record]:
        """One record of numbers for each step, from the first on."""
        return self.reporter.history

    @property
    def unwrapped_model(self) -> SavedModule:
        """The model itself, without what accelerate puts around it."""
        model: SavedModule = self.accelerator.unwrap_model(self.model)
        return model

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def is_local_main(self) -> bool:
        """Whether this process is the first of its machine."""
        return self.accelerator.is_local_main_process

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def print(self, msg: str) -> None:
        """Write a line above the progress bar, from the main process."""
        self.reporter.say(msg)

    def log(self, **numbers: float) -> None:
        """Send numbers to the trackers, at the present step."""
        self.accelerator.log(numbers, step=self.step)

    def wandb_tracking(
        self, project: str, run: str | None = None, hps: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[None]:
        """Track what is trained inside a ``with`` block in a wandb run.

        Args:
            project: wandb project.
            run: name of the run.
            hps: hyperparameters to store with the run.
        """
        return self.reporter.tracking(project, run, hps, kind="wandb")

    def tracking(
        self, project: str, hps: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[None]:
        """Track inside a ``with`` block in all that ``accelerator_kwargs["log_with"]`` names."""
        return self.reporter.tracking(project, None, hps, kind=None)
